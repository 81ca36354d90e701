"""Turns Arrow columns into Python values and NumPy vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

import numpy as np

from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord
from embedstore.ingesting.sources.source import OnError, SourceRow, refuse, repeated_name
from embedstore.wording import first_line

SLICE_ROWS = 2048

T = TypeVar("T")

_UNREADABLE = (ValueError, OverflowError, LookupError, NotImplementedError)


class _Refused:
    """Stands in a column for a value that cannot be turned into Python."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def check_names(names: list[str], source: str) -> list[str]:
    """The columns' names; InvalidInput where two are the same."""
    if (twice := repeated_name(names)) is not None:
        raise InvalidInput(f"{source}: there are two columns {twice!r}")
    return names


@contextmanager
def arrow_errors(source: str) -> Iterator[None]:
    """What Arrow raises for what is damaged or unknown to it, as InvalidInput in one line."""
    import pyarrow as pa

    try:
        yield
    except EmbedstoreError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInput(f"{source} cannot be read: {lines[0][:300]}") from None


def guarded(batches: Iterable[T], source: str) -> Iterator[T]:
    """The ``batches``, what Arrow raises while it reads them as InvalidInput; what their user raises stays as it is."""
    iterator = iter(batches)
    while True:
        with arrow_errors(source):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch


def batch_rows(batch: Any, number: int, position: int, source: str, on_error: OnError | None) -> Iterator[SourceRow]:
    """The rows of a RecordBatch, the first of which is row ``number``, all at ``position``."""
    names = batch.schema.names
    for start in range(0, batch.num_rows, SLICE_ROWS):
        part = batch.slice(start, SLICE_ROWS)
        columns = [_column(part.column(place)) for place in range(part.num_columns)]
        suspect = any(refused for _, refused in columns)
        for values in zip(*(values for values, _ in columns), strict=True):
            problem = _problem(names, values, number) if suspect else None
            if problem is None:
                yield SourceRow(number, position, dict(zip(names, values, strict=True)))
            else:
                refuse(problem, source, on_error)
            number += 1


def _problem(names: list[str], values: tuple[Any, ...], number: int) -> InvalidRecord | None:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, _Refused):
            return InvalidRecord(value.reason, row=number, field=name)
    return None


def _column(array: Any) -> tuple[list[Any], bool]:
    """The values, and whether some of them are _Refused."""
    try:
        return _values(array), False
    except _UNREADABLE:
        values = [_value(array.slice(place, 1)) for place in range(len(array))]
        return values, any(isinstance(value, _Refused) for value in values)


def _value(array: Any) -> Any:
    try:
        return _values(array)[0]
    except UnicodeDecodeError as error:
        return _Refused(f"not UTF-8: {error.reason} at byte {error.start} of the value")
    except _UNREADABLE as error:
        return _Refused(f"a value of Arrow type {array.type} cannot be read: {first_line(error)}")


def _values(array: Any) -> list[Any]:
    import pyarrow as pa

    kind = array.type
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name == "arrow.uuid":
            return [None if value is None else str(value) for value in array.to_pylist()]
        return _values(array.storage)
    if types.is_dictionary(kind):
        return _dictionary_values(array)
    if types.is_fixed_size_list(kind) and types.is_floating(kind.value_type):
        return _fixed_vectors(array)
    if (types.is_list(kind) or types.is_large_list(kind)) and types.is_floating(kind.value_type):
        return _vectors(array)
    if types.is_timestamp(kind):
        return _timestamps(array)
    if types.is_decimal(kind):
        return [_decimal(value) for value in array.to_pylist()]
    if types.is_nested(kind):
        return [plain(value) for value in array.to_pylist(maps_as_pydicts="strict")]
    values: list[Any] = array.to_pylist()
    return values


def _dictionary_values(array: Any) -> list[Any]:
    """Each distinct value is made once, however many rows share it."""
    import pyarrow as pa

    places = array.indices.to_pylist()
    used = sorted({place for place in places if place is not None})
    # pa.array() and to_numpy() would import pandas where it is installed, 0.3 s.
    wanted = pa.Array.from_buffers(pa.int64(), len(used), [None, pa.py_buffer(np.array(used, np.int64))])
    values = dict(zip(used, _values(array.dictionary.take(wanted)), strict=True))
    return [values.get(place) for place in places]


def _fixed_vectors(array: Any) -> list[Any]:
    width = array.type.list_size
    flat = _floats(array.values.slice(array.offset * width, len(array) * width))
    return _without_nulls(array, list(flat.reshape(len(array), width)))


def _vectors(array: Any) -> list[Any]:
    bounds = np.from_dlpack(array.offsets)
    flat = _floats(array.values.slice(int(bounds[0]), int(bounds[-1] - bounds[0])))
    lengths = np.diff(bounds)
    if len(lengths) and (lengths == lengths[0]).all():
        return _without_nulls(array, list(flat.reshape(len(array), int(lengths[0]))))
    edges = (bounds - bounds[0]).tolist()
    return _without_nulls(array, [flat[a:b] for a, b in zip(edges, edges[1:], strict=False)])


def _floats(values: Any) -> np.ndarray:
    if values.null_count:  # a null within a vector becomes NaN
        return np.array(values.to_pylist(), np.float64 if str(values.type) == "double" else np.float32)
    flat: np.ndarray = np.from_dlpack(values)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def _without_nulls(array: Any, vectors: list[Any]) -> list[Any]:
    if array.null_count:
        for place, valid in enumerate(array.is_valid().to_pylist()):
            if not valid:
                vectors[place] = None
    return vectors


def _timestamps(array: Any) -> list[Any]:
    """Datetimes, in UTC where the zone is not known here; ISO text where a nanosecond would be lost."""
    import pyarrow as pa

    kind = array.type
    if kind.unit == "ns":
        nanoseconds = array.cast(pa.int64()).to_pylist()
        whole = pa.array([None if value is None else value // 1000 for value in nanoseconds], pa.int64())
        moments = _timestamps(whole.cast(pa.timestamp("us", kind.tz)))
        return list(map(_to_the_nanosecond, moments, nanoseconds))
    try:
        values: list[Any] = array.to_pylist()
    except (ValueError, LookupError):
        if kind.tz is None:
            raise
        values = array.cast(pa.timestamp(kind.unit, "UTC")).to_pylist()
    return values


def _to_the_nanosecond(moment: datetime | None, nanoseconds: int | None) -> datetime | str | None:
    if moment is None or nanoseconds is None or nanoseconds % 1000 == 0:
        return moment
    text = moment.isoformat(timespec="microseconds")
    return f"{text[:26]}{nanoseconds % 1000:03d}{text[26:]}"


def _decimal(value: Decimal | None) -> int | float | None:
    if value is None:
        return None
    whole = value.as_tuple().exponent == 0
    return int(value) if whole else float(value)


def plain(value: Any) -> Any:
    """``value`` with decimals as numbers, also within lists and mappings."""
    if isinstance(value, Decimal):
        return _decimal(value)
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    return value
