"""The newest commit, noted in a file beside the database, so that a database that lost it is noticed.

Every commit takes the next number of the store, and has a name. The database keeps them in ``commits``, or in
``store_info`` for a commit that belongs to no collection, and they are written to the file ``HEAD`` once the commit is
durable. A database with a smaller number than the file has lost commits that
were acknowledged: its log was deleted or damaged, or it was copied without its log. The file is not synced: after a
power cut it may be older than the database, or unreadable, which says nothing.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import NamedTuple

HEAD_NAME = "HEAD"
_BYTES = 64


class Head(NamedTuple):
    """A commit's number in its store, and its random name."""

    number: int
    name: str

    def to_text(self) -> str:
        """As ``store_info`` keeps it."""
        return f"{self.number} {self.name}"

    @classmethod
    def from_text(cls, text: str) -> Head:
        """Read what ``to_text`` wrote; ValueError for anything else."""
        number, name = text.split(" ")
        if not number.isdecimal():
            raise ValueError(text)
        return cls(int(number), name)


NO_COMMIT = Head(0, "-")


def write_head(path: str, head: Head, descriptor: int | None) -> int | None:
    """Note the newest commit in the file HEAD; ``descriptor`` is what an earlier call gave, None at first.

    A failure is passed over: the note only helps to find damage.
    """
    body = head.to_text()
    line = f"{body} {zlib.crc32(body.encode()):08x}".ljust(_BYTES - 1) + "\n"
    try:
        if descriptor is not None and not os.fstat(descriptor).st_nlink:  # deleted, by a user who accepts a loss
            os.close(descriptor)
            descriptor = None
        if descriptor is None:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(descriptor, line.encode(), 0)
    except OSError:
        pass
    return descriptor


def read_head(folder: Path) -> Head | None:
    """The commit noted last; None where there is no note, or none that can be read."""
    try:
        body, _, check = (folder / HEAD_NAME).read_bytes()[:_BYTES].decode().rstrip().rpartition(" ")
        if int(check, 16) != zlib.crc32(body.encode()):
            return None
        return Head.from_text(body)
    except (OSError, ValueError):
        return None
