"""Whether a new index finds what it should, before anybody is answered by it.

Codes can fail vectors that they were not made for, without a word: ones of half precision numbers that are too large,
ones of a byte a range that few vectors stretch. Such an index is kept, and is not asked.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embedstore.indexing.faiss_index import FaissIndex
from embedstore.indexing.fitting import is_too_wide
from embedstore.indexing.kernels import inner_products_at_many, squared_distances_at_many
from embedstore.indexing.space_view import SpaceView
from embedstore.model import FloatMatrix, Metric

_K = 10
_N_QUERIES = 48
_N_COMPARED = 100_000
LEAST_SHARE = 0.15
"""An index of codes that finds less is not asked: no data are so hard that a sound one would."""
FAIR_SHARE, GOOD_SHARE = 0.7, 0.9
"""Of an index that finds less than the second by default, tuning is told; less than the first, with a warning."""


def share_found(index: FaissIndex, matrix: FloatMatrix, metric: Metric) -> float:
    """Which part of the ten nearest of some of its own vectors an index finds, by its recipe's settings.

    From 0 to 1. matrix: the prepared rows (n, dim) it was built from; where they are many, only some are looked at.
    """
    if index.recipe.rescore and is_too_wide(matrix, index.shape):
        return 0.0
    random = np.random.default_rng(0)
    queries = matrix[np.sort(random.integers(0, len(matrix), _N_QUERIES))]
    found = _scores_found(index, matrix, queries, metric)
    among = matrix
    if len(matrix) > _N_COMPARED:
        among = matrix[np.sort(random.choice(len(matrix), _N_COMPARED, replace=False))]
    k = min(_K, len(among))
    truly = SpaceView.of_matrix(among, metric).scan_batch(queries, k, None)[1]
    # Of some rows the k-th best is at most as good as of all, so that what is found may only look too good.
    slack = 1e-4 * np.maximum(np.abs(truly[:, :1]), np.abs(truly[:, -1:]))
    return float((found[:, :k] >= truly[:, -1:] - slack).mean())


def _scores_found(index: FaissIndex, matrix: FloatMatrix, queries: FloatMatrix, metric: Metric) -> Any:
    """The exact scores of what an index finds for each query, best first, float32 (n, k); -inf for none."""
    n_candidates = min(max(index.recipe.n_candidates(_K), _K), index.n_vectors)
    rows, _ = index.search(queries, n_candidates, selection=None, settings=index.recipe.search)
    rows = np.ascontiguousarray(rows)
    if metric is Metric.EUCLIDEAN:
        scores = np.float32(0) - np.sqrt(squared_distances_at_many(matrix, rows, queries))
    else:
        scores = inner_products_at_many(matrix, rows, queries)
    scores = -np.sort(-scores, axis=1)[:, :_K]
    missing = _K - scores.shape[1]
    return np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf) if missing > 0 else scores
