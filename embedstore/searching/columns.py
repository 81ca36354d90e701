"""Metadata fields as columns in memory, so that a filter costs microseconds rather than a scan of JSON.

A column is read from SQL when a filter first names its field, and kept up with the commits. What a column cannot
answer exactly (lists, integers beyond 2**53, the record's own fields) is asked of SQL.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.filters.sql import compile_where
from embedstore.filters.tree import (
    And,
    Contains,
    Exists,
    Field,
    In,
    Leaf,
    Like,
    Node,
    Not,
    Operator,
    Or,
    Scalar,
    kind_of,
)
from embedstore.model import BoolVector, IntVector
from embedstore.storage.catalog import CollectionRow
from embedstore.storage.database import Transaction
from embedstore.storage.layout import id_range

_NUMBER, _TEXT, _BOOLEAN, _OTHER = 1, 2, 3, 4
_NO_TEXT = -2  # a code that no row has
_EXACT_INTEGER = 2**53
_MAX_TEXT_BYTES = 256 << 20
_MAX_MASKS = 64
_RELOAD_FRACTION = 4
_JSON_KINDS = {
    "integer": _NUMBER, "real": _NUMBER, "number": _NUMBER, "text": _TEXT, "string": _TEXT, "true": _BOOLEAN,
    "false": _BOOLEAN, "boolean": _BOOLEAN, "array": _OTHER, "object": _OTHER,
}  # fmt: skip
_ORDERED: dict[Operator, Callable[[Any, Any], Any]] = {
    Operator.EQ: np.equal, Operator.GT: np.greater, Operator.GTE: np.greater_equal,
    Operator.LT: np.less, Operator.LTE: np.less_equal,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Column:
    """One field of every record: its kind, and its value as a number or as the place of its text in ``texts``.

    kinds uint8 (n,), 0 where the field is missing or null; numbers float64 (n,); codes int32 (n,).
    """

    kinds: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.float64]
    codes: npt.NDArray[np.int32]
    texts: tuple[str, ...]
    places: dict[str, int]
    exact: bool

    def compare(self, operator: Operator, value: Scalar) -> BoolVector:
        kind = kind_of(value)
        if kind == "text":
            assert isinstance(value, str)
            if operator is Operator.EQ:
                code = self.places.get(value)
                same: BoolVector = self.codes == (_NO_TEXT if code is None else code)
                return same
            return self.texts_where(lambda text: bool(_ORDERED[operator](text, value)))
        wanted = _BOOLEAN if kind == "boolean" else _NUMBER
        with np.errstate(invalid="ignore"):
            held: BoolVector = _ORDERED[operator](self.numbers, float(value))
        held &= self.kinds == wanted
        return held

    def among(self, values: Sequence[Scalar]) -> BoolVector:
        """The rows whose value equals one of ``values``."""
        codes = [self.places[value] for value in values if isinstance(value, str) and value in self.places]
        found: BoolVector = np.isin(self.codes, np.array(codes, np.int32))
        for kind, word in ((_NUMBER, "number"), (_BOOLEAN, "boolean")):
            wanted = [float(value) for value in values if kind_of(value) == word]
            if wanted:
                found |= np.isin(self.numbers, np.array(wanted)) & (self.kinds == kind)
        return found

    def texts_where(self, test: Callable[[str], bool]) -> BoolVector:
        """The rows whose text passes ``test``, which is asked once for each different text."""
        passed = np.fromiter((test(text) for text in self.texts), np.bool_, len(self.texts))
        found: BoolVector = np.append(passed, False)[self.codes]  # code -1, no text, finds the False at the end
        return found


class Columns:
    """The records of a collection at one commit, and the columns that filters have asked for."""

    def __init__(self, collection: CollectionRow, record_ids: IntVector) -> None:
        self.change = collection.last_change
        self.record_ids = record_ids
        self._collection_id = collection.collection_id
        self._columns: dict[Field, _Column | None] = {}
        self._masks: OrderedDict[str, BoolVector] = OrderedDict()

    @staticmethod
    def load(transaction: Transaction, collection: CollectionRow) -> Columns:
        """The collection's records, without any column yet."""
        low, high = id_range(collection.collection_id)
        rows = transaction.all(
            "SELECT record_id FROM records WHERE record_id BETWEEN :low AND :high ORDER BY record_id",
            {"low": low, "high": high},
        )
        return Columns(collection, np.array([row[0] for row in rows], np.int64))

    def caught_up(self, transaction: Transaction, collection: CollectionRow) -> Columns:
        """These columns at the transaction's commit."""
        if self.change == collection.last_change:
            return self
        if self.change > collection.last_change or self.change < collection.log_floor:
            return Columns.load(transaction, collection)
        log = transaction.all(
            "SELECT record_id FROM changed_records WHERE collection_id = :collection AND change > :change",
            {"collection": self._collection_id, "change": self.change},
        )
        newest = self.record_ids[-1] if self.record_ids.size else id_range(self._collection_id)[0]
        changed = np.array(sorted({row[0] for row in log}), np.int64)
        added = transaction.all(
            "SELECT record_id FROM records WHERE record_id > :newest AND record_id <= :high ORDER BY record_id",
            {"newest": int(newest), "high": id_range(self._collection_id)[1]},
        )
        known = changed[np.isin(changed, self.record_ids)]
        live = _among(transaction, known)
        keep = ~np.isin(self.record_ids, known)
        fresh = np.concatenate([live, np.array([row[0] for row in added], np.int64)])
        merged = np.concatenate([self.record_ids[keep], fresh])
        order = np.argsort(merged, kind="stable")
        newer = Columns(collection, merged[order])
        if fresh.size * _RELOAD_FRACTION <= merged.size:
            for field, column in list(self._columns.items()):  # another thread may be adding one
                if column is not None and len(column.texts) > 2 * merged.size + _MAX_MASKS:
                    continue  # mostly texts that no record has any more: read it again when it is next asked for
                newer._columns[field] = None if column is None else newer._merge(
                    column, keep, _read_column(transaction, collection, field, fresh), order
                )  # fmt: skip
        return newer

    @staticmethod
    def _merge(old: _Column, keep: BoolVector, new: _Column | None, order: IntVector) -> _Column | None:
        if new is None:
            return None
        texts, places = list(old.texts), dict(old.places)
        for text in new.texts:
            if text not in places:
                places[text] = len(texts)
                texts.append(text)
        recoded = np.array([places[text] for text in new.texts] + [-1], np.int32)[new.codes]
        return _Column(
            np.concatenate([old.kinds[keep], new.kinds])[order],
            np.concatenate([old.numbers[keep], new.numbers])[order],
            np.concatenate([old.codes[keep], recoded])[order],
            tuple(texts), places, old.exact and new.exact,
        )  # fmt: skip

    def matching(self, transaction: Transaction | None, collection: CollectionRow, root: Node) -> BoolVector:
        """Which records, in the order of ``record_ids``, the filter holds for.

        Without a transaction KeyError is raised where the database is to be asked.
        """
        asked = repr(root)  # the nodes themselves would take 1 and True for the same
        mask = self._masks.get(asked)
        if mask is None:
            mask = self._evaluate(transaction, collection, root)
            mask.setflags(write=False)
            self._masks[asked] = mask
            while len(self._masks) > _MAX_MASKS:
                self._masks.popitem(last=False)
        return mask

    def _evaluate(self, transaction: Transaction | None, collection: CollectionRow, node: Node) -> BoolVector:
        if isinstance(node, (And, Or)):
            parts = [self._evaluate(transaction, collection, part) for part in node.parts]
            joined = np.logical_and if isinstance(node, And) else np.logical_or
            return joined.reduce(parts) if parts else np.full(self.record_ids.shape, isinstance(node, And))
        if isinstance(node, Not):
            return ~self._evaluate(transaction, collection, node.part)
        column = None if node.field.builtin else self._column(transaction, collection, node.field)
        mask = None if column is None else _leaf_mask(column, node)
        if mask is None:
            if transaction is None:
                raise KeyError(str(node.field))
            mask = self._ask(transaction, node)
        return mask

    def _column(self, transaction: Transaction | None, collection: CollectionRow, field: Field) -> _Column | None:
        if field not in self._columns:
            if transaction is None:
                raise KeyError(str(field))
            self._columns[field] = _read_column(transaction, collection, field, None)
        return self._columns[field]

    def _ask(self, transaction: Transaction, node: Leaf) -> BoolVector:
        """Ask SQL which records a leaf holds for."""
        condition, parameters = compile_where(node, transaction.dialect.name)
        low, high = id_range(self._collection_id)
        rows = transaction.all(
            f"SELECT r.record_id FROM records AS r WHERE r.record_id BETWEEN :low AND :high AND {condition}",
            {**parameters, "low": low, "high": high},
        )
        ids = np.array([row[0] for row in rows], np.int64)
        return np.isin(self.record_ids, ids)


