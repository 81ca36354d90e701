"""Turns Arrow columns into Python values and NumPy vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

import numpy as np

from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord
from embedstore.ingesting.sources.source import OnError, SourceRow, refuse, repeated_name

SLICE_ROWS = 2048


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
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InvalidInput(f"{source} cannot be read: {lines[0][:300]}") from None


def batch_rows(
    batch: Any, number: int, position: int, source: str, on_error: OnError | None
) -> Iterator[SourceRow]:
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
    except (ValueError, OverflowError, KeyError, LookupError):
        values = [_value(array.slice(place, 1)) for place in range(len(array))]
        return values, any(isinstance(value, _Refused) for value in values)


def _value(array: Any) -> Any:
    try:
        return _values(array)[0]
    except UnicodeDecodeError as error:
        return _Refused(f"not UTF-8: {error.reason} at byte {error.start} of the value")
    except (ValueError, OverflowError, LookupError) as error:
        return _Refused(f"a value of Arrow type {array.type} cannot be read: {str(error).splitlines()[0]}")


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
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return _numbers(array)
    if types.is_timestamp(kind):
        return _timestamps(array)
    if types.is_decimal(kind):
        return [_decimal(value) for value in array.to_pylist()]
    if types.is_nested(kind):
        return [plain(value) for value in array.to_pylist(maps_as_pydicts="strict")]
    values: list[Any] = array.to_pylist()
    return values


def _numbers(array: Any) -> list[Any]:
    values: list[Any] = _filled(array, 0).tolist()
    for place in _missing(array):
        values[place] = None
    return values


def _filled(array: Any, filler: int) -> np.ndarray:
    """Numbers with ``filler`` where one is missing; Arrow's own ``fill_null`` would import pandas, 0.3 s."""
    present: np.ndarray = array.drop_null().to_numpy(zero_copy_only=False)
    if array.null_count == 0:
        return present
    filled = np.full(len(array), filler, present.dtype)
    filled[array.is_valid().to_numpy(zero_copy_only=False)] = present
    return filled


def _missing(array: Any) -> list[int]:
    """The places of the nulls."""
    if array.null_count == 0:
        return []
    places: list[int] = array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist()
    return places


def _dictionary_values(array: Any) -> list[Any]:
    """Each distinct value is made once, however many rows share it."""
    import pyarrow as pa

    places = _filled(array.indices.cast(pa.int64()), -1)
    used, inverse = np.unique(places, return_inverse=True)
    known = used[used >= 0]
    distinct: list[Any] = [None] * (len(used) - len(known))
    distinct += _values(array.dictionary.take(pa.array(known)))
    return [distinct[place] for place in inverse.tolist()]


def _fixed_vectors(array: Any) -> list[Any]:
    width = array.type.list_size
    flat = _floats(array.values.slice(array.offset * width, len(array) * width))
    return _without_nulls(array, list(flat.reshape(len(array), width)))


def _vectors(array: Any) -> list[Any]:
    bounds = array.offsets.to_numpy()
    flat = _floats(array.values.slice(int(bounds[0]), int(bounds[-1] - bounds[0])))
    bounds = bounds - bounds[0]
    lengths = np.diff(bounds)
    if len(lengths) and (lengths == lengths[0]).all():
        return _without_nulls(array, list(flat.reshape(len(array), int(lengths[0]))))
    edges = bounds.tolist()
    return _without_nulls(array, [flat[a:b] for a, b in zip(edges, edges[1:], strict=False)])


def _floats(values: Any) -> np.ndarray:
    flat: np.ndarray = values.to_numpy(zero_copy_only=False)  # a null within a vector becomes NaN
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def _without_nulls(array: Any, vectors: list[Any]) -> list[Any]:
    for place in _missing(array):
        vectors[place] = None
    return vectors


def _timestamps(array: Any) -> list[Any]:
    """Datetimes; ISO text where nanoseconds would be lost, UTC where the zone is not known here."""
    import pyarrow as pa

    kind = array.type
    if kind.unit == "ns":
        try:
            array = array.cast(pa.timestamp("us", kind.tz))
        except pa.ArrowInvalid:
            texts = np.datetime_as_string(array.to_numpy(zero_copy_only=False))
            zone = "" if kind.tz is None else "+00:00"
            return [None if text == "NaT" else f"{text}{zone}" for text in texts.tolist()]
    try:
        values: list[Any] = array.to_pylist()
    except (ValueError, LookupError):
        if kind.tz is None:
            raise
        values = array.cast(pa.timestamp(array.type.unit, "UTC")).to_pylist()
    return values


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
