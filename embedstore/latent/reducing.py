"""Spaces that are made of another one: fitted, added, and held against what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.deriving import add_derived_space
from embedstore.encoders.autoencoder import Autoencoder
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent import maps, moments, products
from embedstore.latent.points import Points, look_at
from embedstore.latent.pullback import pullback
from embedstore.latent.quality import fidelity
from embedstore.model import Metric
from embedstore.storage.catalog import SpaceRow, now
from embedstore.transforms import Affine, Transform

if TYPE_CHECKING:
    from embedstore.collection import Collection

_COMPARED = 2000
_USUAL = 64
_LOOKED_AT = 64
# Vectors at length one could be told apart again after an erasure, so that they are compared as they are.
_METRICS: Mapping[str, Metric] = {"erase": Metric.EUCLIDEAN, **maps.METRICS}
_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a space is to be made of, and how. ``dim`` None: as the method has it; ``encoder``: of the parent space."""

    method: str
    dim: int | None
    of: str | Sequence[str] | None
    label: str | None
    where: Where | None
    sample: int
    seed: int
    weights: Sequence[float] | None = None
    encoder: Any = None

    @property
    def parent(self) -> str | None:
        """The one space that it is made of; None for the default one."""
        if self.of is None or isinstance(self.of, str):
            return self.of
        raise InvalidInput(f"{self.method!r} makes a space of one other; of is {self.of!r}: a product is of several")


@dataclass(frozen=True, slots=True)
class Made:
    """A fitted transform, what can be said of it, and by vector id those that were made while fitting."""

    transform: Transform
    about: Mapping[str, Any]
    placed: Mapping[int, np.ndarray] = field(default_factory=dict)


def add_reduced_space(
    collection: Collection, name: str, wanted: Wanted, *, metric: Metric | None, recipe: str
) -> int:
    """Fit, add the space with every record that has a vector in its parent, and note what it keeps; how many."""
    _check(wanted)
    if wanted.method == products.METHOD:
        return products.add_product_space(
            collection, name, wanted.of or (), wanted.weights, where=wanted.where, metric=metric, recipe=recipe,
            seed=wanted.seed,
        )  # fmt: skip
    if wanted.method == "pullback":
        wanted = replace(wanted, encoder=collection.encoder(wanted.parent))
    fit = METHODS[wanted.method]

    def fitted(points: Points) -> tuple[SpaceRow, Metric, Callable[[], Made]]:
        begun = fit(points, wanted)
        kind = metric or _METRICS.get(wanted.method, points.metric)
        if metric is None and isinstance(begun, Made) and begun.transform.dim == 1:
            kind = Metric.EUCLIDEAN  # by cosine, one number would tell a sign alone
        judge = _judge(points, kind, wanted.seed)
        about = {
            "method": wanted.method, "n_fitted": points.n, "seed": wanted.seed, "label": wanted.label,
            "parent_dim": points.dim,
        }  # fmt: skip

        def finished() -> Made:
            made = begun if isinstance(begun, Made) else begun()
            told = {**about, "fitted_at": now(), **made.about, **judge(made)}
            return Made(made.transform, told, made.placed)

        return points.space, kind, finished

    parent, kind, finish = look_at(collection, wanted.parent, wanted.where, fitted)
    made = finish()  # outside of the snapshot, which keeps the database from tidying its log
    return add_derived_space(
        collection, name, made.transform, made.about, method=wanted.method, parents=[parent], metric=kind,
        recipe=recipe, placed=made.placed,
    )  # fmt: skip


