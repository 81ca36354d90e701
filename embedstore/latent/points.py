"""The vectors of a space as they are compared, read through a filter and in blocks, with what the records say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where, dictionary_field
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import SpaceView
from embedstore.model import FloatMatrix, IntVector, Metric
from embedstore.reading import checked_where, space_row, stream_records
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.layout import ID_SHIFT

if TYPE_CHECKING:
    from embedstore.collection import Collection

MOST_CLASSES = 200
"""A field of more values than that is no field of classes."""
_BLOCK_BYTES = 32 << 20
_SUMMED, _SUMMED_BYTES = 256, 1 << 20  # what stays in a core's cache
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Points:
    """The vectors of a space, or of the records under a filter, in one snapshot.

    Where directions are compared (cosine) they have length one. They are read from the cache, which is mapped, so that
    all of them need not fit into memory.
    """

    transaction: Transaction
    owner: CollectionRow
    space: SpaceRow
    view: SpaceView
    selection: Selection | None

    @property
    def n(self) -> int:
        """How many there are."""
        return self.view.n_rows if self.selection is None else self.selection.n

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return self.view.dim

    @property
    def metric(self) -> Metric:
        """How they are compared."""
        return self.view.metric

    @property
    def at_length_one(self) -> bool:
        """Whether directions are compared, so that all have length one."""
        return self.metric is Metric.COSINE

    def blocks(self) -> Iterator[tuple[IntVector, FloatMatrix]]:
        """All of them, in parts: record ids int64 (n,) and vectors float32 (n, dim), which must not be written to."""
        at_once = max(1, _BLOCK_BYTES // (4 * self.dim))
        for rows, vectors in self.view.blocks(at_once, self.selection):
            yield self.view.record_ids[rows], vectors

    def mean(self) -> np.ndarray:
        """Their mean, float64 (dim,)."""
        if not self.n:
            raise InvalidInput("there are no vectors to take a mean of")
        total = np.zeros(self.dim, np.float64)
        n_bytes = _BLOCK_BYTES if self.selection is None else _SUMMED_BYTES  # the former are not copied
        for _, vectors in self.view.blocks(max(1, n_bytes // (4 * self.dim)), self.selection):
            total += sum_of(vectors)
        return total / self.n

    def sample(self, n: int, seed: int) -> tuple[IntVector, FloatMatrix]:
        """``n`` of them drawn without replacement, or all where there are no more; in order, as ``blocks``."""
        places = np.arange(self.n)
        if n < self.n:
            places = np.sort(np.random.default_rng(seed).choice(self.n, n, replace=False))
        rows = places if self.selection is None else self.selection.rows[places]
        return self.view.record_ids[rows], self.view.gather(rows)

    def vector_ids(self, record_ids: IntVector) -> list[int]:
        """The ids of the vectors of records, which all have one here."""
        rows = self.view.rows_of_records(record_ids.tolist())
        return [self.space.space_id * ID_SHIFT + seq for seq in self.view.seqs[rows].tolist()]

    def of_records(self, record_ids: IntVector) -> FloatMatrix:
        """The vectors of records, (n, dim); NaN for those that have none here."""
        rows = self.view.rows_of_records(record_ids.tolist())
        found = np.full((len(rows), self.dim), np.nan, np.float32)
        found[rows >= 0] = self.view.gather(rows[rows >= 0])
        return found

    def labels(self, field: str, where: Where | None = None) -> dict[int, Any]:
        """By record id, what a metadata field says; only of records that say something. Dots lead into objects."""
        tree = None if where is None else checked_where(self.transaction, self.owner, where)
        found: dict[int, Any] = {}
        for record_id, record in stream_records(self.transaction, self.owner, tree):
            value = field_of(record.metadata, field)
            if value is not None:
                found[record_id] = value
        if not found:
            kinds = catalog.field_kinds(self.transaction, self.owner.collection_id)
            known = sorted({".".join(path) for path, _ in kinds})
            raise InvalidInput(
                f"no record of {self.owner.name!r} has the field {field!r} with a single value; there are"
                f" {', '.join(known[:20]) or 'no fields'}"
            )
        return found


def sum_of(vectors: FloatMatrix) -> np.ndarray:
    """The sum of vectors (n, d), float64 (d,).

    Few at a time in float32, those sums in float64: as quick as the first, and nearly as exact as the second.
    """
    n_whole = len(vectors) - len(vectors) % _SUMMED
    sums = vectors[:n_whole].reshape(-1, _SUMMED, vectors.shape[1]).sum(axis=1)
    made: np.ndarray = sums.sum(axis=0, dtype=np.float64) + vectors[n_whole:].sum(axis=0, dtype=np.float64)
    return made


def field_of(metadata: Mapping[str, Any], field: str) -> Any:
    """What a field says, whose name's dots lead into objects; None where it says nothing, or no single value."""
    value: Any = metadata
    for name in dictionary_field(field).path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if isinstance(value, (Mapping, list)) else value


def look_at(
    collection: Collection, space: str | None, where: Where | None, work: Callable[[Points], _Answer]
) -> _Answer:
    """What ``work`` makes of a space's vectors under a filter; again where a damaged cache was found meanwhile."""
    store = collection.store
    with store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, space)
        if row.dim is None or not row.n_live:
            raise InvalidInput(f"the space {row.name!r} of {collection.name!r} holds no vectors yet")
        tree = None if where is None else checked_where(transaction, owner, where)
        cache = store.search.space_cache(row.space_id)

        def look(view: SpaceView) -> _Answer:
            selection = store.search.rows_where(transaction, owner, cache, view, tree)
            return work(Points(transaction, owner, row, view, selection))

        return cache.looking(transaction, owner, row, look)
