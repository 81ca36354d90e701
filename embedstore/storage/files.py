"""Files and folders on disk: made for their owner alone, whole or not at all, and made durable."""

from __future__ import annotations

import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedstore.errors import EmbedstoreError, StorageFailed, StorageFull

SCRATCH_CHARACTERS = 41
"""How much longer the name of a scratch folder is than what it is for, at most."""


def make_private(folder: Path) -> None:
    """Create a folder, and those above it that are missing, readable by their owner alone; OSError where it cannot.

    Their names are durable then: what is synced in a folder is lost where the folder's own name is not.
    """
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        sync_folder(folder.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Give a file new content, whole or not at all for whoever reads it; not synced. OSError where there is no room."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(descriptor, content)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Write every byte; ``os.write`` alone writes what there is room for, and says nothing of the rest."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise the system's errors as the store's, with the file or ``path``."""
    try:
        yield
    except EmbedstoreError:
        raise
    except OSError as error:
        if is_full(error):
            raise StorageFull(f"no space left for {path}; nothing was kept of this") from error
        raise StorageFailed(f"{error.filename or path}: {error.strerror or error}") from error


def has_content(path: Path) -> bool:
    """Whether there is a file that is not empty."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def is_full(error: OSError) -> bool:
    """Whether an operation failed for want of space."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def scratch_folder(target: Path, word: str) -> Iterator[Path]:
    """A private folder beside ``target``, gone when the block ends; those that killed processes left are gone first."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.{word}"):
        if not _is_running(left.name.split(".")[-2].partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    folder = target.parent / f".{target.name}.{os.getpid()}-{secrets.token_hex(6)}.{word}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:
        pass  # it runs, for another user
    return True


def sync_folder(folder: Path) -> None:
    """Make names that were created or renamed in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
