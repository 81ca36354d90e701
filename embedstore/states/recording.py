"""Reads states while a model runs: one context that puts hooks into it and always takes them out again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from embedstore.states.anatomy import Anatomy
from embedstore.states.taps import ATTENTION, FINAL_NORM, HEAD, HIDDEN, MLP, Tap

Take = Callable[[Tap, Any], None]
"""Takes a place and the states there, (n_texts, n_tokens, dim), which the model goes on with: copy what is kept."""


class Stopped(Exception):
    """Ends a forward pass once the last of the wanted states was taken."""


@contextmanager
def recording(anatomy: Anatomy, taps: Collection[Tap], take: Take, *, stop: bool = True) -> Iterator[None]:
    """While this lasts, every forward pass gives the states at ``taps`` to ``take``, in the order of the model.

    stop: whether the pass ends, by ``Stopped``, after the highest of the places that were asked for.
    Raises InvalidInput for a place that the model does not have. The hooks are gone afterwards, whatever happens.
    """
    wanted = set(taps)
    last = max((_depth(tap) for tap in wanted), default=-1)
    with ExitStack() as hooks:

        def done(depth: int) -> None:
            if stop and depth == last:
                raise Stopped

        blocks = anatomy.blocks
        by_layer: dict[int, list[Tap]] = {}
        for tap in sorted(wanted, key=_depth):
            by_layer.setdefault(tap.layer, []).append(tap)

        def before_first(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if Tap(HIDDEN, 0) in wanted:
                take(Tap(HIDDEN, 0), arguments[0] if arguments else named["hidden_states"])
            done(0)

        hooks.callback(blocks[0].register_forward_pre_hook(before_first, with_kwargs=True).remove)
        for layer, those in by_layer.items():
            sites = {tap.site for tap in those}
            for site in sites & {ATTENTION, MLP}:
                module = anatomy.require(site)[layer - 1]
                hooks.callback(module.register_forward_hook(_taking(take, Tap(site, layer), anatomy.share)).remove)
            heads = [tap for tap in those if tap.site == HEAD]
            if heads:
                module = anatomy.require(HEAD)[layer - 1]
                hooks.callback(module.register_forward_pre_hook(_taking_heads(take, heads, anatomy.n_heads)).remove)
            if layer and sites - {FINAL_NORM}:
                hooks.callback(
                    blocks[layer - 1].register_forward_hook(_after_block(take, done, layer, HIDDEN in sites)).remove
                )
        if Tap(FINAL_NORM, anatomy.n_layers) in wanted:
            norm = anatomy.final_norm

            def after_norm(module: Any, arguments: Any, output: Any) -> None:
                take(Tap(FINAL_NORM, anatomy.n_layers), output)
                done(anatomy.n_layers + 1)

            hooks.callback(norm.register_forward_hook(after_norm).remove)
        yield


def _depth(tap: Tap) -> int:
    """After how many blocks a state is known; the final norm comes after all of them."""
    return tap.layer + (tap.site == FINAL_NORM)


def _taking(take: Take, tap: Tap, share: float) -> Callable[[Any, Any, Any], None]:
    def hook(module: Any, arguments: Any, output: Any) -> None:
        take(tap, _tensor(output) if share == 1.0 else share * _tensor(output))

    return hook


def _taking_heads(take: Take, taps: list[Tap], n_heads: int) -> Callable[[Any, Any], None]:
    def hook(module: Any, arguments: tuple[Any, ...]) -> None:
        states = arguments[0]
        parts = states.reshape(*states.shape[:2], n_heads, -1)  # (n_texts, n_tokens, n_heads, head_dim)
        for tap in taps:
            take(tap, parts[:, :, tap.head])

    return hook


def _after_block(
    take: Take, done: Callable[[int], None], layer: int, is_wanted: bool
) -> Callable[[Any, Any, Any], None]:
    def hook(module: Any, arguments: Any, output: Any) -> None:
        if is_wanted:
            take(Tap(HIDDEN, layer), _tensor(output))
        done(layer)

    return hook


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output
