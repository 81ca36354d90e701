"""Parts examples into those that are learned from and those that are judged by, groups kept whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import IntVector


def folds_of(
    classes: IntVector | None, groups: Sequence[Any], n_folds: int, seed: int, names_of: Sequence[str] | None = None
) -> IntVector:
    """By example the fold in which it is held out, int64 (n,); classes are spread evenly where they are given.

    InvalidInput where there are fewer groups than folds, or a class with fewer examples than folds.
    """
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(names) < n_folds:
        raise InvalidInput(
            f"there are {len(names)} groups of records for {n_folds} parts; ask for fewer folds, or add records"
        )
    numbers = np.array([names[group] for group in groups])
    if classes is not None:
        counts = np.bincount(classes)
        least = int(counts[counts > 0].min())
        if least < n_folds:
            rare = int(np.flatnonzero(counts == least)[0])
            which = f"the class {names_of[rare]!r}" if names_of is not None else "a class"
            raise InvalidInput(
                f"{which} has {least} examples, fewer than the {n_folds} parts that records are put into; leave it out"
                " by a filter, or add records"
            )
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    places = np.zeros((len(numbers), 1))
    if classes is None:
        made = GroupKFold(n_folds, shuffle=True, random_state=seed).split(places, groups=numbers)
    elif len(names) == len(numbers):
        made = StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(places, classes)
    else:
        made = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(places, classes, numbers)
    folds = np.empty(len(numbers), np.int64)
    for fold, (_, held_out) in enumerate(made):
        folds[held_out] = fold
    return folds


def inner_folds(groups: Sequence[Any], seed: int) -> IntVector:
    """Three folds, or two where there are only so many groups, for what is chosen within the learned part."""
    n = len(set(groups))
    if n < 2:
        raise InvalidInput("what is learned from is one group of records; there must be two, to choose a penalty by")
    return folds_of(None, groups, min(3, n), seed)


def interval(values: np.ndarray, groups: Sequence[Any], seed: int, level: float = 0.95) -> tuple[float, float]:
    """A confidence interval of a mean by the percentile bootstrap (Efron 1979) over groups, 1,000 draws."""
    names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    numbers = np.array([names[group] for group in groups])
    totals = np.bincount(numbers, values, minlength=len(names))
    sizes = np.bincount(numbers, minlength=len(names))
    drawn = np.random.default_rng(seed)
    means = np.empty(1000)
    for draw in range(len(means)):
        counts = np.bincount(drawn.integers(0, len(names), len(names)), minlength=len(names))
        means[draw] = (counts @ totals) / max(float(counts @ sizes), 1.0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