def _leaf_mask(column: _Column, leaf: Leaf) -> BoolVector | None:
    """A leaf over a column; None where the column cannot answer exactly."""
    if isinstance(leaf, Exists):
        there: BoolVector = column.kinds != 0
        return there
    if isinstance(leaf, Like):
        parts = leaf.pattern.split("%")
        return column.texts_where(lambda text: _is_like(text, parts))
    if isinstance(leaf, Contains):
        if np.any(column.kinds == _OTHER):
            return None
        if not isinstance(leaf.value, str):
            return np.zeros(column.kinds.shape, np.bool_)
        part = leaf.value
        return column.texts_where(lambda text: part in text)
    values = leaf.values if isinstance(leaf, In) else (leaf.value,)
    if any(kind_of(value) == "number" and not (column.exact and _is_exact(value)) for value in values):
        return None
    if isinstance(leaf, In):
        return column.among(values)
    if leaf.operator is Operator.NE:
        return np.logical_not(column.compare(Operator.EQ, leaf.value))
    return column.compare(leaf.operator, leaf.value)


def _is_like(text: str, parts: Sequence[str]) -> bool:
    """Whether the parts, with anything between them, make up the text; taking each as early as it fits is enough."""
    if len(parts) == 1:
        return len(text) == len(parts[0]) and _fits(text, 0, parts[0])
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not _fits(text, 0, first) or not _fits(text, len(text) - len(last), last):
        return False
    place, stop = len(first), len(text) - len(last)
    for part in middle:
        while place + len(part) <= stop and not _fits(text, place, part):
            place += 1
        if place + len(part) > stop:
            return False
        place += len(part)
    return True


