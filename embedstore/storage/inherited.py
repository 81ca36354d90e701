"""Which SQLite files a forked process must not open: those that its parent had open when it was forked.

SQLite keeps, for each process, which locks it holds on a file. A child gets a copy of that, but not the locks. A
connection that it opens to such a file then takes itself to be locked in already: it reads snapshots that others write
over, and others take the file for one that nobody uses. So connections are closed before a fork, and files whose
connections cannot be closed, since they are in use, are refused in the child.
"""

from __future__ import annotations

import os
import sqlite3
import weakref
from pathlib import Path
from typing import Any

from embedstore.errors import StorageFailed
from embedstore.forking import at_forks


class TrackedConnection(sqlite3.Connection):
    """A connection that is known to be open, until it is closed."""

    def __init__(self, database: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(database, *args, **kwargs)
        self.file: tuple[int, int] | None = None

    def track(self, path: str | os.PathLike[str]) -> None:
        """Note which file this is a connection to."""
        self.file = file_identity(path)
        _open.add(self)

    def close(self) -> None:
        """Close the connection."""
        super().close()
        _open.discard(self)


_open: weakref.WeakSet[TrackedConnection] = weakref.WeakSet()
_inherited: set[tuple[int, int]] = set()


def file_identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a file from another that has its name; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def refuse_inherited(path: Path) -> None:
    """Raise StorageFailed where the parent of this process had a file open when it forked."""
    if _inherited and file_identity(path) in _inherited:
        raise StorageFailed(
            f"{path} was being read or written when this process was forked, so SQLite's locks do not hold in it; fork"
            " before reading begins, or start processes by 'spawn'"
        )


def _note_inherited() -> None:
    """In the child: what the parent had open is not to be opened here."""
    _inherited.update(one.file for one in list(_open) if one.file is not None)


at_forks(in_child=_note_inherited)
