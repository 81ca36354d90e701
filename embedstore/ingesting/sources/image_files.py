"""Pictures in files, each of them one record."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.source import OnError, SourceRow, file_fingerprint, file_status, refuse
from embedstore.pictures import PictureFile


class ImageFile(NamedTuple):
    """One file: the key of its record, and where it lies."""

    key: str
    path: str


class ImageFiles:
    """Pictures below a folder in order; each row has ``key``, ``image`` and what its header says of it.

    A link that leads out of the folder is refused, as is what is no regular file.
    """

    rereadable = True
    unit = "bytes"

    def __init__(self, name: str, folder: str, paths: Sequence[str]) -> None:
        self.name = name
        self._folder = folder
        self.files = tuple(
            ImageFile(os.path.relpath(path, folder).replace(os.sep, "/"), path) for path in paths
        )
        self.total: int | None = sum(_size(path) for path in paths)

    def fingerprint(self) -> str:
        """From absolute path, size and modification time of every file that is there."""
        return file_fingerprint([file.path for file in self.files if os.path.exists(file.path)])

    def columns(self) -> list[str]:
        """The names that every row has."""
        return ["key", "image", "path", "width", "height", "mode", "format", "taken", "modified"]

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """A row a file, numbered from 1. Only the header is decoded here."""
        position = 0
        for number, file in enumerate(self.files, start=1):
            position += _size(file.path)
            try:
                picture = PictureFile(self._folder, file.path).read()
                modified = file_status(file.path).st_mtime
            except InvalidInput as error:
                refuse(InvalidRecord(str(error), row=number), self.name, on_error, {"image": file.path})
                continue
            yield SourceRow(number, position, {
                "key": file.key, "image": picture, "path": file.key, "width": picture.width, "height": picture.height,
                "mode": picture.mode, "format": picture.format, "taken": picture.taken,
                "modified": datetime.fromtimestamp(modified, UTC).isoformat(timespec="seconds"),
            })  # fmt: skip


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # told when it is read
        return 0
