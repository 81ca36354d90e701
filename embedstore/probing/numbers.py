"""Probes that read a number from the states of a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.probing.baselines import word_counts
from embedstore.probing.examples import Examples, LayerSpace, states_of
from embedstore.probing.learners import Standard
from embedstore.probing.splitting import folds_of, interval

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.probing.linear import ProbeReport

_PENALTIES = np.logspace(-1, 5, 13)


def number_report(
    collection: Collection, label: str, examples: Examples, spaces: Sequence[LayerSpace],
    others: Mapping[str, Sequence[LayerSpace]], folds: int, seed: int,
) -> ProbeReport:  # fmt: skip
    """Ridge regression on standardised states, the penalty chosen by leaving one out; R² of what was held out."""
    from scipy.stats import spearmanr

    from embedstore.probing.linear import LayerScore, ProbeReport

    wrong = next((one for one in examples.labels if isinstance(one, bool) or not isinstance(one, (int, float))), None)
    if wrong is not None:
        raise InvalidInput(f"the label {label!r} holds {wrong!r}, which is no number")
    wanted = np.array(examples.labels, np.float64)
    if not wanted.std() > 0:
        raise InvalidInput(f"the label {label!r} is {wanted[0]:g} everywhere; there is nothing to tell")
    held_out = folds_of(None, examples.groups, folds if folds > 1 else 5, seed)
    parts = range(int(held_out.max()) + 1 if folds > 1 else 1)
    judged = np.isin(held_out, list(parts))
    groups = [examples.groups[place] for place in np.flatnonzero(judged).tolist()]
    spread = float(((wanted[judged] - wanted[judged].mean()) ** 2).mean())

    def score(told: np.ndarray) -> tuple[float, np.ndarray]:
        shares = 1.0 - (wanted - told)[judged] ** 2 / spread  # whose mean is R²
        return float(shares.mean()), shares

    layers = []
    for space in spaces:
        told = _told(states_of(collection, space.name, examples.record_ids), wanted, held_out, parts)
        mean, shares = score(told)
        made = LayerScore(space.layer, space.name, mean, *interval(shares, groups, seed))
        made.other["spearman"] = float(spearmanr(told[judged], wanted[judged]).statistic)
        for other, those in others.items():
            name = next(one.name for one in those if one.layer == space.layer)
            beside = _told(states_of(collection, name, examples.record_ids), wanted, held_out, parts)
            made.other[other.rstrip("-") or "beside"] = score(beside)[0]
        layers.append(made)
    baselines = {"mean": score(_means(wanted, held_out, parts))[0]}
    words = word_counts(examples.texts)
    if words is not None:
        baselines["bag of words"] = score(_told(words, wanted, held_out, parts))[0]
    return ProbeReport(
        label, "number", "linear", len(examples), len(set(examples.groups)), [], folds, layers, baselines
    )


def _told(rows: Any, wanted: np.ndarray, held_out: np.ndarray, parts: range) -> np.ndarray:
    from sklearn.linear_model import Ridge, RidgeCV

    told = np.zeros(len(wanted))
    for fold in parts:
        out = held_out == fold
        if isinstance(rows, np.ndarray):
            standard = Standard.of(rows[~out])
            model = RidgeCV(_PENALTIES).fit(standard.apply(rows[~out]), wanted[~out])
            told[out] = model.predict(standard.apply(rows[out]))
        else:
            told[out] = Ridge(10.0).fit(rows[~out], wanted[~out]).predict(rows[out])
    return told


def _means(wanted: np.ndarray, held_out: np.ndarray, parts: range) -> np.ndarray:
    told = np.zeros(len(wanted))
    for fold in parts:
        told[held_out == fold] = wanted[held_out != fold].mean()
    return told
