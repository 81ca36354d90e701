"""Reads files that SQLite may have open, without taking its locks away.

POSIX forgets every lock that a process has on a file as soon as the process closes any descriptor of that file. So a
SQLite file must not simply be opened and closed beside a connection to it, by whatever part of the process.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.forking import tell_forked

_COPY = """
import shutil, sys
try:
    shutil.copyfile(sys.argv[1], sys.argv[2])
except OSError as error:
    sys.exit(error.errno or 1)
"""


def copy_apart(source: Path, target: Path) -> None:
    """Copy a file in a process of its own; OSError where that fails."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _COPY, os.fspath(source), os.fspath(target)], capture_output=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        code = done.returncode if done.returncode in errno.errorcode else errno.EIO
        raise OSError(code, f"cannot be copied ({os.strerror(code)})", os.fspath(source))


class _Descriptors:
    """One descriptor a file for the whole process, open as long as anybody holds it."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held: dict[tuple[int, int], list[int]] = {}  # by device and inode: descriptor, holders
        tell_forked(self)

    def hold(self, path: Path) -> tuple[int, int]:
        """Keep a descriptor of a file; what to release it by. OSError where it cannot be opened."""
        with self._guard:
            status = os.stat(path)
            held = self._held.get((status.st_dev, status.st_ino))
            if held is None:
                descriptor = os.open(path, os.O_RDONLY)
                status = os.fstat(descriptor)
                held = self._held.setdefault((status.st_dev, status.st_ino), [descriptor, 0])
            held[1] += 1
            return status.st_dev, status.st_ino

    def descriptor(self, key: tuple[int, int]) -> int:
        """The descriptor of a file that is held."""
        return self._held[key][0]

    def release(self, key: tuple[int, int]) -> None:
        """Give a descriptor back; the last to do so closes it, after its own connections."""
        with self._guard:
            held = self._held.get(key)
            if held is None:
                return  # the parent's, in a forked child
            held[1] -= 1
            if held[1] == 0:
                os.close(self._held.pop(key)[0])

    def forget_parent(self) -> None:
        """Start anew in a forked child, whose descriptors are the parent's."""
        self._guard = threading.Lock()
        self._held = {}


descriptors = _Descriptors()


@contextmanager
def held(path: Path) -> Iterator[int]:
    """A descriptor of a file for the block."""
    key = descriptors.hold(path)
    try:
        yield descriptors.descriptor(key)
    finally:
        descriptors.release(key)
