"""What a language model would say if it stopped after each layer: the logit lens, and the tuned one."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.html_pages import write_page
from embedstore.model import FloatMatrix
from embedstore.names import check_file
from embedstore.probing.heads import HeadedModel, Read, open_headed
from embedstore.states.taps import layer_numbers

_MOST_TOKENS = 20_000
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Said:
    """What one layer would say at one token: the likeliest tokens with their probabilities; kl: nats to the end."""

    layer: int
    position: int
    token: str
    top: list[tuple[str, float]]
    kl: float


@dataclass(slots=True)
class LensReport:
    """What the layers would say of some texts.

    kl: by layer, mean Kullback-Leibler divergence in nats of what it says from what the model says in the end. agree:
    by layer, the share of tokens whose likeliest word is the model's. texts: of each, its tokens, and what every layer
    would say at every one. n_truncated: how many texts were longer than the model reads.
    """

    model: str
    method: str
    kl: dict[int, float]
    agree: dict[int, float]
    n_tokens: int
    n_truncated: int
    texts: list[tuple[list[str], list[Said]]]

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each token and layer of the texts."""
        return [
            {
                "text": number, "position": one.position, "token": one.token, "layer": one.layer,
                "kl": round(one.kl, 4), "says": one.top[0][0], "probability": round(one.top[0][1], 4),
                "top": [[word, round(share, 4)] for word, share in one.top],
            }
            for number, (_, said) in enumerate(self.texts)
            for one in said
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "model": self.model, "method": self.method, "n_tokens": self.n_tokens,
            "n_truncated": self.n_truncated,
            "kl": {str(layer): round(value, 6) for layer, value in self.kl.items()},
            "agree": {str(layer): round(value, 6) for layer, value in self.agree.items()}, "said": self.to_rows(),
        }  # fmt: skip

    def to_html(self) -> str:
        """Tables of what each layer would say, layers from below, coloured by how sure it is."""
        parts = []
        for tokens, said in self.texts:
            layers = sorted({one.layer for one in said}, reverse=True)
            by_place = {(one.layer, one.position): one for one in said}
            head = "".join(f"<th>{html.escape(token) or '&nbsp;'}</th>" for token in tokens)
            rows = [f"<tr><th>layer</th>{head}</tr>"]
            for layer in layers:
                cells = []
                for position in range(len(tokens)):
                    one = by_place[layer, position]
                    word, share = one.top[0]
                    more = html.escape(", ".join(f"{w!r} {s:.3f}" for w, s in one.top))
                    cells.append(
                        f'<td style="background:rgba(66,133,244,{share:.3f})" title="{more}; KL {one.kl:.3f}">'
                        f"{html.escape(word)}</td>"
                    )
                rows.append(f"<tr><th>{layer}</th>{''.join(cells)}</tr>")
            parts.append(f'<div class="wide"><table class="lens">{"".join(rows)}</table></div>')
        return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class TunedLens:
    """For each layer but the last an affine map (dim, dim), (dim,) that is added to a state before it is read.

    held_out: by layer, the divergence in nats on texts that it was not trained on, without and with it.
    """

    weights: str
    maps: dict[int, tuple[np.ndarray, np.ndarray]]
    held_out: dict[int, tuple[float, float]]

    def apply(self, layer: int, states: FloatMatrix) -> FloatMatrix:
        """States (n, dim) of a layer as those of the end, as near as may be."""
        if layer not in self.maps:
            return states
        matrix, offset = self.maps[layer]
        made: FloatMatrix = states + states @ matrix.T + offset
        return made

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write it as a safetensors file."""
        import json

        from safetensors.numpy import save_file

        path = check_file(file, (".safetensors",), "lens")
        arrays = {}
        for layer, (matrix, offset) in self.maps.items():
            arrays[f"{layer}.matrix"], arrays[f"{layer}.offset"] = matrix, offset
        held_out = json.dumps({str(layer): pair for layer, pair in self.held_out.items()})
        save_file(arrays, path, {"format": "embedstore tuned lens 1", "weights": self.weights, "held_out": held_out})

    @classmethod
    def load(cls, file: str | os.PathLike[str]) -> TunedLens:
        """Read what ``save`` wrote; InvalidInput for anything else."""
        import json

        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(file), "np") as held:
                told = held.metadata() or {}
                if told.get("format") != "embedstore tuned lens 1":
                    raise ValueError("it is no tuned lens")
                layers = sorted({int(name.partition(".")[0]) for name in held.keys()})  # noqa: SIM118
                maps = {one: (held.get_tensor(f"{one}.matrix"), held.get_tensor(f"{one}.offset")) for one in layers}
                pairs = json.loads(told["held_out"])
                held_out = {int(layer): (float(one), float(other)) for layer, (one, other) in pairs.items()}
                return cls(told["weights"], maps, held_out)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InvalidInput(f"the lens {os.fspath(file)!r} cannot be read: {error}") from None


def lens(
    model: str | HeadedModel,
    texts: Sequence[str],
    *,
    layers: str | int | Iterable[int] = "all",
    top: int = 5,
    tuned: TunedLens | None = None,
    shown: int = 20,
    allow_network: bool = False,
) -> LensReport:
    """Read every layer of a language model by its own last norm and head (nostalgebraist 2020), or a tuned lens.

    model: a causal or masked language model, by folder or hub name, or one that was opened before. shown: of how many
    texts everything is told; the divergences are of all.
    """
    given = checked_texts(texts)
    check_whole("top", top, 1)
    opened = open_headed(model, allow_network=allow_network) if isinstance(model, str) else model
    wanted = layer_numbers(layers, opened.n_layers, where=opened.anatomy.where)
    if tuned is not None and tuned.weights != _weights(opened):
        raise InvalidInput(f"the lens was tuned to another model than the one in {opened.model.folder}; train it anew")
    sums, agreed, n = dict.fromkeys(wanted, 0.0), dict.fromkeys(wanted, 0), 0
    told: list[tuple[list[str], list[Said]]] = []
    n_truncated = 0
    for number, text in enumerate(given):
        read = opened.read(text)
        end = _log_softmax(read.logits)
        said: list[Said] = []
        n += len(read.ids)
        n_truncated += read.truncated
        for layer in wanted:
            states = read.states[layer] if tuned is None else tuned.apply(layer, read.states[layer])
            logs = _log_softmax(logits_of(opened, states))
            divergence = divergences(end, logs)
            sums[layer] += float(divergence.sum())
            agreed[layer] += int((logs.argmax(axis=1) == end.argmax(axis=1)).sum())
            if number < shown:
                said += _said(opened, read, layer, logs, divergence, top)
        if number < shown:
            told.append((read.tokens, said))
    kl = {layer: value / n for layer, value in sums.items()}
    agree = {layer: count / n for layer, count in agreed.items()}
    return LensReport(str(opened.model.folder), "logit" if tuned is None else "tuned", kl, agree, n, n_truncated, told)


def _said(
    model: HeadedModel, read: Read, layer: int, logs: FloatMatrix, divergence: np.ndarray, top: int
) -> list[Said]:
    k = min(top, logs.shape[1])
    best = np.argpartition(-logs, k - 1, axis=1)[:, :k]
    found = []
    for position in range(len(read.ids)):
        order = best[position][np.argsort(-logs[position, best[position]], kind="stable")]
        words = list(zip(model.words(order.tolist()), np.exp(logs[position, order]).tolist(), strict=True))
        found.append(Said(layer, position, read.tokens[position], words, float(divergence[position])))
    return found


def checked_texts(texts: Sequence[str]) -> list[str]:
    """Texts as a list; InvalidInput for one text, none, or something else."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInput("texts are given as a list; put one text into a list")
    if not texts:
        raise InvalidInput("there are no texts; give one at least")
    empty = next((place for place, text in enumerate(texts) if isinstance(text, str) and not text.strip()), None)
    if empty is not None:
        raise InvalidInput(f"the text at position {empty} is empty; leave it out")
    return list(texts)


