"""Clusters as latent variables: which group a record belongs to, though none of its fields says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.keeping import check_field, keep_field
from embedstore.latent.mixtures import fit_mixture
from embedstore.latent.points import Points, look_at
from embedstore.model import FloatMatrix, IntVector, Metric
from embedstore.optional import load_faiss
from embedstore.reading import keys_by_id

if TYPE_CHECKING:
    from embedstore.collection import Collection

METHODS = ("kmeans", "hdbscan", "gmm")
_MOST_TRIED = 12
_SILHOUETTES = 2000
_STORED = ("label", "share", "shares")
NO_CLUSTER = -1


@dataclass(slots=True)
class Clustering:
    """Which cluster each record belongs to, numbered by size, the largest 0; -1 for none (hdbscan alone).

    shares: of the mixture, how likely each cluster is, (n, k); else empty. silhouette: of a sample (Rousseeuw 1987),
    None with fewer than two clusters. bic: by number of parts that were tried, less is better. sampled: whether it was
    fitted to a sample of the records, and all others were then assigned.
    """

    method: str
    keys: list[str]
    labels: IntVector
    sizes: list[int]
    silhouette: float | None
    bic: dict[int, float]
    sampled: bool
    shares: np.ndarray = field(repr=False, default_factory=lambda: np.empty((0, 0)))

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "method": self.method, "records": len(self.keys), "clusters": len(self.sizes), "sizes": self.sizes,
            "in_none": int((self.labels == NO_CLUSTER).sum()),
            "silhouette": None if self.silhouette is None else round(self.silhouette, 4),
            **({"bic": {str(size): round(value, 1) for size, value in self.bic.items()}} if self.bic else {}),
            "sampled": self.sampled,
        }  # fmt: skip


def cluster(
    collection: Collection, *, space: str | None, method: str, k: int | None, where: Where | None, sample: int,
    seed: int, store_as: str | None, least: int,
) -> Clustering:  # fmt: skip
    """See ``Collection.cluster``."""
    _check(method, k, sample, seed, least)

    def found(points: Points) -> Clustering:
        if store_as is not None:
            check_field(points.transaction, points.owner, store_as, _STORED)
        if points.n < max(2, k or 1):
            raise InvalidInput(f"there are {points.n} vectors to cluster; {max(2, k or 1)} or more are needed")
        _, drawn = points.sample(sample, seed)
        if max(k or 1, least if method == "hdbscan" else 1) > len(drawn):
            raise InvalidInput(f"there are {len(drawn)} vectors to fit to, fewer than {k or least}")
        assign, bic = _FITTED[method](drawn, k, seed, least, points.metric)
        ids, labels, shares = [], [], []
        for record_ids, vectors in points.blocks():
            some, likely = assign(vectors)
            ids.append(record_ids)
            labels.append(some)
            shares.append(likely)
        names = keys_by_id(points.transaction, np.concatenate(ids).tolist())
        likely = np.concatenate(shares)
        order, sizes = _by_size(np.concatenate(labels), likely.shape[1])
        return Clustering(
            method, [names[one] for one in np.concatenate(ids).tolist()], order[np.concatenate(labels)], sizes,
            _silhouette(drawn, assign(drawn)[0], points.metric, seed), bic, points.n > len(drawn),
            likely[:, np.argsort(order[:-1])] if likely.shape[1] else likely,
        )  # fmt: skip

    made = look_at(collection, space, where, found)
    if store_as is not None:
        keep_field(collection, store_as, _fields(made))
    return made


def _fields(made: Clustering) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, key in enumerate(made.keys):
        fields: dict[str, Any] = {"label": int(made.labels[place])}
        if made.shares.size:
            fields["share"] = round(float(made.shares[place].max()), 6)
            fields["shares"] = [round(float(one), 6) for one in made.shares[place]]
        yield key, fields


def _check(method: str, k: int | None, sample: int, seed: int, least: int) -> None:
    if method not in METHODS:
        raise InvalidInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    if k is not None:
        check_whole("k", k, 1)
    check_whole("sample", sample, 10)
    check_whole("least", least, 2)
    check_seed(seed)
    if method == "kmeans" and k is None:
        raise InvalidInput("kmeans needs the number of clusters (k=, --clusters); gmm chooses it itself, by the BIC")
    if method == "hdbscan" and k is not None:
        raise InvalidInput("hdbscan finds the number of clusters itself; leave it out, or change least")


Assign = Callable[[FloatMatrix], tuple[IntVector, np.ndarray]]
"""Labels (n,) of vectors, and the shares (n, k) of a mixture, else (n, 0)."""
Fit = tuple[Assign, dict[int, float]]
"""What assigns vectors, and the BIC by number of parts that were tried."""


def _kmeans(drawn: FloatMatrix, k: int | None, seed: int, least: int, metric: Metric) -> Fit:
    faiss = load_faiss()
    fitted = faiss.Kmeans(
        drawn.shape[1], k, niter=25, nredo=3, seed=seed, spherical=metric is Metric.COSINE, verbose=False,
        min_points_per_centroid=1, max_points_per_centroid=len(drawn),
    )  # fmt: skip
    fitted.train(np.ascontiguousarray(drawn))

    def assign(vectors: FloatMatrix) -> tuple[IntVector, np.ndarray]:
        labels = fitted.index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]
        return labels.astype(np.int64), np.empty((len(vectors), 0))

    return assign, {}


def _hdbscan(drawn: FloatMatrix, k: int | None, seed: int, least: int, metric: Metric) -> Fit:
    from sklearn.cluster import HDBSCAN

    labels = HDBSCAN(min_cluster_size=least, copy=True).fit(drawn.astype(np.float64)).labels_
    index = load_faiss().IndexFlatL2(drawn.shape[1])
    index.add(np.ascontiguousarray(drawn))

    def assign(vectors: FloatMatrix) -> tuple[IntVector, np.ndarray]:
        nearest = index.search(np.ascontiguousarray(vectors), 1)[1][:, 0]
        return labels[nearest].astype(np.int64), np.empty((len(vectors), 0))

    return assign, {}


def _gmm(drawn: FloatMatrix, k: int | None, seed: int, least: int, metric: Metric) -> Fit:
    tried = [k] if k is not None else range(1, min(_MOST_TRIED, len(drawn) // 2) + 1)
    mixture = fit_mixture(drawn, tried, seed, n_starts=3)

    def assign(vectors: FloatMatrix) -> tuple[IntVector, np.ndarray]:
        shares = mixture.shares(vectors)
        return shares.argmax(axis=1).astype(np.int64), shares

    return assign, mixture.bic


_Fit = Callable[[FloatMatrix, int | None, int, int, Metric], Fit]
_FITTED: Mapping[str, _Fit] = {
    "kmeans": _kmeans, "hdbscan": _hdbscan, "gmm": _gmm,
}  # fmt: skip


def _by_size(labels: IntVector, least: int) -> tuple[IntVector, list[int]]:
    """By old label its new one, the greatest cluster first (the last place is that of -1), and the sizes.

    least: how many labels there are at least, though nothing has some of them.
    """
    n = max(int(labels.max(initial=-1)) + 1, least)
    counts = np.bincount(labels[labels >= 0], minlength=n)
    order = np.empty(n + 1, np.int64)
    order[np.argsort(-counts, kind="stable")] = np.arange(n)
    order[n] = NO_CLUSTER
    return order, sorted(counts[counts > 0].tolist(), reverse=True)


def _silhouette(drawn: FloatMatrix, labels: IntVector, metric: Metric, seed: int) -> float | None:
    from sklearn.metrics import silhouette_score

    kept = labels != NO_CLUSTER
    if len(np.unique(labels[kept])) < 2 or kept.sum() <= len(np.unique(labels[kept])):
        return None
    places = np.flatnonzero(kept)
    if len(places) > _SILHOUETTES:
        places = np.random.default_rng(seed).choice(places, _SILHOUETTES, replace=False)
    if len(np.unique(labels[places])) < 2:
        return None
    kind = "cosine" if metric is Metric.COSINE else "euclidean"
    return float(silhouette_score(drawn[places], labels[places], metric=kind))
