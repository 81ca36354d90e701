"""Changes the stream of a causal model while it runs: a vector is added to what a block leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, FloatVector
from embedstore.probing.heads import HeadedModel

_AT_ONCE = 64


@contextmanager
def steering(model: HeadedModel, vectors: Mapping[int, FloatVector], *, everywhere: bool = False) -> Iterator[None]:
    """While this lasts, ``vectors`` float32 (dim,) are added to the stream behind the blocks of those layers (from 1).

    everywhere: at every token; else at the last one of each text. The hooks are gone afterwards, whatever happens.
    """
    import torch

    for layer, vector in vectors.items():
        if not 1 <= layer <= model.n_layers:
            raise InvalidInput(f"layer {layer} is not there: {model.anatomy.where} is steered at 1 to {model.n_layers}")
        if np.shape(vector) != (model.anatomy.dim,):
            shape = np.shape(vector)
            raise InvalidInput(f"a vector to steer with has {model.anatomy.dim} numbers; this has shape {shape}")
    with ExitStack() as hooks:
        for layer, vector in vectors.items():
            added = torch.from_numpy(np.asarray(vector, np.float32))

            def hook(module: Any, arguments: Any, output: Any, added: Any = added) -> Any:
                states = output[0] if isinstance(output, tuple) else output
                moved = states.clone()
                if everywhere:
                    moved += added
                elif model.last is None or len(model.last) != len(states):
                    raise InvalidInput("only prompts that this model was given can be steered at their last token")
                else:
                    lines = torch.arange(len(states))
                    moved[lines, model.last] += added
                return (moved, *output[1:]) if isinstance(output, tuple) else moved

            hooks.callback(model.anatomy.blocks[layer - 1].register_forward_hook(hook).remove)
        yield


def next_log_probabilities(model: HeadedModel, prompts: Sequence[Sequence[int]]) -> FloatMatrix:
    """Of token ids the log probabilities of what comes next, float32 (n, vocabulary)."""
    import torch

    found = []
    for start in range(0, len(prompts), _AT_ONCE):
        with torch.no_grad():
            logits = model.unembed(model.last_states(prompts[start : start + _AT_ONCE]))
        found.append(logits.float().log_softmax(dim=1).numpy())
    return np.concatenate(found)


def last_states(model: HeadedModel, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """The stream at the last token of token ids, float32 (n_layers + 1, n, dim)."""
    import torch

    from embedstore.states.recording import Stopped, recording
    from embedstore.states.taps import HIDDEN, Tap

    taps = [Tap(HIDDEN, layer) for layer in range(model.n_layers + 1)]
    found = np.empty((len(taps), len(prompts), model.anatomy.dim), np.float32)
    for start in range(0, len(prompts), _AT_ONCE):
        some = prompts[start : start + _AT_ONCE]

        def take(tap: Tap, states: Any, start: int = start, n: int = len(some)) -> None:
            lines = torch.arange(n)
            found[tap.layer, start : start + n] = states[lines, model.last].float().numpy()

        with torch.no_grad(), recording(model.anatomy, taps, take), suppress(Stopped):
            model.run(some)
    return found


def task_vectors(
    model: HeadedModel, shown: Sequence[Sequence[int]], bare: Sequence[Sequence[int]]
) -> dict[int, FloatVector]:
    """By layer, the mean last-token state of prompts with demonstrations less that of prompts without (Hendel et al.
    2023; Todd et al. 2024): what the demonstrations tell, as a place in the stream.
    """
    if not len(shown) or not len(bare):
        raise InvalidInput("a task vector needs prompts with demonstrations, and prompts without")
    difference = last_states(model, shown).mean(axis=1) - last_states(model, bare).mean(axis=1)
    return {layer: difference[layer] for layer in range(1, model.n_layers + 1)}
