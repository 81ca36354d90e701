"""The lock that lets one process write at a time, and tells the others who holds it."""

from __future__ import annotations

import fcntl
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.errors import StorageFailed, StorageFull, StoreLocked
from embedstore.forking import tell_forked
from embedstore.storage.files import is_full

_POLL_SECONDS = 0.01
_NOTE_BYTES = 100


class ProcessLock:
    """An advisory lock on a file, held by one thread of one process; freed by the system when that process dies.

    The holder's process id and program are written into the file, so that whoever waits too long can be told.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._address = os.fspath(path)
        self._descriptor: int | None = None
        self._make_anew()
        tell_forked(self)

    def _make_anew(self) -> None:
        self._thread_lock = threading.Lock()
        self._taken_with: threading.Lock | None = None
        self._note = _note()

    def forget_parent(self) -> None:
        """Let go of the parent's lock, which would else be held for as long as the child has it open."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._make_anew()

    @contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock for the block; StoreLocked names the holder after ``timeout`` seconds of waiting."""
        self.take(timeout)
        try:
            yield
        finally:
            self.give_back()

    def take(self, timeout: float) -> None:
        """Take the lock, until ``give_back``; StoreLocked names the holder after ``timeout`` seconds of waiting."""
        lock = self._thread_lock
        if not lock.acquire(blocking=False) and not lock.acquire(timeout=max(timeout, 0)):
            raise self._refused(timeout)
        try:
            self._taken(timeout)
        except BaseException:
            lock.release()
            raise
        self._taken_with = lock

    def give_back(self) -> None:
        """Give back what ``take`` took; nothing in a process that was forked meanwhile, which does not have it."""
        lock, self._taken_with = self._taken_with, None
        if lock is not None:
            try:
                if self._descriptor is not None:
                    self._give_back(self._descriptor)
            finally:
                lock.release()

    @contextmanager
    def kept_from_threads(self, timeout: float) -> Iterator[bool]:
        """Keep the other threads of this process from the lock for the block; whether that came about in time."""
        lock = self._thread_lock
        kept = lock.acquire(timeout=max(timeout, 0))
        try:
            yield kept
        finally:
            if kept:
                lock.release()

    @contextmanager
    def kept_from_processes(self, timeout: float) -> Iterator[None]:
        """Keep other processes from the lock for the block; other threads of this one are kept already."""
        descriptor = self._taken(timeout)
        try:
            yield
        finally:
            self._give_back(descriptor)

    def _taken(self, timeout: float) -> int:
        """Take the lock from other processes, and leave a note of who has it."""
        self._descriptor = descriptor = self._locked(timeout)
        try:
            if os.pread(descriptor, _NOTE_BYTES, 0) != self._note:  # reading is cheaper, and nearly always enough
                os.pwrite(descriptor, self._note, 0)
        except OSError:
            pass  # a full disk does not keep anybody from the lock
        except BaseException:
            self._give_back(descriptor)
            raise
        return descriptor

    def _give_back(self, descriptor: int) -> None:
        if self._descriptor == descriptor:
            self._descriptor = None
            # Not by closing alone: a process that another program forked may have the descriptor open too.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _locked(self, timeout: float) -> int:
        """A descriptor that holds the lock."""
        try:
            descriptor = os.open(self._address, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            kind = StorageFull if is_full(error) else StorageFailed
            raise kind(
                f"the lock {self._path} cannot be taken: {error.strerror or error}; writing needs a folder that"
                " can be written to"
            ) from error
        try:
            self._wait(descriptor, timeout)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _wait(self, descriptor: int, timeout: float) -> None:
        give_up = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise self._refused(timeout) from None
            except OSError as error:
                raise StorageFailed(f"the lock {self._path} cannot be taken: {error.strerror or error}") from error
            time.sleep(_POLL_SECONDS)

    def _refused(self, timeout: float) -> StoreLocked:
        try:
            holder = self._path.read_text(errors="replace").split()
        except OSError:
            holder = []
        who = f"process {holder[0]} ({' '.join(holder[1:])})" if holder else "another process"
        return StoreLocked(
            f"{self._path.parent} is being written to by {who}; waited {timeout:g} s. Try again when it is done,"
            " or give a longer --timeout"
        )


def _note() -> bytes:
    """What a process writes into a lock that it holds."""
    note = f"{os.getpid()} {os.path.basename(sys.argv[0] or 'python')}"
    return note.encode(errors="replace")[: _NOTE_BYTES - 1].ljust(_NOTE_BYTES)
