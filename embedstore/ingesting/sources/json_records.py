"""Records from JSON files and from JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, BinaryIO

import orjson

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.bytestream import ByteStream, opened
from embedstore.ingesting.sources.lines import byte_lines, text_problem
from embedstore.ingesting.sources.source import (
    OnError,
    SourceRow,
    exported,
    file_fingerprint,
    file_status,
    refuse,
)
from embedstore.tables import EXPORT_HEADER

MAX_DOCUMENT_BYTES = 512 << 20

JSON_BLANKS = b" \t\r"

_DIGITS_TO_ZERO = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else ord(" ") for byte in range(256))
_LONG_INTEGER = b"0" * 19


class JsonFile:
    """A file that holds a list of objects, or one object, which is one record; read whole, up to 512 MiB."""

    rereadable = True
    unit = "bytes"

    def __init__(self, path: str, *, compression: str | None = None) -> None:
        self.name = path
        self.total: int | None = file_status(path).st_size
        self._path = path
        self._compression = compression

    def fingerprint(self) -> str:
        """From absolute path, size and modification time."""
        return file_fingerprint([self._path])

    def columns(self) -> None:
        """None: JSON declares no names."""

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The objects in order, numbered from 1."""
        document = self._document()
        records = [document] if isinstance(document, dict) else document
        if not isinstance(records, list):
            raise InvalidInput(f"{self.name}: the file must hold a list of objects, not {_kind(document)}")
        for number, record in enumerate(records, start=1):
            if not isinstance(record, dict):
                problem = InvalidRecord(f"a record must be an object, not {_kind(record)}", row=number)
                refuse(problem, self.name, on_error)
            else:
                yield SourceRow(number, (self.total or 0) * number // len(records), record)

    def _document(self) -> Any:
        with opened(self._path, self.name, self._compression) as stream:
            blocks, n_bytes = [], 0
            for block in stream.text_blocks():
                blocks.append(block)
                n_bytes += len(block)
                if n_bytes > MAX_DOCUMENT_BYTES:
                    raise InvalidInput(
                        f"{self.name}: the file has more than {MAX_DOCUMENT_BYTES >> 20} MiB;"
                        " write it as JSON lines (.jsonl), one object a line"
                    )
            start = stream.offset - n_bytes
        text = b"".join(blocks)
        del blocks
        if not text.strip():
            raise InvalidInput(f"{self.name}: the file is empty; it must hold a list of objects")
        try:
            return parsed(text, start)
        except InvalidRecord as error:
            hint = "; a file with one object a line is named .jsonl" if _looks_like_lines(text) else ""
            raise InvalidInput(f"{self.name}: {error.reason}{hint}") from None


class JsonLines:
    """One object a line, from a file or, where ``stdin`` is given, from a pipe; blank lines are skipped."""

    unit = "bytes"

    def __init__(self, path: str, *, compression: str | None = None, stdin: BinaryIO | None = None) -> None:
        self.name = path
        self.rereadable = stdin is None
        self.total: int | None = file_status(path).st_size if stdin is None else None
        self._path = path
        self._compression = compression
        self._stdin = stdin

    def fingerprint(self) -> str | None:
        """From absolute path, size and modification time; None for a pipe."""
        return file_fingerprint([self._path]) if self._stdin is None else None

    def columns(self) -> None:
        """None: JSON declares no names."""

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The objects in order, each with the number of its line."""
        if self._stdin is not None:
            yield from self._rows(ByteStream(self._stdin, self.name), on_error)
        else:
            with opened(self._path, self.name, self._compression) as stream:
                yield from self._rows(stream, on_error)

    def _rows(self, stream: ByteStream, on_error: OnError | None) -> Iterator[SourceRow]:
        number = 0
        try:
            for start, line in byte_lines(stream):
                number += 1
                if not line.strip(JSON_BLANKS):
                    continue
                try:
                    record = _line_record(line, start)
                except InvalidRecord as error:
                    error.row = number
                    refuse(error, self.name, on_error)
                else:
                    if number == 1 and record.keys() == {EXPORT_HEADER}:
                        raise exported(self.name)
                    yield SourceRow(number, stream.position, record)
        except InvalidRecord as error:
            if error.source is None:  # a line too long to be read
                error.source, error.row = self.name, number + 1
            raise


def _line_record(line: bytes, start: int) -> dict[str, Any]:
    record = parsed(line, start)
    if not isinstance(record, dict):
        raise InvalidRecord(f"a line must hold an object, not {_kind(record)}")
    return record


def standard_input(stdin: BinaryIO | None) -> JsonLines:
    """JSON lines from ``stdin``, or from this process's standard input."""
    return JsonLines("stdin", stdin=sys.stdin.buffer if stdin is None else stdin)


def parsed(text: bytes, start: int) -> Any:
    """What the JSON ``text``, which begins at byte ``start`` of its file, stands for.

    Raises InvalidRecord (without its row) for what is not JSON or not UTF-8, and for integers beyond 64 bits,
    which orjson would turn into floats.
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        problem = text_problem(text, start)
        reason = problem[0] if problem and problem[0].startswith("not UTF-8") else f"not JSON: {error}"
        raise InvalidRecord(reason) from None
    if _LONG_INTEGER in text.translate(_DIGITS_TO_ZERO):
        _check_integers(text)
    return value


def _check_integers(text: bytes) -> None:
    def check(digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            raise InvalidRecord(f"the integer {digits[:30]} does not fit in 64 bits; write it as text")
        return 0

    try:
        json.loads(text, parse_int=check)
    except RecursionError:
        raise InvalidRecord("the JSON is nested too deep") from None


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _looks_like_lines(text: bytes) -> bool:
    line, _, rest = text.strip().partition(b"\n")
    if not rest:
        return False
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        return False
