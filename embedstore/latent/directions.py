"""Directions that stand for an attribute: fitted to two groups of records or to pairs, measured, and kept by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed
from embedstore.errors import InvalidInput, RecordNotFound
from embedstore.filters.parse import Where
from embedstore.latent.points import look_at
from embedstore.model import FloatMatrix, FloatVector, Metric
from embedstore.names import check_collection_name
from embedstore.reading import space_row
from embedstore.storage import catalog
from embedstore.storage.catalog import now
from embedstore.storage.fitted import DIRECTION, Fitted, all_fitted, fitted_of
from embedstore.storage.writing import CollectionWriter
from embedstore.transforms.affine import normalized
from embedstore.vector import Vector

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.space import Space

METHODS = ("mean", "logistic", "pairs")
_MOST = 20_000
_FOLDS = 5
_LEAST = 2

Group = Where | Sequence[str]
"""Records by a filter, or by their keys."""


class Direction(Vector):
    """A difference of points that stands for an attribute; computed with like any vector of its space.

    Its length is the way from the one group's mean to the other's, so that ``v + direction`` goes all of it. ``about``
    says how it was fitted and what it is worth: ``strength`` is the difference of the groups' means along it in
    deviations within the groups (Cohen's d); ``accuracy`` and ``auroc`` how well it tells records apart that were held
    out, in five folds (none where a group has fewer records than that).
    """

    def __init__(self, space: Space, array: FloatVector, name: str, about: Mapping[str, Any]) -> None:
        super().__init__(space, array)
        self.name = name
        self.about = dict(about)

    def __repr__(self) -> str:
        return f"Direction({self.name!r}, {self.space_name!r}, length {self.norm():.4g})"


@dataclass(frozen=True, slots=True)
class _Groups:
    """Vectors (n, d) of two groups, at most 20,000 of each, and the means of all."""

    positive: FloatMatrix
    negative: FloatMatrix
    positive_mean: np.ndarray
    negative_mean: np.ndarray
    n_positive: int
    n_negative: int
    paired: bool


def fit_direction(
    collection: Collection,
    space: Space,
    name: str,
    *,
    positive: Group | None,
    negative: Group | None,
    pairs: Sequence[Sequence[str]] | None,
    method: str | None,
    seed: int,
) -> Direction:
    """See ``Space.fit_direction``."""
    check_collection_name(name)
    check_seed(seed)
    for group in (positive, negative):
        if group is not None and (not isinstance(group, (str, Mapping, Sequence))):
            raise InvalidInput(f"a group is a filter or a list of keys, not {type(group).__name__}")
    chosen = method or ("mean" if pairs is None else "pairs")
    if chosen not in METHODS:
        raise InvalidInput(f"method is {chosen!r}; it must be one of {', '.join(METHODS)}")
    grouped = positive is not None or negative is not None
    if (pairs is not None) == grouped or (grouped and (positive is None or negative is None)):
        told = "groups and pairs came both" if grouped and pairs is not None else "a group is missing"
        raise InvalidInput(f"a direction needs two groups, positive and negative, or pairs of keys, not both; {told}")
    if chosen == "pairs" and pairs is None:
        raise InvalidInput("the method 'pairs' needs pairs of keys, from which and to which it leads")
    groups = _of_pairs(collection, space, pairs) if pairs is not None else None
    if groups is None:
        assert positive is not None and negative is not None
        groups = _of_groups(collection, space, positive, negative, seed)
    array = _fitted(groups, chosen, whole=True)
    if not np.isfinite(array).all() or not array.any():
        raise InvalidInput("the two groups have the same mean, so there is no direction between them")
    about = {
        "method": chosen, "n_positive": groups.n_positive, "n_negative": groups.n_negative, "fitted_at": now(),
        "sampled": len(groups.positive) < groups.n_positive or len(groups.negative) < groups.n_negative,
        **_worth(groups, array, chosen, seed),
    }  # fmt: skip
    with collection.store.database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        row = writer.spaces.get(space.name)
        if row is None or row.space_id != space.space_id:
            raise InvalidInput(f"another writer changed the space {space.name!r} meanwhile; try again")
        writer.keep_fitted(space.name, Fitted(name, DIRECTION, about, {"direction": array.astype(np.float32)}))
        writer.finish()
    return Direction(space, array.astype(np.float32), name, about)


def direction_of(collection: Collection, space: Space, name: str) -> Direction:
    """A direction that is kept; RecordNotFound where there is none of that name."""
    with collection.store.reading() as transaction:
        row = space_row(transaction, catalog.require_collection(transaction, collection.name), space.name)
        kept = fitted_of(transaction, row.space_id, name) if name else None
        if kept is None or kept.kind != DIRECTION:
            names = [one.name for one in all_fitted(transaction, row.space_id) if one.kind == DIRECTION]
            raise RecordNotFound(f"{space} has no direction {name!r}; it has: {', '.join(names) or 'none yet'}")
    return Direction(space, kept.arrays["direction"], kept.name, kept.description)


def directions_of(collection: Collection, space: Space) -> list[Direction]:
    """Every direction that a space keeps, by name."""
    with collection.store.reading() as transaction:
        row = space_row(transaction, catalog.require_collection(transaction, collection.name), space.name)
        kept = [one for one in all_fitted(transaction, row.space_id) if one.kind == DIRECTION]
    return [Direction(space, one.arrays["direction"], one.name, one.description) for one in kept]


def forget_direction(collection: Collection, space: Space, name: str) -> None:
    """Forget a direction; RecordNotFound where there is none of that name."""
    direction_of(collection, space, name)
    with collection.store.database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        writer.forget_fitted(space.name, name)
        writer.finish()


# ---- the groups


def _of_groups(collection: Collection, space: Space, positive: Group, negative: Group, seed: int) -> _Groups:
    there, n_there, mean_there = _group(collection, space, positive, "positive", seed)
    here, n_here, mean_here = _group(collection, space, negative, "negative", seed)
    return _Groups(there, here, mean_there, mean_here, n_there, n_here, paired=False)


def _group(
    collection: Collection, space: Space, given: Group, which: str, seed: int
) -> tuple[FloatMatrix, int, np.ndarray]:
    """The vectors of a group, at most 20,000 of them, how many there are, and the mean of all."""
    if isinstance(given, (str, Mapping)):
        vectors, n, mean = look_at(
            collection, space.name, given,
            lambda points: (points.sample(_MOST, seed)[1], points.n, points.mean() if points.n else 0),
        )  # fmt: skip
    else:
        vectors = _compared(space, collection.vectors(list(given), space=space.name))
        n, mean = len(vectors), vectors.mean(axis=0, dtype=np.float64) if len(vectors) else 0
    if n < _LEAST:
        raise InvalidInput(f"the {which} group has {n} records with a vector in {space}; {_LEAST} or more are needed")
    return vectors, n, np.asarray(mean)


def _of_pairs(collection: Collection, space: Space, pairs: Sequence[Sequence[str]]) -> _Groups:
    given = [tuple(one) for one in pairs]
    wrong = next((one for one in given if len(one) != 2), None)
    if wrong is not None:
        raise InvalidInput(f"a pair is two keys, from which and to which the direction leads; this is {wrong!r}")
    if len(given) < _LEAST:
        n = f"is {len(given)} pair" if len(given) == 1 else f"are {len(given)} pairs"
        raise InvalidInput(f"there {n}; {_LEAST} or more are needed")
    here = _compared(space, collection.vectors([one for one, _ in given], space=space.name))
    there = _compared(space, collection.vectors([other for _, other in given], space=space.name))
    means = there.mean(axis=0, dtype=np.float64), here.mean(axis=0, dtype=np.float64)
    return _Groups(there, here, *means, len(given), len(given), paired=True)


def _compared(space: Space, vectors: FloatMatrix) -> FloatMatrix:
    return normalized(vectors) if space.metric is Metric.COSINE else vectors


# ---- fitting, and what it is worth


def _fitted(groups: _Groups, method: str, *, whole: bool = False) -> np.ndarray:
    """The direction as float64 (d,), as long as the way between the means along it."""
    if whole:
        between = groups.positive_mean - groups.negative_mean
    else:
        between = groups.positive.mean(axis=0, dtype=np.float64) - groups.negative.mean(axis=0, dtype=np.float64)
    if method == "mean":
        return np.asarray(between)
    if method == "pairs":
        differences = groups.positive.astype(np.float64) - groups.negative
        normal = np.linalg.svd(differences, full_matrices=False)[2][0]  # not centred: their common part is meant
    else:
        from sklearn.linear_model import LogisticRegression

        vectors = np.concatenate([groups.positive, groups.negative]).astype(np.float64)
        scale = vectors.std(axis=0)
        greatest = max(float(scale.max()), 1e-300)
        scale = np.where(scale > 1e-7 * greatest, scale, greatest)  # what varies less is rounding
        labels = np.repeat([1, 0], [len(groups.positive), len(groups.negative)])
        found = LogisticRegression(max_iter=1000, class_weight="balanced").fit(vectors / scale, labels)
        normal = found.coef_[0] / scale
        normal = normal / max(float(np.linalg.norm(normal)), 1e-300)
    return np.asarray(normal * float(between @ normal))


def _worth(groups: _Groups, array: np.ndarray, method: str, seed: int) -> dict[str, Any]:
    """Strength along the direction, and how well it tells apart what was held out."""
    normal = array / np.linalg.norm(array)
    there, here = groups.positive @ normal, groups.negative @ normal
    within = np.sqrt((there.var() * len(there) + here.var() * len(here)) / max(len(there) + len(here) - 2, 1))
    found: dict[str, Any] = {"length": float(np.linalg.norm(array))}
    found["strength"] = round(float((there.mean() - here.mean()) / max(within, 1e-300)), 4) if within > 0 else None
    if min(len(there), len(here)) < _FOLDS:
        return found
    drawn = np.random.default_rng(seed)
    folds_there = drawn.permutation(len(there)) % _FOLDS
    folds_here = folds_there if groups.paired else drawn.permutation(len(here)) % _FOLDS
    right, scores, labels = 0.0, [], []
    for fold in range(_FOLDS):
        learned = _Groups(
            groups.positive[folds_there != fold], groups.negative[folds_here != fold], groups.positive_mean,
            groups.negative_mean, 0, 0, groups.paired,
        )  # fmt: skip
        made = _fitted(learned, method)
        length = float(np.linalg.norm(made))
        if length == 0:
            return found
        middle = (learned.positive @ made).mean() / 2 + (learned.negative @ made).mean() / 2
        for held_out, label in ((groups.positive[folds_there == fold], 1), (groups.negative[folds_here == fold], 0)):
            along = (held_out @ made - middle) / length
            right += float(((along > 0) == bool(label)).sum())
            scores.append(along)
            labels.append(np.full(len(along), label))
    from sklearn.metrics import roc_auc_score

    found["accuracy"] = round(right / (len(there) + len(here)), 4)
    found["auroc"] = round(float(roc_auc_score(np.concatenate(labels), np.concatenate(scores))), 4)
    return found
