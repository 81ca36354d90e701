"""One connection to SQLite: how it is opened, set up and checked, and what it remembers between transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from embedstore.errors import StorageFailed
from embedstore.storage.database import Memory
from embedstore.storage.files import has_content
from embedstore.storage.inherited import TrackedConnection, refuse_inherited

_BUSY_MILLISECONDS = 10_000


class Connection(TrackedConnection):
    """A connection that is kept for the next transaction, unless it is not ``lasting``.

    ``memory`` is what its transactions read of the catalog. It holds until another connection commits. ``pool`` is the
    list that it came from or is new to.
    """

    lasting = True
    pool: list[Connection] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: Memory = {}
        self.process = os.getpid()
        self._version = -1

    def recall(self) -> None:
        """Begin the transaction's snapshot, and forget what is remembered of another state of the database."""
        (version,) = self.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self.memory.clear()
            self._version = version


def connect(path: Path, mode: str) -> Connection:
    """Open a database to write ('rw') or to read ('ro'), which never checkpoints then, even if it is closed last.

    Raises StorageFailed where its log cannot be read, or SQLite does not take a setting.
    """
    refuse_inherited(path)
    address = f"file:{quote(os.fsencode(path))}?mode={mode}"
    connection = _opened(address)
    if mode == "ro" and not may_write(path.parent) and not _can_read(connection):
        # Without the right to write there is no shared memory to read a log by. A store that was closed cleanly has
        # none; what another user writes from now on is seen by connections that are opened later.
        connection.close()
        if has_content(Path(f"{path}-wal")):
            raise StorageFailed(
                f"{path} has a log that only a user with the right to write to the folder can read; let one"
                " open and close the store"
            )
        connection = _opened(f"{address}&immutable=1")
        connection.lasting = False
    connection.track(path)
    try:
        for name, value in pragmas(mode).items():
            connection.execute(f"PRAGMA {name} = {value}").fetchall()
            (found,) = connection.execute(f"PRAGMA {name}").fetchone()
            if str(found).lower() != value:
                raise StorageFailed(f"{path}: SQLite set {name} to {found!r}, not {value!r} as asked")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def impatient(connection: sqlite3.Connection) -> Iterator[None]:
    """Within the block, the connection waits for nobody: a reader may go on for long."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")


def pragmas(mode: str) -> dict[str, str]:
    """How a connection is set up."""
    if mode == "ro":
        return {"query_only": "1", "cache_size": "-16384"}
    return {
        "journal_mode": "wal",
        "synchronous": "2",  # FULL: NORMAL loses acknowledged commits in a power cut
        "foreign_keys": "1",
        "wal_autocheckpoint": "0",
        "cache_size": "-65536",
    }


def may_write(folder: Path) -> bool:
    """Whether this user may write to a folder."""
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _opened(address: str) -> Connection:
    return sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000,
        factory=Connection,
    )  # fmt: skip


def _can_read(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        return False
    return True
