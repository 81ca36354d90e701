"""Backup archives: one file that holds a store as it was at one commit, with the hashes to prove it.

An archive is a ZIP file without compression, of two members: ``store.db``, a SQLite database, and after it
``BACKUP.json``, which says what it is: format, store, commit, collections with their digests, and the size and SHA-256
of ``store.db``. ZIP keeps its table of contents at the end, so a file that was cut off has none.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from embedstore.errors import (
    InvalidInput,
    NotAStore,
    UnsupportedFormat,
)
from embedstore.failpoints import reach
from embedstore.maintenance.reports import BackupReport, RestoreReport
from embedstore.maintenance.verifying import verify
from embedstore.names import check_path
from embedstore.storage import catalog
from embedstore.storage.damage import damaged
from embedstore.storage.database import Database
from embedstore.storage.files import SCRATCH_CHARACTERS, make_private, scratch_folder, sync_folder
from embedstore.storage.files import storage_errors as file_errors
from embedstore.storage.head import HEAD_NAME, write_head
from embedstore.storage.layout import APPLICATION, CACHE_NAME, DATABASE_NAME, LOCK_NAME, SCHEMA_REVISION
from embedstore.storage.locks import ProcessLock
from embedstore.storage.revision import KNOWN_REVISIONS
from embedstore.storage.sqlite import SQLiteDatabase
from embedstore.storage.sqlite_errors import translated
from embedstore.storage.sqlite_statements import SQLiteTransaction
from embedstore.version import __version__

FORMAT = 1
_ABOUT = "BACKUP.json"
_CHUNK_BYTES = 1 << 20
_MAX_ABOUT_BYTES = 64 << 20
_LOCK_SECONDS = 10.0


def backup(database: Database, target: Path, *, overwrite: bool = False) -> BackupReport:
    """Write the store as it is at its newest commit to one file; others may read and write meanwhile.

    The copy is verified before it gets its name. Raises InvalidInput where the file exists (unless ``overwrite``),
    StoreDamaged where the store is not whole, StorageFull; then there is no file.
    """
    if not isinstance(database, SQLiteDatabase):
        raise InvalidInput(
            f"{database.address} is backed up with PostgreSQL's own tools: pg_dump --format=custom --file=FILE DATABASE"
        )
    check_path(target, room=SCRATCH_CHARACTERS)
    if target.resolve().is_relative_to(database.folder.resolve()):
        raise InvalidInput(f"{target} lies in the store itself; give a file outside of {database.folder}")
    if target.exists() and not overwrite:
        raise InvalidInput(f"{target} exists; give another file, or overwrite it (--overwrite, overwrite=True)")
    if not target.parent.is_dir():
        raise InvalidInput(f"{target.parent} is not a folder; give a file in a folder that exists")
    reach("backup.begun")
    with storage_errors(target), scratch_folder(target, "partial") as scratch:
        lost = database.lost_commits()
        if lost is not None:
            raise damaged(database.address, f"{lost}. It was not backed up")
        copy = scratch / DATABASE_NAME
        database.copy_to(copy)
        reach("backup.copied")
        about = _described(scratch, database.address)
        archive = scratch / "archive"
        _write_archive(archive, copy, about)
        reach("backup.archived")
        os.replace(archive, target)
        sync_folder(target.parent)
        reach("backup.renamed")
    return BackupReport(
        str(target), target.stat().st_size, about["commit"], len(about["collections"]),
        sum(one["n_records"] for one in about["collections"]),
    )  # fmt: skip


def _described(folder: Path, address: str) -> dict[str, Any]:
    """What the database copied into a folder from ``address`` holds; StoreDamaged where it is not whole."""
    copy = SQLiteDatabase(folder, lock_timeout=_LOCK_SECONDS)
    try:
        found = verify(copy, None)
        if found.problems:
            first = found.problems[0]
            name = "" if first.part == "database" else f"{first.part} {first.name}: "  # the copy's place is of no use
            more = "" if len(found.problems) == 1 else f" (the first of {len(found.problems):,} problems)"
            raise damaged(address, f"{name}{first.what}{more}. It was not backed up")
        with copy.read() as transaction:
            return _about(transaction)
    finally:
        copy.close()


def _about(transaction: SQLiteTransaction) -> dict[str, Any]:
    head = transaction.newest_head()
    assert head is not None  # verified before
    return {
        "format": FORMAT, "made_by": f"embedstore {__version__}", "taken_at": catalog.now(),
        "store": catalog.store_uuid(transaction), "revision": SCHEMA_REVISION,
        "commit": head.number,
        "collections": [
            {
                "name": row.name, "n_records": row.n_records, "digest": row.digest.hex(),
                "spaces": {
                    space.name: {"n_vectors": space.n_live, "digest": space.digest.hex()}
                    for space in catalog.spaces_of(transaction, row.collection_id).values()
                },
            }
            for row in catalog.all_collections(transaction)
        ],
    }  # fmt: skip


def _write_archive(path: Path, database: Path, about: dict[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with database.open("rb") as source, archive.open(DATABASE_NAME, "w", force_zip64=True) as member:
                about["n_bytes"], about["sha256"] = _copied(source, member)
            archive.writestr(_ABOUT, json.dumps(about, indent=1, sort_keys=True))
        out.flush()
        os.fsync(out.fileno())


def _copied(source: Any, target: Any) -> tuple[int, str]:
    """Copy a stream to its end; the number of bytes, and their SHA-256 in hex."""
    hashed, n_bytes = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        hashed.update(chunk)
        target.write(chunk)
        n_bytes += len(chunk)
    return n_bytes, hashed.hexdigest()


def restore(source: Path, folder: Path) -> RestoreReport:
    """Make a store in ``folder`` from a backup. The folder must not hold a store; caches that are in it may stay.

    Raises InvalidInput for a file that is no backup, or a cut or changed one, and where a store is in the way;
    UnsupportedFormat for a backup of a newer release. Then the folder is as it was.
    """
    for path in (source, folder):
        check_path(path)
    _refuse_occupied(folder)
    if not source.is_file():
        raise InvalidInput(f"there is no file {source}; give a backup that 'embedstore backup' wrote")
    with storage_errors(folder), _opened(source) as (about, database):
        existed = folder.is_dir()
        make_private(folder)
        reach("restore.begun")
        partial = folder / f".{DATABASE_NAME}.{secrets.token_hex(6)}.restoring"
        try:
            _unpack(source, database, about, partial)
            _check_is_database(source, partial)
            reach("restore.copied")
            _put_in_place(partial, folder)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                if not existed:
                    folder.rmdir()
            raise
        reach("restore.renamed")
    return RestoreReport(
        str(folder), about["commit"], len(about["collections"]),
        sum(one["n_records"] for one in about["collections"]), about["taken_at"],
    )  # fmt: skip


def _refuse_occupied(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotAStore(f"{folder} is a file; a store is a folder")
    if not folder.is_dir():
        return
    in_the_way = [name for name in (DATABASE_NAME, f"{DATABASE_NAME}-wal", HEAD_NAME) if (folder / name).exists()]
    if in_the_way:
        raise InvalidInput(
            f"{folder} holds a store already ({in_the_way[0]}); restore into a new folder, or move the old one away"
        )
    allowed = {CACHE_NAME, LOCK_NAME}
    others = [
        path.name for path in folder.iterdir()
        if path.name not in allowed and not path.name.endswith(".restoring")
    ]  # fmt: skip
    if others:
        raise NotAStore(f"{folder} holds other files ({min(others)!r} ...); restore into a new or an empty folder")
    for left in folder.glob("*.restoring"):  # of a restore that was killed
        left.unlink(missing_ok=True)


@contextmanager
def _opened(source: Path) -> Iterator[tuple[dict[str, Any], BinaryIO]]:
    """What an archive says of itself, and its database as a stream; InvalidInput where it is no whole archive."""
    try:
        with zipfile.ZipFile(source) as archive:
            if sorted(archive.namelist()) != [_ABOUT, DATABASE_NAME]:
                raise InvalidInput(f"{source} is a ZIP file but no backup that 'embedstore backup' wrote")
            if archive.getinfo(_ABOUT).file_size > _MAX_ABOUT_BYTES:
                raise InvalidInput(f"{source} is damaged: its description is too long")
            about = _checked_about(source, archive.read(_ABOUT))
            if archive.getinfo(DATABASE_NAME).file_size != about["n_bytes"]:
                raise InvalidInput(f"{source} is damaged: its database has another size than was written")
            with archive.open(DATABASE_NAME) as member:
                yield about, member  # type: ignore[misc]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise InvalidInput(f"{source} is no whole backup: {error}; it may have been cut off or changed") from error


def _checked_about(source: Path, text: bytes) -> dict[str, Any]:
    try:
        about = json.loads(text)
        newer = about["format"] != FORMAT
        whole = (
            type(about["n_bytes"]) is int and type(about["sha256"]) is str and type(about["commit"]) is int
            and type(about["revision"]) is str and type(about["taken_at"]) is str
            and all(type(one["n_records"]) is int for one in about["collections"])
        )  # fmt: skip
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(f"{source} is no backup: its description cannot be read") from None
    if newer:
        raise UnsupportedFormat(
            f"{source} is a backup of format {about['format']!r}, made by {about.get('made_by')}; this release,"
            f" {__version__}, reads format {FORMAT}: restore it with that release"
        )
    if whole and about["revision"] not in KNOWN_REVISIONS:
        raise UnsupportedFormat(
            f"{source} holds tables of revision {about['revision']!r}, made by {about.get('made_by')}; this release,"
            f" {__version__}, knows up to {SCHEMA_REVISION!r}: restore it with that release"
        )
    if not whole:
        raise InvalidInput(f"{source} is no backup: its description lacks what it should have")
    return about  # type: ignore[no-any-return]


def _unpack(source: Path, database: BinaryIO, about: dict[str, Any], target: Path) -> None:
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        found = _copied(database, out)
        out.flush()
        os.fsync(out.fileno())
    if found != (about["n_bytes"], about["sha256"]):
        raise InvalidInput(f"{source} is damaged: its database is not what was written; take another backup")


def _check_is_database(source: Path, path: Path) -> None:
    """Refuse what is a right archive of something else than a store; older tables are upgraded when it is opened."""
    with path.open("rb") as file:
        header = file.read(100)
    if header[:16] != b"SQLite format 3\0" or int.from_bytes(header[68:72], "big") != APPLICATION:
        raise InvalidInput(f"{source} holds a database that is no store of embedstore")


def _put_in_place(partial: Path, folder: Path) -> None:
    with ProcessLock(folder / LOCK_NAME).held(_LOCK_SECONDS):
        if (folder / DATABASE_NAME).exists():
            raise InvalidInput(f"{folder} holds a store that was made meanwhile; restore into a new folder")
        for left in (folder / CACHE_NAME).glob("keywords-*"):  # of a later commit it could not be caught up
            left.unlink(missing_ok=True)
        os.rename(partial, folder / DATABASE_NAME)
        sync_folder(folder)
        sync_folder(folder.parent)
        _note_head(folder)


def _note_head(folder: Path) -> None:
    """Note the newest commit of a restored database beside it, so that its loss would be noticed from now on."""
    database = SQLiteDatabase(folder, lock_timeout=_LOCK_SECONDS)
    try:
        with database.read() as transaction:
            head = transaction.newest_head()
    finally:
        database.close()
    if head is not None:
        descriptor = write_head(os.fspath(folder / HEAD_NAME), head, None)
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise the system's and SQLite's errors as the store's."""
    with file_errors(path), translated(path):
        yield
