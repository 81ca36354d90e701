"""Records from CSV and TSV files, the type of each column told from the whole file before the first row."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.bytestream import ByteStream, opened
from embedstore.ingesting.sources.cells import Batch, CellReader
from embedstore.ingesting.sources.inference import ColumnGuess, ColumnType, column_type, fits, typed_cells
from embedstore.ingesting.sources.source import (
    OnError,
    SourceRow,
    file_fingerprint,
    file_status,
    named,
    refuse,
    repeated_name,
)


@dataclass(frozen=True, slots=True)
class CellFormat:
    """How CSV and TSV files are written, where they are not as usual.

    delimiter: what parts cells, one character; None for the usual one. columns: names of the columns of files that have
    no header line. encoding: by Python's names; None for UTF-8.
    """

    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("delimiter", self.delimiter), ("encoding", self.encoding)):
            if value is not None and not isinstance(value, str):
                raise InvalidInput(f"the {name} is a text, not {type(value).__name__}")
        for text in (self.delimiter or "", *(name for name in self.columns or () if isinstance(name, str))):
            if not text.isprintable() and text != "\t":
                raise InvalidInput(f"{ascii(text)} holds what cannot be printed; delimiters and columns are plain text")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'):
            raise InvalidInput(f"the delimiter is {self.delimiter!r}; it must be one character, no quote or newline")
        if self.columns is not None:
            if not self.columns or not all(isinstance(name, str) and name.strip() for name in self.columns):
                raise InvalidInput("the columns of a file without a header line each need a name")
            if (twice := repeated_name(list(self.columns))) is not None:
                raise InvalidInput(f"the columns name {twice!r} twice")
        if self.encoding is not None:
            try:
                "a".encode(self.encoding)
            except (LookupError, ValueError, TypeError):
                what = f"the encoding {self.encoding!r} is not known; give one such as latin-1 or utf-16"
                raise InvalidInput(what) from None


class DelimitedFile:
    """A CSV or TSV file with a header line, in UTF-8, or as its format says.

    Blank lines are skipped, empty cells are None. ``types`` maps columns to "text", "integer", "number" or
    "boolean"; columns in ``keep_text`` are text, where the file has them; the type of every other column is
    the narrowest that fits all of its cells. The first ``rows()`` reads the file twice, so that what is wrong
    anywhere in it is raised before any row is given.
    """

    rereadable = True
    unit = "bytes"

    def __init__(
        self,
        path: str,
        *,
        delimiter: str = ",",
        compression: str | None = None,
        types: Mapping[str, str] | None = None,
        keep_text: Collection[str] = (),
        written: CellFormat | None = None,
    ) -> None:
        self._format = written or CellFormat()
        is_utf8 = self._format.encoding is None or codecs.lookup(self._format.encoding).name in ("utf-8", "utf-8-sig")
        self._encoding = None if is_utf8 else self._format.encoding
        self.name = path
        self.total: int | None = file_status(path).st_size
        self._path = path
        self._delimiter = self._format.delimiter or delimiter
        self._compression = compression
        self._asked = {name: column_type(given) for name, given in (types or {}).items()}
        self._keep_text = frozenset(keep_text)
        self._expected: dict[str, ColumnType] = {}
        self._odd: dict[str, str] = {}
        self._known: dict[bool, tuple[str, dict[str, ColumnType]]] = {}  # by whether bad rows are left out

    def expect(self, types: Mapping[str, str]) -> None:
        """Read columns as these types where they look like others, so that it is their odd cells that are refused."""
        self._expected = {name: column_type(given) for name, given in types.items()}
        self._known.clear()

    def made_text(self) -> dict[str, str]:
        """By name of a column that would be of numbers or booleans but for some cells, the first of those cells."""
        self._types(None)
        return dict(self._odd)

    def fingerprint(self) -> str:
        """From absolute path, size and modification time."""
        return file_fingerprint([self._path])

    def columns(self) -> list[str]:
        """The header's names."""
        with self._opened() as stream:
            return self._reader(stream).header

    def column_types(self) -> dict[str, str]:
        """The type of each column by name; the first call reads the whole file."""
        return {name: kind.value for name, kind in self._types(None).items()}

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows with typed cells, numbered from 1, the header not counted."""
        with named(self.name):
            types = self._types(on_error)
            with self._opened() as stream:
                for batch in self._batches(stream, on_error):
                    cells = zip(*self._typed(batch, types), strict=True)
                    for number, values in zip(batch.numbers, cells, strict=True):
                        yield SourceRow(number, stream.position, dict(zip(types, values, strict=True)))

    def _opened(self) -> AbstractContextManager[ByteStream]:
        return opened(self._path, self.name, self._compression, self._encoding)

    def _reader(self, stream: ByteStream, on_error: OnError | None = None) -> CellReader:
        is_named = self._format.delimiter is not None
        return CellReader(stream, self._delimiter, on_error, columns=self._format.columns, guesses=not is_named)

    def _typed(self, batch: Batch, types: Mapping[str, ColumnType]) -> list[list[Any]]:
        try:
            columns = zip(zip(*batch.rows, strict=True), types.values(), strict=True)
            return [typed_cells(cells, kind) for cells, kind in columns]
        except (ValueError, KeyError):
            raise InvalidInput(f"{self.name}: the file changed while it was read; run this again") from None

    def _types(self, on_error: OnError | None) -> dict[str, ColumnType]:
        lenient = on_error is not None
        fingerprint = self.fingerprint()
        known = self._known.get(lenient)
        if known is None or known[0] != fingerprint:
            with self._opened() as stream, named(self.name):
                # Rows left out are told while rows are given, not here.
                known = fingerprint, self._infer(stream, (lambda error: None) if lenient else None)
            self._known[lenient] = known
        return known[1]

    def _infer(self, stream: ByteStream, on_error: OnError | None) -> dict[str, ColumnType]:
        names = self.columns()
        for name in self._asked:
            if name not in names:
                raise InvalidInput(
                    f"{self.name}: there is no column {name!r} to give a type; the columns are {', '.join(names)}"
                )
        given = dict.fromkeys(self._keep_text.intersection(names), ColumnType.TEXT) | self._asked
        guesses = {name: ColumnGuess() for name in names if name not in given}
        for batch in self._batches(stream, on_error):
            for name, cells in zip(names, zip(*batch.rows, strict=True), strict=True):
                if name in guesses:
                    guesses[name].see(cells)
        self._odd = {name: guess.odd for name, guess in guesses.items() if guess.odd is not None}
        for name, guess in guesses.items():
            wanted = self._expected.get(name, guess.type)
            if wanted is not guess.type and (wanted, guess.type) != (ColumnType.NUMBER, ColumnType.INTEGER):
                self._asked[name] = given[name] = wanted
        return {name: given[name] if name in given else guesses[name].type for name in names}

    def _batches(self, stream: ByteStream, on_error: OnError | None) -> Iterator[Batch]:
        """The file's rows, those left out that do not fit the types asked for."""
        reader = self._reader(stream, on_error)
        asked = [
            (place, name, self._asked[name])
            for place, name in enumerate(reader.header)
            if self._asked.get(name, ColumnType.TEXT) is not ColumnType.TEXT
        ]
        for batch in reader.batches():
            if asked:
                batch = self._fitting(batch, asked, on_error)
            if batch.rows:
                yield batch

    def _fitting(self, batch: Batch, asked: list[tuple[int, str, ColumnType]], on_error: OnError | None) -> Batch:
        kept = Batch([], [])
        for number, row in zip(batch.numbers, batch.rows, strict=True):
            for place, name, kind in asked:
                if row[place] and not fits(row[place], kind):
                    reason = f"{row[place][:60]!r} is not of the type {kind.value} that was asked for"
                    refuse(InvalidRecord(reason, row=number, field=name), self.name, on_error)
                    break
            else:
                kept.numbers.append(number)
                kept.rows.append(row)
        return kept
