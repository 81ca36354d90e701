"""Text and Markdown files, each of them one record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.bytestream import opened, without_bom
from embedstore.ingesting.sources.lines import text_problem
from embedstore.ingesting.sources.source import (
    OnError,
    SourceRow,
    file_fingerprint,
    file_status,
    named,
    refuse,
)

MAX_TEXT_BYTES = 64 << 20


class TextFile(NamedTuple):
    """One file: the key of its record, where it lies, and how it is compressed ("gz", "zst" or None)."""

    key: str
    path: str
    compression: str | None


class TextFiles:
    """Files of UTF-8 text in order; each row has ``key``, ``text``, ``uri``, ``name`` and ``modified``.

    ``left_out`` holds the data files (.csv and so on) that lie in the same folder and are not read.
    """

    rereadable = True
    unit = "bytes"

    def __init__(self, name: str, files: Sequence[TextFile], left_out: Sequence[str] = ()) -> None:
        self.name = name
        self.files = tuple(files)
        self.left_out = tuple(left_out)
        self.total: int | None = sum(file_status(file.path).st_size for file in files)

    def fingerprint(self) -> str:
        """From absolute path, size and modification time of every file."""
        return file_fingerprint([file.path for file in self.files])

    def columns(self) -> list[str]:
        """The names that every row has."""
        return ["key", "text", "uri", "name", "modified"]

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """A row a file, numbered from 1."""
        position = 0
        for number, file in enumerate(self.files, start=1):
            status = file_status(file.path)
            position += status.st_size
            try:
                with named(self.name):
                    text = _read_text(file)
            except InvalidRecord as error:
                error.row = number
                refuse(error, self.name, on_error)
                continue
            fields = {
                "key": file.key,
                "text": text,
                "uri": file.path,
                "name": os.path.basename(file.path),
                "modified": datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds"),
            }
            yield SourceRow(number, position, fields)


def _read_text(file: TextFile) -> str:
    blocks, n_bytes = [], 0
    with opened(file.path, file.path, file.compression) as stream:
        for block in stream.blocks():
            blocks.append(block)
            n_bytes += len(block)
            if n_bytes > MAX_TEXT_BYTES:
                raise InvalidRecord(f"the file {file.key!r} has over {MAX_TEXT_BYTES >> 20} MiB; cut it up")
    whole = b"".join(blocks)
    try:
        text = without_bom(whole, file.path)
    except InvalidInput as error:
        raise InvalidRecord(str(error)) from None
    problem = text_problem(text, len(whole) - len(text))
    if problem is not None:
        raise InvalidRecord(f"the file {file.key!r} cannot be read: {problem[0]}")
    return text.decode()
