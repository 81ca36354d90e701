"""Probes that read several labels at once: each by itself, of one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.probing.examples import Examples, LayerSpace, states_of
from embedstore.probing.learners import choose_strength, fit_linear
from embedstore.probing.splitting import folds_of, interval

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.probing.linear import ProbeReport

_INNER = 3


def several_report(
    collection: Collection, label: str, examples: Examples, spaces: Sequence[LayerSpace], folds: int, seed: int
) -> ProbeReport:
    """A logistic regression for each label; mean average precision over labels, and F1 over all decisions."""
    from sklearn.metrics import average_precision_score

    from embedstore.probing.linear import LayerScore, ProbeReport

    held_out = folds_of(None, examples.groups, folds if folds > 1 else 5, seed)
    parts = range(int(held_out.max()) + 1 if folds > 1 else 1)
    judged = np.isin(held_out, list(parts))
    counts: dict[str, int] = {}
    for labels in examples.labels:
        for one in set(labels):
            counts[one] = counts.get(one, 0) + 1
    wanted = np.array([[name in labels for name in counts] for labels in examples.labels], np.int64)
    usable = [
        place for place in range(len(counts))
        if 0 < wanted[judged, place].sum() < judged.sum()
        and all(0 < wanted[held_out != fold, place].sum() < (held_out != fold).sum() for fold in parts)
    ]  # fmt: skip
    if not usable:
        raise InvalidInput(f"no value of {label!r} is there often enough to be learned and judged; ask for fewer folds")
    names = [list(counts)[place] for place in usable]
    wanted = wanted[:, usable]
    inner = folds_of(None, examples.groups, min(_INNER, len(set(examples.groups))), seed + 1)
    groups = [examples.groups[place] for place in np.flatnonzero(judged).tolist()]
    layers = []
    for space in spaces:
        rows = states_of(collection, space.name, examples.record_ids)
        told = np.zeros(wanted.shape)
        for place in range(len(names)):
            strength = choose_strength(rows[held_out != 0], wanted[held_out != 0, place], 2, inner[held_out != 0])
            for fold in parts:
                out = held_out == fold
                probe = fit_linear(rows[~out], wanted[~out, place], 2, strength, seed)
                told[out, place] = np.exp(probe.log_probabilities(rows[out])[:, 1])
        precisions = [
            float(average_precision_score(wanted[judged, place], told[judged, place])) for place in range(len(names))
        ]
        right = ((told > 0.5) == wanted).mean(axis=1)[judged]
        low, high = interval(right, groups, seed)
        mean = float(np.mean(precisions))
        made = LayerScore(space.layer, space.name, mean, mean - (right.mean() - low), mean + (high - right.mean()))
        decided, there = told[judged] > 0.5, wanted[judged] > 0
        made.other["f1"] = float(2 * (decided & there).sum() / max(decided.sum() + there.sum(), 1))
        made.other["decisions"] = float(right.mean())
        layers.append(made)
    prior = float(wanted[judged].mean(axis=0).mean())
    return ProbeReport(
        label, "several", "linear", len(examples), len(set(examples.groups)), names, folds, layers, {"prior": prior}
    )
