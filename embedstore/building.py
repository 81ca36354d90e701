"""Builds indexes in processes of their own, so that nobody who writes or searches waits for one.

A builder is told its store on standard input, since the address of a database may hold a password. It takes the lock
of the cache that it builds; where another has it, it ends at once. A builder that is killed leaves the old cache as it
was.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.forking import tell_forked

if TYPE_CHECKING:
    import subprocess

_LOG = logging.getLogger("embedstore")
_PAUSE_SECONDS = 60.0
"""So long after a builder began no other is begun for the same space: it may have failed, or be outrun by writers."""
_NICENESS = 10


class Builders:
    """The builders that this process has begun, at most one for each space at a time."""

    def __init__(self, path: Path, database: str | None) -> None:
        self._path = path
        self._database = database
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._begun: dict[int, float] = {}
        self._guard = threading.Lock()
        tell_forked(self)

    def forget_parent(self) -> None:
        """Leave builders to the parent."""
        self._guard = threading.Lock()
        self._running = {}

    def begin(self, space_id: int, collection: str, space: str) -> bool:
        """Begin to build the index of a space, unless that was done just now; whether it was begun."""
        with self._guard:
            running = self._running.get(space_id)
            if running is not None and running.poll() is None:
                return False
            if time.monotonic() - self._begun.get(space_id, -_PAUSE_SECONDS) < _PAUSE_SECONDS:
                return False
            self._begun[space_id] = time.monotonic()
            try:
                self._running[space_id] = self._spawn(collection, space)
            except OSError as error:  # searches go on without
                _LOG.warning("the index of '%s/%s' is not built: %s", collection, space, error)
                return False
        _LOG.info("building the index of '%s/%s' in the background", collection, space)
        return True

    def _spawn(self, collection: str, space: str) -> subprocess.Popen[bytes]:
        import subprocess  # few processes build, and every one that searches would pay for it

        told = {"path": os.fspath(self._path), "database": self._database, "collection": collection, "space": space}
        started = subprocess.Popen(
            [sys.executable, "-m", "embedstore.building"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        assert started.stdin is not None
        with suppress(BrokenPipeError):
            started.stdin.write(json.dumps(told).encode())
            started.stdin.close()
        return started

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no builder of this process runs; whether that came about in time."""
        import subprocess

        stop = None if timeout is None else time.monotonic() + timeout
        for running in list(self._running.values()):
            try:
                running.wait(None if stop is None else max(stop - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                return False
        return True


def build(told: dict[str, str | None]) -> None:
    """Build the index of one space, as ``Builders`` tells it."""
    import embedstore
    from embedstore.errors import EmbedstoreError

    with suppress(OSError):
        os.nice(_NICENESS)
    path, collection = told["path"], told["collection"]
    assert path is not None and collection is not None
    with embedstore.open(path, database=told["database"], build_in_background=False) as store:
        try:
            store.collection(collection).index(space=told["space"], wait=False)
        except EmbedstoreError as error:
            _LOG.warning("%s", error)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    build(json.load(sys.stdin))
