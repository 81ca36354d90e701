"""The metadata of records: canonical JSON, and which kinds of values have been seen under which names."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import orjson

from embedstore.checks import encode_text, shown
from embedstore.errors import InvalidRecord

MAX_NAME_BYTES = 255
MAX_DEPTH = 32

_JSON_OPTIONS = orjson.OPT_SORT_KEYS
_SCALARS = {str: "text", int: "integer", float: "real", bool: "boolean"}

FieldPath = tuple[str, ...]


class FieldKinds(set[tuple[FieldPath, str]]):
    """Pairs of a metadata path and the kind of value seen there: integer, real, text, boolean or list.

    ``known`` holds the pairs of paths of one name with the name bare, since that is quicker to look up.
    """

    __slots__ = ("known",)

    def __init__(self, pairs: Iterable[tuple[FieldPath, str]] = ()) -> None:
        super().__init__()
        self.known: set[tuple[str, str]] = set()
        for pair in pairs:
            self.add(pair)

    def add(self, pair: tuple[FieldPath, str]) -> None:
        """Note a pair."""
        super().add(pair)
        path, kind = pair
        if len(path) == 1:
            self.known.add((path[0], kind))

    def take(self, others: FieldKinds) -> None:
        """Note the pairs of others."""
        for pair in others:
            self.add(pair)


def merge_metadata(fields: dict[str, Any], row: int | None) -> dict[str, Any]:
    """The metadata of a record: its own fields, together with those inside a field ``metadata``."""
    nested = fields.pop("metadata", None)
    if nested is None:
        return fields
    if not fields and type(nested) is dict:
        return nested
    if not isinstance(nested, Mapping):
        raise InvalidRecord(f"must be a mapping of fields, not {type(nested).__name__}", row=row, field="metadata")
    for name in nested:
        if name in fields:
            raise InvalidRecord(
                f"{shown(str(name))} is given both beside and inside 'metadata'", row=row, field="metadata"
            )
    fields.update(nested)
    return fields


def metadata_json(
    metadata: Mapping[str, Any], row: int | None, kinds: FieldKinds, known: Set[tuple[str, str]] = frozenset()
) -> bytes:
    """Canonical JSON of ``metadata``; the paths and kinds of its values are added to ``kinds``.

    known: names with the kinds of their values that need not be added. Dates become ISO 8601 text, NumPy scalars plain
    numbers. InvalidRecord names what cannot be stored.
    """
    if not metadata:
        return b"{}"
    plain: dict[str, Any] = {}
    for name, value in metadata.items():
        kind = _SCALARS.get(type(value))
        if kind == "text":
            if not value.isascii() or "\0" in value:
                encode_text(value, row, str(name))
        elif kind == "boolean":
            pass
        elif kind is None or not -(2**53) <= value <= 2**53:  # neither for NaN nor for what is to be looked at closer
            if value is None:
                plain[check_name(name, row)] = None
                continue
            value, kind = _plain_value(value, row, (check_name(name, row),), kinds)
        if kind is not None and (name, kind) not in known and (name, kind) not in kinds.known:
            kinds.add(((check_name(name, row),), kind))
        plain[name] = value
    return orjson.dumps(plain, option=_JSON_OPTIONS)


def check_name(name: Any, row: int | None) -> str:
    """A metadata field's name: a string of 1 to 255 UTF-8 bytes without control characters."""
    if type(name) is str and name in _GOOD_NAMES:
        return name
    checked = _checked_name(name, row)
    if len(_GOOD_NAMES) < _MAX_GOOD_NAMES:
        _GOOD_NAMES.add(checked)
    return checked


_MAX_GOOD_NAMES = 10_000
_GOOD_NAMES: set[str] = set()
"""Names that were found to be right, since the same few come with every record."""


def _checked_name(name: Any, row: int | None) -> str:
    if not isinstance(name, str):
        raise InvalidRecord(f"a field's name must be a string, not {type(name).__name__}", row=row, field=repr(name))
    encoded = encode_text(name, row, ascii(name))
    if not 0 < len(encoded) <= MAX_NAME_BYTES or any(ord(character) < 32 for character in name):
        raise InvalidRecord(
            "a field's name must have 1 to 255 bytes and no control characters", row=row, field=shown(name)
        )
    return name


def _plain_value(value: Any, row: int | None, path: FieldPath, kinds: FieldKinds) -> tuple[Any, str | None]:
    """``value`` as plain JSON data, and its kind (None for null and for objects, whose fields are noted)."""
    name = ".".join(path)
    if len(path) > MAX_DEPTH:
        raise InvalidRecord(f"metadata is nested deeper than {MAX_DEPTH} levels", row=row, field=path[0])
    if value is None:
        return None, None
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool):
        return value, "boolean"
    if isinstance(value, str):
        encode_text(value, row, name)
        return str(value), "text"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidRecord(f"{value} does not fit in 64 bits; store it as text", row=row, field=name)
        return int(value), "integer"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRecord(f"is {value}, which JSON cannot hold; leave the field out", row=row, field=name)
        return float(value), "real"
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat(), "text"
    if isinstance(value, Mapping):
        inner = {}
        for key, item in value.items():
            inner_path = (*path, check_name(key, row))
            inner[key], kind = _plain_value(item, row, inner_path, kinds)
            if kind is not None:
                kinds.add((inner_path, kind))
        return inner, None
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        listed = FieldKinds()  # what lists hold is not addressable by a path
        return [_plain_value(item, row, (*path, "[]"), listed)[0] for item in items], "list"
    raise InvalidRecord(
        f"holds {type(value).__name__}; metadata holds text, numbers, booleans, null, lists and objects",
        row=row, field=name,
    )  # fmt: skip
