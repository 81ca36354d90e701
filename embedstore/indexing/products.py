"""The best rows of a matrix for many queries at once, and how far such scores may be off.

FAISS multiplies matrices only where the queries hold 128,000 numbers and more in all (334 queries of 384), and compares
one query after another below, which takes two to five times as long where there is much to multiply. There NumPy does.

A squared distance is expanded to q q - 2 q x + x x, in which all is lost where vectors are near to each other and far
from zero. So they are taken from their middle where that lies far out, and how far scores may be off is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedstore.indexing.exact import best_of_candidates
from embedstore.indexing.kernels import import_faiss, pointers
from embedstore.indexing.threads import ManyThreads
from embedstore.model import FloatMatrix, FloatVector, Metric

_FEWEST, _LEAST_WORK, _HITS_A_NUMBER = 16, 4e8, 3
"""For fewer queries or products, or more hits for each number of a vector, FAISS is as fast (measured)."""
_FIRST_ROWS, _BLOCK_ROWS, _BLOCK_HITS = 1_024, 8_192, 8
"""Rows that are looked at first, and then at a time; or so many times the hits, where that is more."""
_AT_ONCE, _MOST_SCORES = 512, 1 << 25
"""Queries for one product at most, and scores that are held at once."""
_OLD_LIMIT = 20
"""What FAISS once took for its limit, which was a number of queries then."""
_SAMPLED, _FAR = 1_024, 2.0
"""Rows that tell whether vectors are moved: where they lie so many times as far from zero as from each other."""
_UNIT = 2.0**-24
"""By how much of its size a step may be off in single precision."""


class Extent(NamedTuple):
    """Where vectors lie: their middle (dim,), None where that is near zero; the length of the longest from there."""

    centre: FloatVector | None
    longest: float

    def with_rows(self, rows: FloatMatrix, metric: Metric) -> Extent:
        """That of these vectors and some more (n, dim), about the same middle."""
        if metric is Metric.COSINE:
            return self
        longest = self.longest**2
        for start in range(0, len(rows), _BLOCK_ROWS):
            block = rows[start : start + _BLOCK_ROWS]
            moved = block if self.centre is None else block - self.centre
            longest = max(longest, float(np.einsum("ij,ij->i", moved, moved).max()))
        return self._replace(longest=math.sqrt(longest))


def extent_of(parts: Sequence[FloatMatrix], metric: Metric) -> Extent:
    """Where the prepared rows of all parts (n, dim) lie."""
    if metric is Metric.COSINE:
        return Extent(None, 1.0)
    extent = Extent(middle_of(parts) if metric is Metric.EUCLIDEAN else None, 0.0)
    for part in parts:
        extent = extent.with_rows(part, metric)
    return extent


def middle_of(parts: Sequence[FloatMatrix]) -> FloatVector | None:
    """About the mean of the rows of all parts (n, dim); None where they are as near to zero as to each other."""
    n = sum(len(part) for part in parts)
    if not n:
        return None
    random = np.random.default_rng(0)
    some = [part[np.sort(random.integers(0, len(part), _sampled(len(part), n)))] for part in parts if len(part)]
    sample = np.concatenate(some).astype(np.float64)
    mean = sample.mean(axis=0)
    scatter = float(np.square(sample - mean).sum(axis=1).mean())
    return mean.astype(np.float32) if float(mean @ mean) > _FAR**2 * scatter else None


def _sampled(n: int, n_all: int) -> int:
    return math.ceil(min(_SAMPLED, n_all) * n / n_all)


def rounding(
    queries: FloatMatrix, extent: Extent, metric: Metric, farthest: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """How far scores of ``best_of_all`` may be from those of a scan, for each query (n, dim): squared for distances.

    A product adds one number after another, a scan in four parts at least; each step is off by half of the last place
    of a sum that is at most the product of the lengths.
    farthest: the distances (n,) within which it has to hold; None for all rows.
    """
    moved = queries if extent.centre is None else queries - extent.centre
    lengths = np.sqrt(np.einsum("ij,ij->i", moved, moved, dtype=np.float64))
    steps = 0.75 * queries.shape[1] + 8
    if metric is Metric.EUCLIDEAN:
        longest = extent.longest if farthest is None else np.minimum(extent.longest, lengths + farthest)
        sizes = (lengths + longest) ** 2
    else:
        sizes = lengths * extent.longest
    off: npt.NDArray[np.float64] = 2 * _UNIT * steps * sizes
    return off


def best_of_all(
    matrix: FloatMatrix, queries: FloatMatrix, k: int, metric: Metric, extent: Extent
) -> tuple[FloatMatrix, np.ndarray]:
    """The best ``k`` rows for each query (n, dim): scores float32, -inf for none, and rows int64, -1 for none.

    Both are (n, k), or as wide as there are rows; ``rounding`` tells how far scores are off. For distances they are
    squared ones, negative. extent: of vectors among which the rows are. Needs FAISS.
    """
    faiss = import_faiss()
    assert faiss is not None
    k = min(k, matrix.shape[0])
    multiplies = queries.size >= _limit(faiss)
    little = len(queries) < _FEWEST or len(queries) * matrix.size < _LEAST_WORK or k > _HITS_A_NUMBER * matrix.shape[1]
    if (little and not multiplies) or (multiplies and extent.centre is None):
        return _by_faiss(faiss, matrix, queries, k, metric)
    n_rows = max(_BLOCK_ROWS, _BLOCK_HITS * k)
    at_once = max(1, min(_AT_ONCE, _MOST_SCORES // n_rows))
    parts = [
        _by_numpy(matrix, queries[start : start + at_once], k, metric, extent.centre, n_rows)
        for start in range(0, len(queries), at_once)
    ]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([rows for _, rows in parts])


def _limit(faiss: Any) -> int:
    """From how many numbers of queries on FAISS itself multiplies; 0 for one that has always done, but for a few."""
    limit = int(getattr(faiss.cvar, "distance_compute_blas_threshold", 0))
    return limit if limit > _OLD_LIMIT else 0


def _by_faiss(
    faiss: Any, matrix: FloatMatrix, queries: FloatMatrix, k: int, metric: Metric
) -> tuple[FloatMatrix, np.ndarray]:
    n, dim = queries.shape
    scores: FloatMatrix = np.empty((n, k), np.float32)
    rows = np.empty((n, k), np.int64)
    search = faiss.knn_L2sqr if metric is Metric.EUCLIDEAN else faiss.knn_inner_product
    with ManyThreads(faiss):
        search(*pointers(faiss, queries, matrix), dim, n, matrix.shape[0], k, *pointers(faiss, scores, rows))
    if metric is Metric.EUCLIDEAN:
        scores = -scores
    scores[rows < 0] = -np.inf
    return scores, rows


def _by_numpy(
    matrix: FloatMatrix, queries: FloatMatrix, k: int, metric: Metric, centre: FloatVector | None, n_rows: int
) -> tuple[FloatMatrix, np.ndarray]:
    """By ``n_rows`` rows at a time: what is better than the worst of the best so far takes its place."""
    if centre is not None:
        queries = queries - centre
    n_first = max(_FIRST_ROWS, k)
    first = _products(matrix[:n_first], queries, metric, centre)
    rows, scores = best_of_candidates(np.broadcast_to(np.arange(first.shape[1]), first.shape), first, k)
    n_rows = min(n_rows, max(matrix.shape[0] - n_first, 1))
    room: FloatMatrix = np.empty((len(queries), n_rows), np.float32)
    for start in range(n_first, matrix.shape[0], n_rows):
        block = matrix[start : start + n_rows]
        found = _products(block, queries, metric, centre, room[:, : len(block)])
        new_scores, new_rows = _above(found, scores[:, -1])
        if new_scores.shape[1]:
            rows, scores = best_of_candidates(
                np.concatenate([rows, new_rows + start], axis=1), np.concatenate([scores, new_scores], axis=1), k
            )
    if metric is Metric.EUCLIDEAN:
        scores -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return scores, rows


def _products(
    block: FloatMatrix,
    queries: FloatMatrix,
    metric: Metric,
    centre: FloatVector | None,
    room: FloatMatrix | None = None,
) -> FloatMatrix:
    """Inner products (n, len(block)); for distances 2 q x - x x, which is q q less the squared distance."""
    if centre is not None:
        block = block - centre
    found: FloatMatrix = np.matmul(queries, block.T, out=room)
    if metric is Metric.EUCLIDEAN:
        found *= 2
        found -= np.einsum("ij,ij->i", block, block)
    return found


def _above(found: FloatMatrix, worst: FloatVector) -> tuple[FloatMatrix, np.ndarray]:
    """Those scores of each line that are above its bound (n,), with their places, both (n, m); -inf where fewer are."""
    lines, places = np.divmod(np.flatnonzero(found > worst[:, None]), found.shape[1])  # faster than ``nonzero``
    counts = np.bincount(lines, minlength=len(found))
    width = int(counts.max())
    scores: FloatMatrix = np.full((len(found), width), -np.inf, np.float32)
    at = np.zeros((len(found), width), np.int64)
    within = np.arange(lines.size) - np.repeat(np.cumsum(counts) - counts, counts)
    scores[lines, within], at[lines, within] = found[lines, places], places
    return scores, at
