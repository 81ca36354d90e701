"""Turns the errors of SQLite's driver into the store's, with the path and what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from embedstore.errors import DamagedRow, EmbedstoreError, NotAStore, StorageFailed, StorageFull, StoreLocked
from embedstore.storage.damage import damaged
from embedstore.storage.head import read_head

ERRORS = (sqlite3.Error, DamagedRow, UnicodeDecodeError)
"""What is the store's error: the driver's, the last one where SQLite's message quotes bytes of a damaged schema."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into the store's, with the path and what to do."""
    try:
        yield
    except ERRORS as error:
        raise_translated(error, path)


def raise_translated(error: BaseException, path: Path) -> NoReturn:
    """Raise an error; one of ``ERRORS`` as the store's."""
    if isinstance(error, UnicodeDecodeError):
        raise damaged(path, "SQLite says what is wrong with it in bytes that are no text") from error
    if isinstance(error, sqlite3.Error):
        raise _translation(error, path) from error
    if isinstance(error, DamagedRow):
        raise damaged(path, str(error)) from error
    raise error


def _translation(error: sqlite3.Error, path: Path) -> EmbedstoreError:
    text = str(error)
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if extended == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StorageFull(f"no space left to open {path}: SQLite needs a small file beside it; free some space")
    if code == sqlite3.SQLITE_FULL or "database or disk is full" in text:  # a backup's error has no code
        return StorageFull(
            f"no space left for {path}; this write was not kept, those before it were. Free space and write again"
        )
    if code == sqlite3.SQLITE_BUSY:
        return StoreLocked(f"{path} is locked by a program that is not embedstore ({text}); close it and try again")
    if code == sqlite3.SQLITE_NOTADB and read_head(path.parent) is not None:
        return damaged(path, "its header is not that of a SQLite database")
    if code == sqlite3.SQLITE_NOTADB:
        return NotAStore(f"{path} is not a SQLite database, so this folder is no store (or its header is damaged)")
    if code == sqlite3.SQLITE_CORRUPT or "decode to UTF-8" in text or "malformed" in text:
        return damaged(path, text)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        if not os.access(path, os.R_OK) and os.path.exists(path):
            return StorageFailed(f"{path} cannot be read by this user ({text}); give the user the right to")
        return StorageFailed(f"{path} cannot be opened for this ({text}); check that the folder can be written to")
    return StorageFailed(f"{path}: {text}")
