"""Writes the rows that an ingest skipped to a file of JSON lines, with the reason of each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from embedstore.errors import InvalidInput, InvalidRecord, StorageFailed
from embedstore.pictures import Picture


class Rejects:
    """The rejects file; without a path, rows are only counted. Made anew at each run."""

    def __init__(self, path: str | None, sources: Sequence[str] = ()) -> None:
        for source in sources:
            if path is not None and _same_file(path, source):
                raise InvalidInput(f"the rejects file {path!r} is the input itself; give it another name")
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Rejects:
        if self._path is not None:
            try:
                self._file = Path(self._path).open("wb")
            except OSError as error:
                raise StorageFailed(f"{self._path} cannot be written: {error.strerror}") from error
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, error: InvalidRecord, record: Mapping[str, Any]) -> None:
        """Add a row."""
        if self._file is None:
            return
        line = {
            "source": error.source, "row": error.row, "field": error.field, "error": error.reason,
            "record": {str(name): _plain(value) for name, value in record.items()},
        }  # fmt: skip
        self._file.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samefile(path, other)
    except (OSError, ValueError):
        return False


def _plain(value: Any) -> Any:
    """What JSON can hold of a value: text that is no Unicode comes escaped, anything unknown as its repr."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, (bool, int, float)):
        return value if not isinstance(value, int) or -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Picture):
        return value.path or "bytes"
    return repr(value)[:1000]