def _check(wanted: Wanted) -> None:
    if wanted.method not in METHODS and wanted.method != products.METHOD:
        known = ", ".join([*METHODS, products.METHOD])
        raise InvalidInput(f"a space cannot be reduced by {wanted.method!r}; the methods are {known}")
    if wanted.weights is not None and wanted.method != products.METHOD:
        raise InvalidInput(f"{wanted.method!r} takes no weights; a product of spaces does")
    if wanted.dim is not None and wanted.method == products.METHOD:
        raise InvalidInput("a product of spaces has the numbers of all of them; leave dim out")
    if wanted.dim is not None:
        check_whole("dim", wanted.dim, 1)
    check_whole("sample", wanted.sample, 10)
    check_seed(wanted.seed)
    if wanted.label is not None and not isinstance(wanted.label, str):
        raise InvalidInput(f"label is {wanted.label!r}; give the name of a field")
    needs_label = wanted.method in ("lda", "erase")
    if needs_label != (wanted.label is not None):
        told = f"needs a label: the field whose values it {'tells apart' if wanted.method == 'lda' else 'erases'}"
        raise InvalidInput(f"{wanted.method!r} {told if needs_label else 'takes no label'}")


def _dim(points: Points, wanted: Wanted, default: int, most: int | None = None) -> int:
    dim = min(default, points.dim) if wanted.dim is None else wanted.dim
    most = points.dim if most is None else most
    if dim > most:
        raise InvalidInput(f"dim is {dim}; of {points.dim} numbers at most {most} can be had by {wanted.method!r}")
    return dim


def _keeps_all(points: Points, wanted: Wanted) -> None:
    """InvalidInput where a method that keeps all numbers is asked for fewer."""
    if wanted.dim not in (None, points.dim):
        raise InvalidInput(f"{wanted.method!r} keeps all {points.dim} numbers of a vector; leave dim out")


def _shares(shares: np.ndarray) -> dict[str, Any]:
    return {"explained_variance": round(float(shares.sum()), 6), "shares": [round(float(one), 6) for one in shares]}


def _moments(points: Points, *, exact: bool = False) -> moments.Moments:
    found = moments.moments_of(points.blocks(), exact=exact)
    moments.require_spread(found)
    return found


def _fit_pca(points: Points, wanted: Wanted) -> Made:
    dim = _dim(points, wanted, min(_USUAL, max(points.n - 1, 1)))
    found, shares = moments.pca(_moments(points), dim, normalize=points.at_length_one)
    return Made(found, _shares(shares))


def _fit_whitening(points: Points, wanted: Wanted) -> Made:
    usual = _dim(points, wanted, min(_USUAL, max(points.n - 1, 1)))
    whole = _moments(points, exact=True)
    found, shares = moments.whitening(whole, wanted.dim, normalize=points.at_length_one, usual=usual)
    return Made(found, _shares(shares))


