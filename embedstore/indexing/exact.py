"""Exact comparison of vectors: how they are prepared for a metric, and the best of many scores."""

from __future__ import annotations

import numpy as np

from embedstore.model import FloatMatrix, FloatVector, IntVector, Metric

_BLOCK = 64
_SORTED_WHOLE = 512
"""So few scores are sorted faster than their best are looked for."""


def prepared(matrix: FloatMatrix, metric: Metric) -> FloatMatrix:
    """The rows as they are compared: of length one for cosine, unchanged otherwise. float32 (n, dim), contiguous.

    Lengths are taken in float64 where float32 could overflow or underflow.
    """
    if metric is not Metric.COSINE or matrix.size == 0:
        return np.ascontiguousarray(matrix, dtype=np.float32)
    squared = np.einsum("ij,ij->i", matrix, matrix)
    if not np.all((squared > 1e-30) & (squared < 1e30)):
        squared = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    lengths = np.sqrt(squared)
    lengths[lengths == 0] = 1
    return np.ascontiguousarray(matrix / lengths[:, None], dtype=np.float32)


def top_k(scores: FloatVector, k: int) -> IntVector:
    """The places of the ``k`` greatest scores, best first; equal scores in order of place. -inf never counts."""
    if k <= 0:
        return np.empty(0, np.int64)
    if scores.size <= _SORTED_WHOLE:
        ordered = np.argsort(-scores, kind="stable")[:k]
        if ordered.size and scores[ordered[-1]] == -np.inf:
            ordered = ordered[scores[ordered] > -np.inf]
        return ordered
    if k < scores.size:
        places = np.flatnonzero(scores >= _bound(scores, k))
    else:
        places = np.arange(scores.size)
    ordered = places[np.argsort(-scores[places], kind="stable")][:k]
    return ordered[scores[ordered] > -np.inf].astype(np.int64, copy=False)


def best_of_candidates(rows: np.ndarray, scores: FloatMatrix, k: int) -> tuple[np.ndarray, FloatMatrix]:
    """The best ``k`` of each line's candidates (n, m), best first, equal scores in order of row; both (n, k).

    Candidates of score -inf never count: such places hold row -1. Rows are less than 2**32.
    """
    # One number for each, less for better: the bits of the score, upside down, and below them the row.
    bits = (scores + np.float32(0)).view(np.int32)  # 0 for -0.0
    keys = ~np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64) << 32
    keys |= rows & 0xFFFFFFFF
    if keys.shape[1] > 4 * k:
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys.sort(axis=1)
    keys = keys[:, :k]
    bits = (~(keys >> 32)).astype(np.int32)
    kept = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32, copy=False).view(np.float32)
    best = np.where(kept > -np.inf, keys & 0xFFFFFFFF, -1)
    missing = k - best.shape[1]
    if missing > 0:
        best = np.pad(best, ((0, 0), (0, missing)), constant_values=-1)
        kept = np.pad(kept, ((0, 0), (0, missing)), constant_values=-np.inf)
    return best, kept


def _bound(scores: FloatVector, k: int) -> np.float32:
    """A score that at least ``k`` of the scores reach, and few more: the k-th greatest among maxima of blocks."""
    n_blocks = scores.size // _BLOCK
    if n_blocks <= k:
        return np.partition(scores, scores.size - k)[scores.size - k]  # type: ignore[no-any-return]
    maxima = scores[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
    return np.partition(maxima, n_blocks - k)[n_blocks - k]  # type: ignore[no-any-return]
