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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from embedstore.errors import StoreLocked
from embedstore.forking import tell_forked

if TYPE_CHECKING:
    import subprocess

_LOG = logging.getLogger("embedstore")
_PAUSE_SECONDS = 60.0
"""So long after a builder failed no other is begun for the same space."""
_PARENT = os.fspath(Path(__file__).resolve().parents[1])
"""Where this package is; in a checkout nothing else leads there."""
_LEFT: list[subprocess.Popen[bytes]] = []
"""Builders of stores that were closed; they go on, and are reaped when the next one begins."""
_BREATH_SECONDS = 2.0
"""So long at least, and as long as the last build took, a space is left alone after a build that went well."""
_NICENESS = 10


@dataclass(slots=True)
class _Builder:
    """A process that builds, what it writes to its standard error, and when it began."""

    process: subprocess.Popen[bytes]
    complaints: IO[bytes]
    began: float

    def complaint(self) -> str:
        """The last line that it wrote."""
        lines: list[str] = []
        if not self.complaints.closed:
            self.complaints.seek(0)
            lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {self.process.returncode}"


class Builders:
    """The builders that this process has begun, at most one for each space at a time."""

    def __init__(self, path: Path, database: str | None) -> None:
        self._path = path
        self._database = database
        self._running: dict[int, _Builder] = {}
        self._not_before: dict[int, float] = {}
        self._guard = threading.Lock()
        tell_forked(self)

    def forget_parent(self) -> None:
        """Leave builders to the parent."""
        self._guard = threading.Lock()
        self._running = {}

    def begin(self, space_id: int, collection: str, space: str) -> bool:
        """Begin to build the index of a space, unless that was done just now; whether it was begun."""
        with self._guard:
            if not self._is_free(space_id, f"{collection}/{space}"):
                return False
            try:
                self._running[space_id] = self._spawn(collection, space)
            except OSError as error:  # searches go on without
                self._not_before[space_id] = time.monotonic() + _PAUSE_SECONDS
                _LOG.warning("the index of '%s/%s' is not built: %s", collection, space, error)
                return False
        _LOG.info("building the index of '%s/%s' in the background", collection, space)
        return True

    def _is_free(self, space_id: int, name: str) -> bool:
        """Whether a builder may begin; says so where the last one failed."""
        last = self._running.get(space_id)
        if last is not None:
            code = last.process.poll()
            if code is None:
                return False
            del self._running[space_id]
            took = time.monotonic() - last.began
            self._not_before[space_id] = time.monotonic() + max(_BREATH_SECONDS, took)
            if code not in (0, StoreLocked.exit_code):  # another builder at it is no failure
                self._not_before[space_id] = time.monotonic() + _PAUSE_SECONDS
                _LOG.warning("the index of '%s' could not be built in the background: %s", name, last.complaint())
            last.complaints.close()
        return time.monotonic() >= self._not_before.get(space_id, 0.0)

    def _spawn(self, collection: str, space: str) -> _Builder:
        import subprocess  # few processes build, and every one that searches would pay for it
        import tempfile

        told = {"path": os.fspath(self._path), "database": self._database, "collection": collection, "space": space}
        _LEFT[:] = [left for left in _LEFT if left.poll() is None]
        complaints = tempfile.TemporaryFile()
        started = subprocess.Popen(
            [sys.executable, "-m", "embedstore.building"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            stderr=complaints, start_new_session=True, cwd="/",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [_PARENT, os.environ.get("PYTHONPATH")]))},
        )  # fmt: skip
        assert started.stdin is not None
        with suppress(BrokenPipeError):
            started.stdin.write(json.dumps(told).encode())
            started.stdin.close()
        return _Builder(started, complaints, time.monotonic())

    def close(self) -> None:
        """Leave builders to themselves, whatever they may still write."""
        with self._guard:
            running, self._running = list(self._running.values()), {}
            for builder in running:
                builder.complaints.close()
                if builder.process.poll() is None:
                    _LEFT.append(builder.process)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no builder that this process began runs; whether that came about in time."""
        import subprocess

        stop = None if timeout is None else time.monotonic() + timeout
        for running in list(self._running.values()):
            try:
                running.process.wait(None if stop is None else max(stop - time.monotonic(), 0))
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
            print(" ".join(str(error).splitlines()), file=sys.stderr)
            sys.exit(error.exit_code)


if __name__ == "__main__":
    build(json.load(sys.stdin))