def logits_of(model: HeadedModel, states: FloatMatrix) -> FloatMatrix:
    """What the model would say of states (n, dim) of its stream: logits (n, vocabulary)."""
    import torch

    with torch.no_grad():
        found: FloatMatrix = model.unembed(torch.from_numpy(np.ascontiguousarray(states))).float().numpy()
    return found


def divergences(end: FloatMatrix, logs: FloatMatrix) -> np.ndarray:
    """KL(end || logs) in nats by line, of log probabilities (n, vocabulary)."""
    found: np.ndarray = (np.exp(end) * (end - logs)).sum(axis=1, dtype=np.float64)
    return found


def _log_softmax(logits: FloatMatrix) -> FloatMatrix:
    from scipy.special import log_softmax

    return np.asarray(log_softmax(logits.astype(np.float64), axis=1))


def _weights(model: HeadedModel) -> str:
    return model.model.spec("lens").weights


def tune(
    model: str | HeadedModel,
    texts: Sequence[str],
    *,
    epochs: int = 8,
    seed: int = 0,
    allow_network: bool = False,
) -> TunedLens:
    """Train a tuned lens (Belrose et al. 2023) on texts, of which a fifth is held out.

    For each layer an affine map that brings its states to those of the end: first by least squares, then by gradient
    descent on the divergence of what is said. At most 20,000 tokens are learned from.
    """
    import torch

    given = checked_texts(texts)
    check_whole("epochs", epochs, 0)
    check_seed(seed)
    given = list(dict.fromkeys(given))  # else a text might be on both sides
    if len(given) < 5:
        raise InvalidInput(f"there are {len(given)} different texts; a lens is tuned to 5 or more")
    opened = open_headed(model, allow_network=allow_network) if isinstance(model, str) else model
    order = np.random.default_rng(seed).permutation(len(given))
    cut = max(1, len(given) // 5)
    held_out = _streams(opened, [given[place] for place in order[:cut].tolist()], _MOST_TOKENS // 4)
    stream = _streams(opened, [given[place] for place in order[cut:].tolist()], _MOST_TOKENS)
    maps, found = {}, {}
    for layer in range(opened.n_layers):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            maps[layer] = _tuned_map(opened, stream[layer], stream[-1], epochs)
    made = TunedLens(_weights(opened), maps, {})
    for layer in range(opened.n_layers):
        pair = [0.0, 0.0]
        for some in np.split(np.arange(held_out.shape[1]), range(_BATCH, held_out.shape[1], _BATCH)):
            states = held_out[layer, some].numpy()
            end = _log_softmax(logits_of(opened, held_out[-1, some].numpy()))
            for which, moved in enumerate((states, made.apply(layer, states))):
                pair[which] += float(divergences(end, _log_softmax(logits_of(opened, moved))).sum())
        found[layer] = (pair[0] / held_out.shape[1], pair[1] / held_out.shape[1])
    return TunedLens(made.weights, maps, found)


def _streams(model: HeadedModel, texts: Sequence[str], most: int) -> Any:
    """The streams of texts one after the other, (layers, tokens, dim), at most so many tokens, as a tensor."""
    import torch

    states, n = [], 0
    for text in texts:
        states.append(model.read(text).states[:, : most - n])
        n += states[-1].shape[1]
        if n >= most:
            break
    return torch.from_numpy(np.concatenate(states, axis=1))


def _tuned_map(model: HeadedModel, states: Any, end: Any, epochs: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    n, dim = states.shape
    with torch.no_grad():
        mean, mean_end = states.mean(dim=0), end.mean(dim=0)
        centred = (states - mean).double()
        gram = centred.T @ centred / n
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(dim, dtype=torch.float64)
        cross = centred.T @ (end - mean_end - (states - mean)).double() / n
        start = torch.linalg.solve(gram, cross).T.float()
    matrix = start.clone().requires_grad_()
    offset = (mean_end - mean - start @ mean).clone().requires_grad_()
    learner = torch.optim.Adam([matrix, offset], lr=1e-3)
    steps = epochs * (-(-n // _BATCH))
    slowing = torch.optim.lr_scheduler.LambdaLR(learner, lambda step: 1.0 - step / max(steps, 1))
    for parameter in model.network.parameters():
        parameter.requires_grad_(False)
    for _ in range(epochs):
        for some in torch.split(torch.randperm(n), _BATCH):
            given = states[some]
            with torch.no_grad():
                wanted = model.unembed(end[some]).float().log_softmax(dim=1)
            logs = model.unembed(given + given @ matrix.T + offset).float().log_softmax(dim=1)
            loss: Any = (wanted.exp() * (wanted - logs)).sum(dim=1).mean()
            learner.zero_grad()
            loss.backward()
            learner.step()
            slowing.step()
    return matrix.detach().numpy().copy(), offset.detach().numpy().copy()


def write_lens_page(report: LensReport, file: str | os.PathLike[str]) -> Path:
    """Write what the layers say as one HTML file that needs no other."""
    return write_page(file, f"What the layers of {Path(report.model).name} say", [report.to_html()])
