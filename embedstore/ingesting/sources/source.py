"""What every reader gives: a source of rows that knows its name, its size and how to tell that it changed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from embedstore.errors import InvalidInput, InvalidRecord, StorageFailed

HASH_BYTES = 16

_FAILURES = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""What is no fault of the path given, but of the machine."""

OnError = Callable[[InvalidRecord], None]
"""Told of what cannot be read; what is known of it stands in the error's ``record``."""
"""Told of a row that cannot be read, which is then left out."""


class SourceRow(NamedTuple):
    """One record as its source holds it.

    ``number`` is its 1-based place (in JSON lines the line, elsewhere the record), ``position`` how many of
    the source's units are consumed so far, ``fields`` what it holds; a missing value is None.
    """

    number: int
    position: int
    fields: dict[str, Any]


class Source(Protocol):
    """Rows from one place.

    ``name`` is shown in messages. ``rereadable`` says that ``rows()`` may be called again and gives the same.
    ``total`` is the size in ``unit`` ("bytes" or "rows"), None where it cannot be known.
    """

    name: str
    rereadable: bool
    total: int | None
    unit: str

    def fingerprint(self) -> str | None:
        """Hexadecimal BLAKE2b-128 that changes when the source does; None where that cannot be told."""

    def columns(self) -> list[str] | None:
        """The fields' names where the format declares them before the rows, else None."""

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order; InvalidRecord or InvalidInput for what cannot be read.

        With ``on_error`` a row at fault is handed to it and left out, as long as those after it can be read.
        """


def file_fingerprint(paths: list[str]) -> str:
    """BLAKE2b-128 over absolute path, size and modification time (ns) of each path, in hexadecimal."""
    hashed = blake2b(digest_size=HASH_BYTES)
    for path in paths:
        found = file_status(path)
        line = f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}\n"
        hashed.update(line.encode("utf-8", "surrogateescape"))
    return hashed.hexdigest()


def file_status(path: str) -> os.stat_result:
    """``os.stat``, with its failure as InvalidInput."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None


def unreadable(path: str, error: Exception) -> InvalidInput | StorageFailed:
    """The error for a file or folder that cannot be opened or read, in one line."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return InvalidInput(f"there is no file {path!r}")
    if isinstance(error, OSError) and error.errno in _FAILURES:
        return StorageFailed(f"{path!r} cannot be read: {error.strerror or error}")
    reason = error.strerror if isinstance(error, OSError) else None
    return InvalidInput(f"{path!r} cannot be read: {reason or error}")


def repeated_name(names: Sequence[str]) -> str | None:
    """The first of ``names`` that stands there twice; None where each is its own."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def refuse(
    error: InvalidRecord, source: str, on_error: OnError | None, record: Mapping[str, Any] | None = None
) -> None:
    """Raise ``error`` with its source's name and what is known of the record; tell ``on_error`` instead, if given."""
    error.source, error.record = source, dict(record or {})
    if on_error is None:
        raise error
    on_error(error)


@contextmanager
def named(name: str) -> Iterator[None]:
    """Put the source's name on every InvalidRecord that passes."""
    try:
        yield
    except InvalidRecord as error:
        if error.source is None:
            error.source = name
        raise


def exported(name: str) -> InvalidInput:
    """The error for a file of whole records, which would be taken for data."""
    return InvalidInput(f"{name} was written by export; bring it in with import, which keeps its vectors")
