"""A space at one commit: its vectors as rows that can be scanned, gathered and searched.

Rows 0 to n_base - 1 lie in the memory-mapped cache, the rows after them (the delta) in memory; both in order of seq.
A view is immutable: a later commit makes a new view, which shares what has not changed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from embedstore.indexing.exact import prepared, top_k
from embedstore.indexing.faiss_index import FaissIndex
from embedstore.indexing.kernels import (
    inner_products,
    inner_products_at,
    squared_distances,
    squared_distances_at,
)
from embedstore.model import BoolVector, FloatMatrix, FloatVector, IntVector, Metric


@dataclass(frozen=True, slots=True)
class Approximate:
    """A FAISS index beside the rows: ``row_of`` maps its positions to rows (None: the same), -1 for rows gone.

    It covers the vectors up to ``hi_seq``; rows from ``first_row_after`` on are scanned exactly.
    """

    index: FaissIndex
    recipe: str
    row_of: IntVector | None
    first_row_after: int


@dataclass(frozen=True, slots=True)
class SpaceView:
    """The vectors of a space after commit ``change``; ``base`` and ``delta`` are prepared for the metric.

    ``seqs`` and ``record_ids`` are int64 (n_rows,); ``alive`` is None where every row is.
    """

    space_id: int
    metric: Metric
    dim: int
    change: int
    last_seq: int
    base: FloatMatrix
    delta: FloatMatrix
    seqs: IntVector
    record_ids: IntVector
    alive: BoolVector | None
    n_alive: int
    approximate: Approximate | None = None

    @property
    def n_rows(self) -> int:
        """Rows, dead ones included."""
        return int(self.seqs.size)

    def prepare(self, query: FloatVector) -> FloatVector:
        """A query (dim,) as it is compared."""
        if self.metric is Metric.COSINE:
            squared = float(np.dot(query, query))
            if 1e-30 < squared < 1e30:
                return query / np.float32(math.sqrt(squared))
        return prepared(query[None, :], self.metric)[0]  # type: ignore[no-any-return]

    def gather(self, rows: IntVector) -> FloatMatrix:
        """The prepared vectors of ``rows``, float32 (len(rows), dim)."""
        n_base = self.base.shape[0]
        if rows.size == 0 or n_base == 0:
            return np.take(self.delta, rows - n_base, axis=0)  # type: ignore[no-any-return]
        if self.delta.shape[0] == 0 or rows.max() < n_base:
            return np.take(self.base, rows, axis=0)
        gathered: FloatMatrix = np.empty((rows.size, self.dim), np.float32)
        in_base = rows < n_base
        gathered[in_base] = self.base[rows[in_base]]
        gathered[~in_base] = self.delta[rows[~in_base] - n_base]
        return gathered

    def scan(self, query: FloatVector, k: int, allowed: BoolVector | None) -> tuple[IntVector, FloatVector]:
        """The best ``k`` of all rows (or of those ``allowed``) for a prepared query: rows and exact scores."""
        product = squared_distances if self.metric is Metric.EUCLIDEAN else inner_products
        parts = [product(part, query) for part in (self.base, self.delta) if part.shape[0]]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        raw = parts[0] if len(parts) == 1 else np.concatenate(parts)
        usable = self.usable(allowed)
        if usable is None:
            return self._best(raw, None, k)
        rows = np.flatnonzero(usable)
        return self._best(raw[rows], rows, k)

    def scan_rows(self, query: FloatVector, k: int, rows: IntVector) -> tuple[IntVector, FloatVector]:
        """The best ``k`` among ``rows`` (ascending; alive and allowed): rows and exact scores."""
        product = squared_distances_at if self.metric is Metric.EUCLIDEAN else inner_products_at
        n_base = self.base.shape[0]
        split = int(np.searchsorted(rows, n_base))
        parts = []
        if split:
            parts.append(product(self.base, rows[:split], query))
        if split < rows.size:
            parts.append(product(self.delta, rows[split:] - n_base, query))
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._best(parts[0] if len(parts) == 1 else np.concatenate(parts), rows, k)

    def usable(self, allowed: BoolVector | None) -> BoolVector | None:
        """The rows that may be returned: alive and allowed. None where that is every row."""
        if self.alive is None:
            return allowed
        return self.alive if allowed is None else self.alive & allowed

    def _best(self, raw: FloatVector, rows: IntVector | None, k: int) -> tuple[IntVector, FloatVector]:
        """The best of inner products or squared distances, as rows and scores."""
        if self.metric is Metric.EUCLIDEAN:
            raw = -raw
        best = top_k(raw, k)
        scores = raw[best]
        if self.metric is Metric.EUCLIDEAN:
            scores = np.float32(0) - np.sqrt(-scores)  # not -0.0 for equal vectors
        return (best if rows is None else rows[best]), scores

    def rows_of_records(self, record_ids: Sequence[int]) -> IntVector:
        """The live row of each record; -1 for a record that has none in this space."""
        wanted = np.asarray(record_ids, np.int64)
        order = np.argsort(self.record_ids, kind="stable")
        live = order if self.alive is None else order[self.alive[order]]
        ids = self.record_ids[live]
        if ids.size == 0:
            return np.full(wanted.shape, -1, np.int64)
        places = np.minimum(np.searchsorted(ids, wanted), ids.size - 1)
        return np.where(ids[places] == wanted, live[places], -1).astype(np.int64)
