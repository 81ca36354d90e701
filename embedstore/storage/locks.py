"""The lock that lets one process write at a time, and tells the others who holds it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from embedstore.errors import StorageFailed, StoreLocked

if TYPE_CHECKING:
    from filelock import FileLock


def _file_lock(path: Path) -> FileLock:
    from filelock import FileLock  # here, because readers never need it and it takes long to import

    return FileLock(path, thread_local=False, mode=0o600)


class ProcessLock:
    """An advisory lock on a file, held by one thread of one process; freed by the system when that process dies.

    The holder's process id is written beside the lock, so that whoever waits too long can be told.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._holder_path = path.with_suffix(".holder")
        self._thread_lock = threading.Lock()
        self._file_lock = _file_lock(path)
        self._pid = os.getpid()

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock for the block; StoreLocked names the holder after ``timeout`` seconds of waiting."""
        with self.kept_from_threads(timeout) as kept:
            if not kept:
                raise self._refused(timeout)
            with self.kept_from_processes(timeout):
                yield

    @contextmanager
    def kept_from_threads(self, timeout: float) -> Iterator[bool]:
        """Keep the other threads of this process from the lock for the block; whether that came about in time."""
        if self._pid != os.getpid():  # after a fork the child must not share its parent's descriptor
            self.__init__(self._path)  # type: ignore[misc]
        kept = self._thread_lock.acquire(timeout=max(timeout, 0))
        try:
            yield kept
        finally:
            if kept:
                self._thread_lock.release()

    @contextmanager
    def kept_from_processes(self, timeout: float) -> Iterator[None]:
        """Keep other processes from the lock for the block; other threads of this one are kept already."""
        self._acquire_file(timeout)
        try:
            self._write_holder()
            yield
        finally:
            self._file_lock.release()

    def _acquire_file(self, timeout: float) -> None:
        from filelock import Timeout

        try:
            self._file_lock.acquire(timeout=max(timeout, 0), poll_interval=0.01)
        except Timeout:
            raise self._refused(timeout) from None
        except OSError as error:
            raise StorageFailed(
                f"the lock {self._path} cannot be taken: {error.strerror or error}; writing needs a folder that"
                " can be written to"
            ) from error

    def _write_holder(self) -> None:
        descriptor = os.open(self._holder_path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            note = f"{os.getpid()} {os.path.basename(sys.argv[0] or 'python')}"[:99]
            os.pwrite(descriptor, note.encode(errors="replace").ljust(100), 0)
        finally:
            os.close(descriptor)

    def _refused(self, timeout: float) -> StoreLocked:
        try:
            holder = self._holder_path.read_text(errors="replace").split()
        except OSError:
            holder = []
        who = f"process {holder[0]} ({' '.join(holder[1:])})" if holder else "another process"
        return StoreLocked(
            f"{self._path.parent} is being written to by {who}; waited {timeout:g} s. Try again when it is done,"
            " or give a longer --timeout"
        )
