"""A space at one commit: its vectors as rows that can be scanned, gathered and searched.

Rows 0 to n_base - 1 lie in the memory-mapped cache, the rows after them (the delta) in memory; both in order of seq.
A view is immutable: a later commit makes a new view, which shares what has not changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.indexing.byte_copy import ByteCopy
from embedstore.indexing.cachefile import Pages
from embedstore.indexing.costs import IndexCosts
from embedstore.indexing.exact import best_of_candidates, prepared, top_k
from embedstore.indexing.faiss_index import FaissIndex, Settings
from embedstore.indexing.kernels import (
    inner_products,
    inner_products_at,
    inner_products_at_many,
    squared_distances,
    squared_distances_at,
    squared_distances_at_many,
)
from embedstore.indexing.one_query import Refined, refined_by
from embedstore.indexing.products import Extent, best_of_all, extent_of, rounding
from embedstore.indexing.recipes import RECIPES_K, Recipe
from embedstore.indexing.selection import Selection
from embedstore.model import BoolVector, FloatMatrix, FloatVector, IntVector, Metric

if TYPE_CHECKING:
    from embedstore.indexing.gpu import GpuFlat, GpuIndex

_SPARE, _SPARE_SHARE = 16, 32
"""How many more rows are looked for than are wanted, and one more for each so many of them."""
_SPARSE = 8
_LEAST_SQUARED, _MOST_SQUARED = 1e-30, 1e30
"""Between them single precision tells a length as well as double."""
_COPIED_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Approximate:
    """A FAISS index beside the rows: ``row_of`` maps its positions to rows (None: the same), -1 for rows gone.

    Rows from ``first_row_after`` on came after it, and are scanned exactly. ``settings`` are the recipe's search
    parameters, or those that were chosen by measurement; ``costs`` is what its searches take on this machine.
    """

    index: FaissIndex
    row_of: IntVector | None
    first_row_after: int
    settings: Settings
    costs: IndexCosts
    present: Selection | None = None  # the positions whose rows are still there; None where all are
    refined: Refined | None = None  # the index with the rows, where FAISS itself can compare what it finds
    for_k: int = RECIPES_K  # the number of hits that the settings were measured for

    @staticmethod
    def of_rows(
        index: FaissIndex, matrix: FloatMatrix, settings: Settings, costs: IndexCosts, pages: Pages | None = None
    ) -> Approximate:
        """An index whose positions are the rows of a view, all of which are in ``matrix`` (n, dim), with its pages."""
        return Approximate(index, None, len(matrix), settings, costs, refined=refined_by(index, matrix, pages))

    @property
    def recipe(self) -> Recipe:
        """How the index was built."""
        return self.index.recipe


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
    pages: Pages | None = None  # of ``base``, where they are checked as they are read
    mark: tuple[int, int] | None = None  # of the manifest that it was opened by
    base_hash: str = ""  # the page hash of the file of ``base``
    byte_copy: ByteCopy | None = None  # of ``base``, where scans go by it
    has_no_copy: bool = False  # since the vectors are of a kind that none can be made of
    gpu: GpuFlat | GpuIndex | None = None  # ``base`` or the index once more, for searches without a filter
    searches: dict[tuple[int, Selection | None], Any] = field(init=False, default_factory=dict)
    """By number of hits and selection, how the index is searched, as it was planned; None where it is not."""
    extents: list[Extent] = field(default_factory=list)
    """Where its vectors lie, once that was asked for: the first of these."""

    @staticmethod
    def of_matrix(matrix: FloatMatrix, metric: Metric) -> SpaceView:
        """Prepared rows (n, dim) of no space, to be scanned."""
        n, dim = matrix.shape
        numbers = np.arange(n, dtype=np.int64)
        return SpaceView(
            space_id=0, metric=metric, dim=dim, change=0, last_seq=n, base=matrix, delta=matrix[:0], seqs=numbers,
            record_ids=numbers, alive=None, n_alive=n,
        )  # fmt: skip

    @property
    def n_rows(self) -> int:
        """Rows, dead ones included."""
        return int(self.seqs.size)

    def prepare(self, query: FloatVector) -> FloatVector:
        """A query (dim,) as it is compared."""
        usual = self.prepare_usual(query)
        return prepared(query[None, :], self.metric)[0] if usual is None else usual

    def prepare_usual(self, query: FloatVector) -> FloatVector | None:
        """As ``prepare``; None for a query of NaN, infinity or zeros, or a length that is to be looked at closer."""
        squared = float(np.vdot(query, query))
        if not _LEAST_SQUARED < squared < _MOST_SQUARED:
            return None
        if self.metric is Metric.COSINE:
            return query / np.float32(math.sqrt(squared))
        return np.ascontiguousarray(query)

    def prepare_batch(self, queries: FloatMatrix) -> FloatMatrix:
        """Queries (n, dim) as they are compared: as each alone, to the last bit, so that ties fall alike."""
        if self.metric is not Metric.COSINE or not len(queries):
            return np.ascontiguousarray(queries, np.float32)
        queries = np.ascontiguousarray(queries, np.float32)
        squared = np.vecdot(queries, queries).astype(np.float64)  # which adds up as ``vdot`` does
        usual = (squared > _LEAST_SQUARED) & (squared < _MOST_SQUARED)
        made = queries / np.sqrt(np.where(usual, squared, 1.0)).astype(np.float32)[:, None]
        made[~usual] = prepared(queries[~usual], self.metric)
        return made

    def gather(self, rows: IntVector) -> FloatMatrix:
        """The prepared vectors of ``rows``, float32 (len(rows), dim)."""
        self._check(rows)
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

    def scan(self, query: FloatVector, k: int, selection: Selection | None) -> tuple[IntVector, FloatVector]:
        """The best ``k`` of all rows (or of a selection) for a prepared query: rows and exact scores."""
        self._check(None)
        product = squared_distances if self.metric is Metric.EUCLIDEAN else inner_products
        parts = [product(part, query) for part in (self.base, self.delta) if part.shape[0]]
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        raw = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if selection is None:
            return self._best(raw, None, k)
        return self._best(raw[selection.rows], selection.rows, k)

    def scan_rows(self, query: FloatVector, k: int, rows: IntVector) -> tuple[IntVector, FloatVector]:
        """The best ``k`` among ``rows`` (ascending; alive and allowed): rows and exact scores."""
        self._check(rows)
        product = squared_distances_at if self.metric is Metric.EUCLIDEAN else inner_products_at
        n_base = self.base.shape[0]
        if rows.size and rows[-1] < n_base:
            return self._best(product(self.base, rows, query), rows, k)
        split = int(np.searchsorted(rows, n_base))
        parts = []
        if split:
            parts.append(product(self.base, rows[:split], query))
        if split < rows.size:
            parts.append(product(self.delta, rows[split:] - n_base, query))
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        return self._best(parts[0] if len(parts) == 1 else np.concatenate(parts), rows, k)

    def selection(self, allowed: BoolVector | None, *, lasting: bool = True) -> Selection | None:
        """The rows that may be returned: alive and allowed. None where that is every row.

        lasting: whether it is worth keeping what is planned for them.
        """
        if self.alive is None:
            return None if allowed is None else Selection(allowed, lasting)
        return Selection(self.alive if allowed is None else self.alive & allowed, lasting)

    def scan_batch(
        self, queries: FloatMatrix, k: int, selection: Selection | None, *, first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` of all rows (or of a selection) for each prepared query (n, dim).

        first: of all rows, the one to begin with. Gives rows int64, -1 where there are fewer, and exact scores, both
        (n, k). Needs FAISS.
        """
        self._check(None if not first else np.arange(first, self.base.shape[0]))
        wanted = k + _SPARE + k // _SPARE_SHARE  # since products are rounded
        n_usable = self.n_rows - first if selection is None else selection.n
        if n_usable <= wanted:
            extent = Extent(None, 0.0)  # all are found, however products are rounded
        elif selection is not None and n_usable < self.n_rows // _SPARSE:
            extent = extent_of([part for part, _ in self._stretches(selection)], self.metric)
        else:
            extent = self._extent(first)
        rows = np.empty((len(queries), 0), np.int64)
        scores: FloatMatrix = np.empty((len(queries), 0), np.float32)
        for matrix, of_matrix in self._stretches(selection, first):
            new_scores, places = best_of_all(matrix, queries, wanted, self.metric, extent)
            found = np.where(places >= 0, of_matrix[np.maximum(places, 0)], -1)
            rows, scores = np.concatenate([rows, found], axis=1), np.concatenate([scores, new_scores], axis=1)
        rows, scores = self.rescore_batch(queries, rows, wanted)
        unsure = self._unsure(queries, rows, scores, k, extent) if n_usable > wanted else np.zeros(0)
        for line in np.flatnonzero(unsure).tolist():
            if first:
                found, exact = self.scan_rows(queries[line], k, np.arange(first, self.n_rows))
            elif selection is not None and selection.n < self.n_rows // _SPARSE:
                found, exact = self.scan_rows(queries[line], k, selection.rows)
            else:
                found, exact = self.scan(queries[line], k, selection)
            rows[line, : found.size], scores[line, : found.size] = found, exact
        return rows[:, :k], scores[:, :k]

    def _extent(self, first: int) -> Extent:
        """Where the rows from ``first`` on lie; kept for all of them."""
        if first:
            return extent_of([part for part, _ in self._stretches(None, first)], self.metric)
        if not self.extents:
            self.extents.append(extent_of([self.base, self.delta], self.metric))
        return self.extents[0]

    def _unsure(
        self, queries: FloatMatrix, rows: np.ndarray, scores: FloatMatrix, k: int, extent: Extent
    ) -> BoolVector:
        """Of queries, those for which another row than these (n, more than k) may be as near as the k-th of them.

        scores: the exact ones.
        """
        if scores.shape[1] <= k:
            return np.zeros(len(rows), np.bool_)
        kth, last = scores[:, k - 1].astype(np.float64), scores[:, -1].astype(np.float64)
        farthest = None
        if self.metric is Metric.EUCLIDEAN:
            # A row that is farther than the last one could not be among the first, whatever its length.
            farthest = -last
            kth, last = -np.square(kth), -np.square(last)
        with np.errstate(invalid="ignore"):  # of -inf, which is no row
            off = rounding(queries, extent, self.metric, farthest)
            near: BoolVector = (rows[:, -1] >= 0) & (kth - last <= 2 * off)
        return near

    def blocks(self, rows_at_once: int, selection: Selection | None) -> Iterator[tuple[IntVector, FloatMatrix]]:
        """All live rows, or those of a selection, in order: their numbers and vectors, of which nothing is copied."""
        few = selection is not None and selection.n < self.n_rows // _SPARSE
        self._check(selection.rows if selection is not None and few else None)
        if selection is not None:
            for start in range(0, selection.n, rows_at_once):
                rows = selection.rows[start : start + rows_at_once]
                yield rows, self.gather(rows)
            return
        first = 0
        for part in (self.base, self.delta):
            for start in range(0, part.shape[0], rows_at_once):
                block = part[start : start + rows_at_once]
                yield np.arange(first + start, first + start + block.shape[0]), block
            first += part.shape[0]

    def _stretches(
        self, selection: Selection | None, first: int = 0
    ) -> Iterator[tuple[FloatMatrix, IntVector]]:
        """All rows from ``first`` on, or those of a selection, as matrices with their rows.

        They are whole parts, or copies of limited size.
        """
        if selection is None:
            start = 0
            for part in (self.base, self.delta):
                n, skipped = part.shape[0], max(first - start, 0)
                if skipped < n:
                    yield part[skipped:], np.arange(start + skipped, start + n)
                start += n
            return
        step = max(1, _COPIED_BYTES // (4 * self.dim))
        for start in range(0, selection.n, step):
            rows = selection.rows[start : start + step]
            yield self.gather(rows), rows

    def rescore_batch(self, queries: FloatMatrix, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` of each query's own candidate rows (n, m), -1 for none: rows and exact scores, both (n, k)."""
        if self.pages is not None:
            self._check(rows[rows >= 0])
        scores = self._scores_of(queries, rows)
        rows, scores = best_of_candidates(rows, scores, k)
        if self.metric is Metric.EUCLIDEAN:  # ranked by their squares, as alone: different ones can have the same root
            scores = np.float32(0) - np.sqrt(-scores)
        return rows, scores

    def _scores_of(self, queries: FloatMatrix, rows: np.ndarray) -> FloatMatrix:
        """Inner products, or minus squared distances, of queries with their own rows (n, m); -inf for a row of -1."""
        euclidean = self.metric is Metric.EUCLIDEAN
        product = squared_distances_at_many if euclidean else inner_products_at_many
        if not self.delta.shape[0]:
            found = product(self.base, np.ascontiguousarray(rows), queries)
            return -found if euclidean else found
        scores = np.full(rows.shape, -np.inf, np.float32)
        for part, first in ((self.base, 0), (self.delta, self.base.shape[0])):
            inside = (rows >= first) & (rows < first + part.shape[0])
            if inside.any():
                found = product(part, np.where(inside, rows - first, -1), queries)
                scores = np.where(inside, -found if euclidean else found, scores)
        return scores

    def _check(self, rows: IntVector | None) -> None:
        """Hold the pages of rows of ``base`` (None: all) against what was written, where that is still to be done."""
        if self.pages is None:
            return
        if rows is None:
            self.pages.check_all()
        else:
            self.pages.check_rows(rows[rows < self.base.shape[0]], 4 * self.dim)

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