def _fits(text: str, place: int, part: str) -> bool:
    if "_" not in part:
        return text.startswith(part, place)
    return all(one in ("_", text[place + i]) for i, one in enumerate(part))


def _is_exact(value: Scalar) -> bool:
    return isinstance(value, float) or -_EXACT_INTEGER <= int(value) <= _EXACT_INTEGER


def _among(transaction: Transaction, record_ids: IntVector) -> IntVector:
    """Those of ``record_ids`` that are still records."""
    if record_ids.size == 0:
        return record_ids
    rows = transaction.all(
        f"SELECT record_id FROM records WHERE record_id IN {transaction.dialect.members('ids', 'integer')}",
        {"ids": transaction.dialect.list_parameter(record_ids.tolist())},
    )
    return np.sort(np.array([row[0] for row in rows], np.int64))


def _read_column(
    transaction: Transaction, collection: CollectionRow, field: Field, record_ids: IntVector | None
) -> _Column | None:
    """A field of every record (or of ``record_ids``, in their order); None where its texts are too many to keep."""
    if transaction.dialect.name == "sqlite":
        if any(character in name for name in field.path for character in '"\\'):
            return None
        path: Any = "$" + "".join(f'."{name}"' for name in field.path)
        columns = "json_type(metadata, :path), json_extract(metadata, :path)"
    else:
        path = list(field.path)
        columns = (
            "json_typeof(metadata #> CAST(:path AS text[])), metadata #>> CAST(:path AS text[])"
        )
    if record_ids is None:
        low, high = id_range(collection.collection_id)
        where = "record_id BETWEEN :low AND :high"
        parameters: dict[str, Any] = {"path": path, "low": low, "high": high}
    else:
        where = f"record_id IN {transaction.dialect.members('ids', 'integer')}"
        parameters = {"path": path, "ids": transaction.dialect.list_parameter(record_ids.tolist())}
    rows = transaction.all(f"SELECT {columns} FROM records WHERE {where} ORDER BY record_id", parameters)
    return _column_of(rows)


def _column_of(rows: Sequence[tuple[Any, Any]]) -> _Column | None:
    """A column from the JSON type and the value of each row; nothing here runs Python code for every row."""
    n = len(rows)
    types, values = zip(*rows, strict=True) if rows else ((), ())
    kinds = np.fromiter(map(_JSON_KINDS.get, types, repeat(0)), np.uint8, n)
    numbers = np.full(n, np.nan)
    codes = np.full(n, -1, np.int32)
    true = kinds == _BOOLEAN
    if true.any():
        held = [np.array(list(compress(column, true.tolist())), object) for column in (types, values)]
        numbers[true] = (held[0] == "true") | (held[1] == "true")
    numeric = kinds == _NUMBER
    if numeric.any():
        # astype, since PostgreSQL gives numbers as text
        numbers[numeric] = np.array(list(compress(values, numeric.tolist()))).astype(np.float64)
    exact = bool(np.all(np.abs(numbers[numeric]) < _EXACT_INTEGER))
    textual = kinds == _TEXT
    texts = list(compress(values, textual.tolist()))
    different = tuple(dict.fromkeys(texts))
    if sum(map(sys.getsizeof, different)) > _MAX_TEXT_BYTES:
        return None
    places = dict(zip(different, range(len(different)), strict=True))
    codes[textual] = np.fromiter(map(places.__getitem__, texts), np.int32, len(texts))
    return _Column(kinds, numbers, codes, different, places, exact)