def _fit_all_but_the_top(points: Points, wanted: Wanted) -> Made:
    _keeps_all(points, wanted)
    n_removed = max(1, points.dim // 100)
    whole = _moments(points)
    found, shares = moments.all_but_the_top(whole, n_removed, normalize=points.at_length_one)
    return Made(found, {"n_removed": n_removed, "removed_variance": round(float(shares.sum()), 6)})


def _fit_random(points: Points, wanted: Wanted) -> Made:
    dim = _dim(points, wanted, _USUAL)
    drawn = np.random.default_rng(wanted.seed).standard_normal((dim, points.dim)) / np.sqrt(dim)
    matrix = drawn.astype(np.float32)
    return Made(Affine(matrix, np.zeros(dim, np.float32), points.at_length_one), {})


def _fit_truncation(points: Points, wanted: Wanted) -> Made:
    dim = _dim(points, wanted, max(1, points.dim // 2))
    matrix = np.eye(dim, points.dim, dtype=np.float32)
    nothing = np.zeros(dim, np.float32)
    return Made(Affine(matrix, nothing, points.at_length_one), {})


def _fit_pullback(points: Points, wanted: Wanted) -> Made:
    _keeps_all(points, wanted)
    if points.at_length_one or not isinstance(wanted.encoder, Autoencoder):
        raise InvalidInput(
            f"'pullback' needs a space of a trained autoencoder, compared by distance; {points.space.name!r} is none"
        )
    _, drawn = points.sample(_LOOKED_AT, wanted.seed)
    return Made(pullback(wanted.encoder.model.decode_flat, drawn), {})


def _by_label(points: Points, wanted: Wanted) -> tuple[moments.Moments, dict[Any, tuple[int, np.ndarray]]]:
    assert wanted.label is not None  # by ``_check``
    whole, classes = moments.moments_by_label(points.blocks(), points.labels(wanted.label, wanted.where))
    moments.require_spread(whole)
    if len(classes) < 2:
        only = next(iter(classes), (None, None))[1]
        raise InvalidInput(f"the field {wanted.label!r} has one value only, {only!r}; there must be two at least")
    if len(classes) > max(2, points.n // 2):
        raise InvalidInput(
            f"the field {wanted.label!r} has {len(classes):,} values for {points.n:,} records; give a field of classes"
        )
    return whole, classes


def _fit_discriminants(points: Points, wanted: Wanted) -> Made:
    whole, classes = _by_label(points, wanted)
    dim = _dim(points, wanted, len(classes) - 1, min(len(classes) - 1, points.dim))
    found = moments.discriminants(whole, classes, dim, normalize=points.at_length_one)
    return Made(found, {"n_labelled": whole.n, "classes": len(classes)})


def _fit_erasure(points: Points, wanted: Wanted) -> Made:
    _keeps_all(points, wanted)
    whole, classes = _by_label(points, wanted)
    found = moments.erasure(whole, classes, normalize=points.at_length_one)
    return Made(found, {"n_labelled": whole.n, "classes": len(classes)})


def _fit_map(points: Points, wanted: Wanted) -> Callable[[], Made]:
    dim = _dim(points, wanted, 2)
    record_ids, vectors = points.sample(wanted.sample, wanted.seed)
    whole = moments.moments_of(iter([(record_ids, vectors)]))
    n_components = min(maps.MOST_COMPONENTS, points.dim, len(vectors) - 1)
    reducer, _ = moments.pca(whole, n_components, normalize=points.at_length_one)
    vector_ids, sampled = points.vector_ids(record_ids), len(vectors) < points.n

    def drawn() -> Made:
        landmarks = maps.draw(wanted.method, reducer, vectors, dim, wanted.seed)
        placed = dict(zip(vector_ids, landmarks.places, strict=True))
        return Made(landmarks, {"n_fitted": len(vectors), "sampled": sampled}, placed)

    return drawn


METHODS: Mapping[str, Callable[[Points, Wanted], Made | Callable[[], Made]]] = {
    "pca": _fit_pca, "whiten": _fit_whitening, "all-but-the-top": _fit_all_but_the_top, "random": _fit_random,
    "truncate": _fit_truncation, "pullback": _fit_pullback, "lda": _fit_discriminants, "erase": _fit_erasure,
    **dict.fromkeys(maps.METHODS, _fit_map),
}  # fmt: skip
"""By name, what fits a method, or takes what it needs and gives what fits it in its own time."""


def _judge(points: Points, metric: Metric, seed: int) -> Callable[[Made], dict[str, Any]]:
    """Says what a new space keeps of its parent's neighbourhoods, by a sample; nothing where records are too few."""
    record_ids, before = points.sample(_COMPARED, seed)
    vector_ids, metric_before = points.vector_ids(record_ids), points.metric

    def judged(made: Made) -> dict[str, Any]:
        if len(before) < 2 * _NEIGHBOURS + 2:
            return {}
        after = made.transform.apply(before)
        for line, vector_id in enumerate(vector_ids if made.placed else ()):
            if vector_id in made.placed:
                after[line] = made.placed[vector_id]
        kept = fidelity(before, after, _NEIGHBOURS, metric=metric_before, metric_after=metric)
        return {"fidelity": kept.to_dict()}

    return judged
