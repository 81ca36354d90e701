"""The best rows of a matrix for many queries at once, by products of matrices, and how far such scores may be off.

FAISS multiplies matrices only where the queries hold 128,000 numbers and more in all (334 queries of 384), and compares
one query after another below, which takes two to five times as long. So NumPy multiplies for fewer.

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

_FEWEST, _AT_ONCE = 6, 512
"""Queries for which NumPy's product is faster than FAISS's loops (measured with 60,000 x 384), and for one product."""
_FIRST_ROWS, _BLOCK_ROWS = 1_024, 8_192
_OLD_LIMIT = 20
"""What FAISS once took for its limit, which was a number of queries then."""
_SAMPLED = 1_024
_FAR = 2.0
"""How many times as far from zero as from each other vectors lie that are moved."""
_LANES, _UNIT = 4, 2.0**-24
"""In how many parts at least a sum is taken, and by how much of its size each step may be off, in single precision."""


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
    some = np.concatenate([part[:: max(1, n // _SAMPLED)] for part in parts]).astype(np.float64)
    mean = some.mean(axis=0)
    scatter = float(np.square(some - mean).sum(axis=1).mean())
    return mean.astype(np.float32) if float(mean @ mean) > _FAR**2 * scatter else None


def rounding(queries: FloatMatrix, extent: Extent, metric: Metric) -> npt.NDArray[np.float64]:
    """How far scores of ``best_of_all`` may be from those of a scan, for each query (n, dim): squared for distances."""
    moved = queries if extent.centre is None else queries - extent.centre
    lengths = np.sqrt(np.einsum("ij,ij->i", moved, moved, dtype=np.float64))
    steps = queries.shape[1] / _LANES + 2 * _LANES
    sizes = (lengths + extent.longest) ** 2 if metric is Metric.EUCLIDEAN else lengths * extent.longest
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
    if extent.centre is None and (len(queries) < _FEWEST or queries.size >= _limit(faiss)):
        return _by_faiss(faiss, matrix, queries, k, metric)
    parts = [
        _by_numpy(matrix, queries[start : start + _AT_ONCE], k, metric, extent.centre)
        for start in range(0, len(queries), _AT_ONCE)
    ]
    return np.concatenate([scores for scores, _ in parts]), np.concatenate([rows for _, rows in parts])


def _limit(faiss: Any) -> int:
    """From how many numbers of queries on FAISS itself multiplies matrices."""
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
    matrix: FloatMatrix, queries: FloatMatrix, k: int, metric: Metric, centre: FloatVector | None
) -> tuple[FloatMatrix, np.ndarray]:
    """By blocks of rows: what is better than the worst of the best so far takes its place."""
    if centre is not None:
        queries = queries - centre
    n_first = max(_FIRST_ROWS, k)
    first = _products(matrix[:n_first], queries, metric, centre)
    rows, scores = best_of_candidates(np.broadcast_to(np.arange(first.shape[1]), first.shape), first, k)
    room: FloatMatrix = np.empty((len(queries), _BLOCK_ROWS), np.float32)
    for start in range(n_first, matrix.shape[0], _BLOCK_ROWS):
        block = matrix[start : start + _BLOCK_ROWS]
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
