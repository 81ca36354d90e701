"""Records from pandas DataFrames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.source import OnError, SourceRow, repeated_name

SLICE_ROWS = 4096


class Frame:
    """The rows of a DataFrame; NaN, NaT and NA are None.

    An index that has a name is a column of that name, any other index is ignored.
    """

    rereadable = True
    unit = "rows"
    name = "DataFrame"

    def __init__(self, frame: Any) -> None:
        self.total: int | None = len(frame)
        self._frame = frame
        self._index_names = [name for name in frame.index.names if name is not None]
        self._columns = [*self._index_names, *frame.columns]
        for name in self._columns:
            if not isinstance(name, str):
                raise InvalidInput(
                    f"DataFrame: the column name {name!r} is {type(name).__name__}; names must be strings"
                )
        if (twice := repeated_name(self._columns)) is not None:
            raise InvalidInput(f"DataFrame: there are two columns {twice!r}")

    def fingerprint(self) -> None:
        """None: objects in memory have no lasting identity."""

    def columns(self) -> list[str]:
        """The names of the index, where it has any, and of the columns."""
        return list(self._columns)

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order, numbered from 1."""
        frame = self._frame
        for start in range(0, len(frame), SLICE_ROWS):
            part = frame.iloc[start : start + SLICE_ROWS]
            index = [part.index.get_level_values(name).to_series() for name in self._index_names]
            inner = [part.iloc[:, place] for place in range(part.shape[1])]
            columns = [_values(series) for series in (*index, *inner)]
            for number, values in enumerate(zip(*columns, strict=True), start=start + 1):
                yield SourceRow(number, number, dict(zip(self._columns, values, strict=True)))


def _values(series: Any) -> list[Any]:
    """The values as Python objects, None where one is missing."""
    from embedstore.ingesting.sources.arrow_rows import plain

    values = series.astype(object).tolist()
    for place in series.isna().to_numpy().nonzero()[0]:
        values[place] = None
    return [plain(value) for value in values] if series.dtype == object else values
