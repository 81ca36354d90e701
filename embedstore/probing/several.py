"""Probes that read several labels at once: each by itself, of one split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.probing.examples import Examples, LayerSpace, states_of
from embedstore.probing.learners import choose_strength, fit_linear
from embedstore.probing.splitting import folds_of, inner_folds

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.probing.linear import ProbeReport

_DRAWS = 200


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
    inner = inner_folds(examples.groups, seed + 1)
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
        mean = float(np.mean(precisions))
        made = LayerScore(space.layer, space.name, mean, *_interval(wanted[judged], told[judged], groups, seed))
        decided, there = told[judged] > 0.5, wanted[judged] > 0
        made.other["f1"] = float(2 * (decided & there).sum() / max(decided.sum() + there.sum(), 1))
        made.other["decisions"] = float(((told > 0.5) == wanted)[judged].mean())
        layers.append(made)
    prior = float(wanted[judged].mean(axis=0).mean())
    return ProbeReport(
        label, "several", "linear", len(examples), len(set(examples.groups)), names, folds, layers, {"prior": prior}
    )


def _interval(wanted: np.ndarray, told: np.ndarray, groups: Sequence[Any], seed: int) -> tuple[float, float]:
    """The 95 % interval of the mean average precision by the percentile bootstrap over groups."""
    from sklearn.metrics import average_precision_score

    places: dict[Any, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    held, drawn, means = list(places.values()), np.random.default_rng(seed), []
    for _ in range(_DRAWS):
        some = [place for group in drawn.integers(0, len(held), len(held)).tolist() for place in held[group]]
        there = [label for label in range(wanted.shape[1]) if 0 < wanted[some, label].sum() < len(some)]
        if there:
            means.append(np.mean([average_precision_score(wanted[some, one], told[some, one]) for one in there]))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
