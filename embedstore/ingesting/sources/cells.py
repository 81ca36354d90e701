"""Rows of text cells from a CSV or TSV stream, every row checked against the header."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.bytestream import ByteStream
from embedstore.ingesting.sources.lines import text_lines
from embedstore.ingesting.sources.source import OnError, refuse, repeated_name

BATCH_ROWS = 2048
BATCH_BYTES = 4 << 20
MAX_CELL_CHARS = 64 << 20

_LOST = {
    "unexpected end of data": "a quote that opens in this row is never closed",
    "field larger than field limit": "a cell is longer than 64 MiB; is a quote left open?",
}
"""What ``csv`` says where the rows after it cannot be told any more, and what that means."""


class Batch(NamedTuple):
    """Rows of cells, and the 1-based number of each in the file, the header not counted."""

    numbers: list[int]
    rows: list[list[str]]


class CellReader:
    """Reads ``stream`` once: its ``header`` when made, then its rows in ``batches()``.

    The header is the first line, or ``columns``, and then every line is a row. Blank lines are skipped. With
    ``on_error`` a row of the wrong width, or one that is not UTF-8, is told and left out; without, it is raised. A
    quote that never closes is always raised, with the row where it opens.
    """

    def __init__(
        self,
        stream: ByteStream,
        delimiter: str,
        on_error: OnError | None = None,
        *,
        columns: Sequence[str] | None = None,
        guesses: bool = True,
    ) -> None:
        """guesses: whether a header of one column is taken for one that is parted by something else."""
        self._guesses = guesses
        self._stream = stream
        self._on_error = on_error
        self._delimiter = delimiter
        self._reader = csv.reader(text_lines(stream, lenient=on_error is not None), delimiter=delimiter, strict=True)
        self._n_rows = 0
        self.header = self._read_header() if columns is None else list(columns)

    def batches(self) -> Iterator[Batch]:
        """The rows after the header; a batch ends after 2,048 rows or 4 MiB."""
        at_end = False
        while not at_end:
            batch = Batch([], [])
            at_end = self._fill(batch)
            if batch.rows:
                yield batch

    def _fill(self, batch: Batch) -> bool:
        """Read rows into ``batch``; True at the end of the stream."""
        width = len(self.header)
        stop = self._stream.offset + BATCH_BYTES
        with _long_cells():
            while len(batch.rows) < BATCH_ROWS and self._stream.offset < stop:
                row = self._next_row()
                if row is None:
                    return True
                if len(row) != width:
                    cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
                    self._refuse(f"the row has {cells}; the header has {width}")
                elif self._on_error is not None and (reason := _not_text(row)) is not None:
                    self._refuse(reason)
                else:
                    batch.numbers.append(self._n_rows)
                    batch.rows.append(row)
        return False

    def _next_row(self) -> list[str] | None:
        """The next row that is not blank, None at the end."""
        while True:
            try:
                row = next(self._reader, None)
            except csv.Error as error:
                self._n_rows += 1
                for part, reason in _LOST.items():
                    if part in str(error):
                        raise InvalidRecord(reason, row=self._n_rows) from None
                self._refuse(_reason(error, self._delimiter))
            except InvalidRecord as error:  # from the lines
                error.row = self._n_rows + 1
                raise
            else:
                if row is None:
                    return None
                if row:
                    self._n_rows += 1
                    return row

    def _refuse(self, reason: str) -> None:
        refuse(InvalidRecord(reason, row=self._n_rows), self._stream.name, self._on_error)

    def _read_header(self) -> list[str]:
        name = self._stream.name
        try:
            with _long_cells():
                names = next((row for row in self._reader if row), None)
        except csv.Error as error:
            raise InvalidInput(f"{name}, header: {_reason(error, self._delimiter)}") from None
        except InvalidRecord as error:
            raise InvalidInput(f"{name}, header: {error.reason}") from None
        if names is None:
            raise InvalidInput(f"{name}: the file is empty; its first line must name the columns")
        if (reason := _not_text(names)) is not None:
            raise InvalidInput(f"{name}, header: {reason}")
        for place, column in enumerate(names, start=1):
            if not column.strip():
                raise InvalidInput(f"{name}: column {place} of the header has no name")
        if (twice := repeated_name(names)) is not None:
            raise InvalidInput(f"{name}: the header names column {twice!r} twice")
        parted_by = next((mark for mark in ";\t,|" if len(names) == 1 and mark in names[0]), self._delimiter)
        if self._guesses and parted_by != self._delimiter:
            raise InvalidInput(
                f"{name}: the header is the one column {names[0][:60]!r}, as cells end at {self._delimiter!r}; if they"
                f" end at {parted_by!r}, say so (--delimiter {parted_by!r}, delimiter={parted_by!r})"
            )
        return names


def _not_text(row: list[str]) -> str | None:
    """Why the cells of a row that was read leniently are no text; None where they are."""
    joined = "".join(row)
    try:
        joined.encode()
    except UnicodeEncodeError as error:
        byte = ord(joined[error.start]) & 0xFF
        return f"not UTF-8: a cell holds the byte {byte:02X}; save the file as UTF-8, or name its encoding"
    return "a cell holds NUL, which text cannot hold" if "\0" in joined else None


def _reason(error: csv.Error, delimiter: str) -> str:
    if "expected after" in str(error):
        parts = {",": "commas", "\t": "tabs"}.get(delimiter, repr(delimiter))
        return f"text follows a closing quote; quotes within a cell are written twice, cells end at {parts}"
    return next((reason for part, reason in _LOST.items() if part in str(error)), str(error))


_limit_lock = threading.Lock()
_n_within = 0
_limit_before = 0


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells up to 64 MiB within. The limit is one for the process: the last to leave puts it back."""
    global _n_within, _limit_before
    with _limit_lock:
        if _n_within == 0:
            _limit_before = csv.field_size_limit(MAX_CELL_CHARS)
        _n_within += 1
    try:
        yield
    finally:
        with _limit_lock:
            _n_within -= 1
            if _n_within == 0:
                csv.field_size_limit(_limit_before)
