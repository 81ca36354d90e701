"""Records as Arrow batches, with metadata fields and vectors as columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedstore.errors import InvalidInput
from embedstore.filters import Node
from embedstore.filters.parse import dictionary_field
from embedstore.model import Record
from embedstore.reading import stream_records, vectors_of
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction

if TYPE_CHECKING:
    import pyarrow

EXPORT_HEADER = "embedstore_export"
"""What files of whole records are known by."""
BATCH_ROWS = 2048


def scan_batches(
    transaction: Transaction, collection: CollectionRow, where: Node | None, columns: Sequence[str] | None
) -> Iterator[pyarrow.RecordBatch]:
    """Batches of the records under a filter; ``columns`` as for ``Collection.scan``."""
    import pyarrow

    spaces = catalog.spaces_of(transaction, collection.collection_id)
    names = ["key", "text", "metadata"] if columns is None else list(columns)
    makers = [_column(transaction, collection, spaces, name) for name in names]
    schema = pyarrow.schema([pyarrow.field(name, maker.kind) for name, maker in zip(names, makers, strict=True)])
    stream = stream_records(transaction, collection, where)
    while chunk := list(islice(stream, BATCH_ROWS)):
        arrays = [maker.array(chunk) for maker in makers]
        yield pyarrow.RecordBatch.from_arrays(arrays, schema=schema)


class _Own:
    """A part of the record itself."""

    def __init__(self, name: str) -> None:
        import pyarrow

        self.kind: Any = pyarrow.string()
        self._name = name

    def array(self, chunk: Sequence[tuple[int, Record]]) -> pyarrow.Array:
        import pyarrow

        take: Any = {
            "key": lambda record: record.key, "text": lambda record: record.content,
            "uri": lambda record: record.uri, "_modality": lambda record: record.modality.value,
            "metadata": lambda record: orjson.dumps(record.metadata, option=orjson.OPT_SORT_KEYS).decode(),
        }[self._name]  # fmt: skip
        return pyarrow.array([take(record) for _, record in chunk], self.kind)


class _Field:
    """A metadata field, typed by the kinds of values that it has had."""

    def __init__(self, path: tuple[str, ...], kinds: set[str]) -> None:
        import pyarrow

        self._path = path
        self._as_json = False
        if kinds == {"integer"}:
            self.kind: pyarrow.DataType = pyarrow.int64()
        elif kinds <= {"integer", "real"}:
            self.kind = pyarrow.float64()
        elif kinds == {"boolean"}:
            self.kind = pyarrow.bool_()
        else:
            self.kind = pyarrow.string()
            self._as_json = kinds != {"text"}

    def array(self, chunk: Sequence[tuple[int, Record]]) -> pyarrow.Array:
        import pyarrow

        values = [self._value(record) for _, record in chunk]
        if self._as_json:
            values = [None if value is None else orjson.dumps(value).decode() for value in values]
        return pyarrow.array(values, self.kind)

    def _value(self, record: Record) -> Any:
        value: Any = record.metadata
        for name in self._path:
            value = value.get(name) if isinstance(value, dict) else None
        return value


class _Vectors:
    """The vectors of a space."""

    def __init__(self, transaction: Transaction, space: SpaceRow) -> None:
        import pyarrow

        self.kind: pyarrow.DataType = pyarrow.list_(pyarrow.float32(), space.dim or 0)
        self._transaction = transaction
        self._space = space

    def array(self, chunk: Sequence[tuple[int, Record]]) -> pyarrow.Array:
        import pyarrow

        held = vectors_of(self._transaction, self._space.space_id, [record_id for record_id, _ in chunk])
        dim = self._space.dim or 0
        missing = np.array([record_id not in held for record_id, _ in chunk])
        blank = bytes(4 * dim)
        flat = np.frombuffer(b"".join(held.get(record_id, blank) for record_id, _ in chunk), "<f4")
        mask = pyarrow.array(missing) if missing.any() else None
        return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), dim, mask=mask)


def _column(
    transaction: Transaction, collection: CollectionRow, spaces: dict[str, SpaceRow], name: str
) -> _Own | _Field | _Vectors:
    if name in ("key", "text", "uri", "metadata", "_modality"):
        return _Own(name)
    if name.startswith("vector.") and name.removeprefix("vector.") in spaces:
        return _Vectors(transaction, spaces[name.removeprefix("vector.")])
    path = dictionary_field(name).path
    known = catalog.field_kinds(transaction, collection.collection_id)
    kinds = {kind for found, kind in known if found == path}
    if not kinds and not any(found[: len(path)] == path for found, _ in known):
        fields = sorted({".".join(found) for found, _ in known})
        vectors = [f"vector.{space}" for space in spaces]
        raise InvalidInput(
            f"there is no column {name!r}; there are key, text, uri, metadata, _modality,"
            f" {', '.join([*vectors, *fields])}"
        )
    return _Field(path, kinds or {"object"})
