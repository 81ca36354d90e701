"""Makes a new store of what is whole in a damaged one, and lists what is not. The damaged store is never changed."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedstore.errors import DamagedRow, InvalidInput, NotAStore, StorageFailed, StoreDamaged, StoreNotFound
from embedstore.failpoints import reach
from embedstore.maintenance.archive import storage_errors
from embedstore.maintenance.log import LogPages, bring_in
from embedstore.maintenance.pages import PageFile
from embedstore.maintenance.reports import Problem, RepairReport
from embedstore.maintenance.spaces import SalvagedSpace, salvaged_spaces
from embedstore.metadata import metadata_json
from embedstore.model import Modality
from embedstore.names import check_collection_name, check_path
from embedstore.reading import record_fault
from embedstore.records import Batch, vector_is_whole
from embedstore.storage import catalog
from embedstore.storage.apart import copy_apart
from embedstore.storage.catalog import CollectionRow, SpaceRow, tuning_hash
from embedstore.storage.database import Transaction
from embedstore.storage.files import SCRATCH_CHARACTERS, make_private, scratch_folder, sync_folder
from embedstore.storage.fitted import DIRECTION, TRANSFORM, made_fitted, put_fitted, row_hash
from embedstore.storage.head import HEAD_NAME
from embedstore.storage.layout import DATABASE_NAME, ID_SHIFT, id_range
from embedstore.storage.sqlite import SQLiteDatabase
from embedstore.storage.sqlite_creation import PAGE_BYTES
from embedstore.storage.writing import CollectionWriter, SpaceVectors
from embedstore.version import __version__

_BATCH = 1000
_LOCK_SECONDS = 10.0
_MAX_LISTED = 1000
_MODALITIES = {one.value for one in Modality}


def repair(source: Path, target: Path) -> RepairReport:
    """Salvage the SQLite store in the folder ``source`` into a new store in the folder ``target``.

    Every record and every vector whose hash is right is brought over; the new store has an identity and a history of
    its own. Close other processes that write to the source first. Raises InvalidInput where ``target`` exists.
    """
    check_path(source)
    check_path(target, room=SCRATCH_CHARACTERS)
    if not (source / DATABASE_NAME).is_file():
        raise StoreNotFound(f"there is no store at {source}; repair reads a store's folder with its {DATABASE_NAME}")
    if target.exists():
        raise InvalidInput(f"{target} exists; repair makes a new store and needs a folder that does not exist yet")
    if target.resolve().is_relative_to(source.resolve()):
        raise InvalidInput(f"{target} lies in the store itself; give a folder outside of it")
    with storage_errors(target):
        make_private(target.parent)
    with storage_errors(target), scratch_folder(target, "repairing") as folder:
        reach("repair.begun")
        report = RepairReport(str(target))
        copy, log = _copied(source, folder, report)
        _note_lost_commits(source, folder, report)
        with _found_rows(copy, log, folder / "found.db", report) as found:
            _write_store(found, folder / "store", report)
        if not report.n_collections:
            raise StoreDamaged(
                f"nothing that is whole was found in {source / DATABASE_NAME}, and no new store was made; restore a"
                " backup"
            )
        os.rename(folder / "store", target)
        sync_folder(target.parent)
        reach("repair.renamed")
    return report


def _copied(source: Path, folder: Path, report: RepairReport) -> tuple[Path, LogPages]:
    """A copy of the database with its log brought in, and what came from the log."""
    copy = folder / DATABASE_NAME
    copy_apart(source / DATABASE_NAME, copy)
    log = source / f"{DATABASE_NAME}-wal"
    if not log.exists():
        return copy, LogPages()
    found = bring_in(log, copy, PAGE_BYTES)
    if found.n_damaged:
        what = f"{found.n_damaged:,} pages of the log are damaged: some records may be older than they were, or back"
        report.lost.append(Problem("database", log.name, what))
    return copy, found


def _note_lost_commits(source: Path, folder: Path, report: RepairReport) -> None:
    """List commits that were acknowledged in the source and are in neither its database nor its log."""
    with suppress(OSError):
        shutil.copyfile(source / HEAD_NAME, folder / HEAD_NAME)
    database = SQLiteDatabase(folder, lock_timeout=_LOCK_SECONDS)
    try:
        lost = database.lost_commits()
        if lost is not None:
            report.lost.append(Problem("database", DATABASE_NAME, lost))
    except (StoreDamaged, StorageFailed, NotAStore):
        pass  # what cannot be read is listed row by row
    finally:
        database.close()


_FOUND = (
    "CREATE TABLE collections (id INTEGER PRIMARY KEY, row TEXT)",
    "CREATE TABLE spaces (id INTEGER PRIMARY KEY, row TEXT)",
    "CREATE TABLE commits (id INTEGER PRIMARY KEY, n_records INTEGER, spaces TEXT)",
    "CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT, content TEXT, metadata TEXT, modality TEXT, uri TEXT,"
    " content_hash BLOB, row_hash BLOB)",
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, record INTEGER, row_hash BLOB, vec BLOB)",
    "CREATE TABLE fitted (space INTEGER, name TEXT, kind TEXT, description TEXT, body BLOB, PRIMARY KEY (space, name))",
    "CREATE TABLE tunings (space INTEGER PRIMARY KEY, report TEXT, measured_at TEXT)",
    "CREATE INDEX by_record ON vectors (record)",
    "CREATE INDEX by_key ON records (key)",
)
_OLDER = (
    f"SELECT id, key FROM records AS r WHERE EXISTS (SELECT 1 FROM records AS n WHERE n.key = r.key"
    f" AND n.id > r.id AND n.id / {ID_SHIFT} = r.id / {ID_SHIFT})"
)
"""Records that were deleted before others took their keys; a damaged log can bring them back."""
_WITHOUT_VECTOR = (
    "SELECT key FROM records AS r WHERE r.id BETWEEN ? AND ? AND NOT EXISTS"
    " (SELECT 1 FROM vectors AS v WHERE v.record = r.id AND v.id BETWEEN ? AND ?) ORDER BY r.id"
)
_WITHOUT_RECORD = (
    "SELECT DISTINCT record FROM vectors AS v WHERE record BETWEEN ? AND ?"
    " AND NOT EXISTS (SELECT 1 FROM records AS r WHERE r.id = v.record) ORDER BY record"
)


@contextmanager
def _found_rows(
    copy: Path, log: LogPages, path: Path, report: RepairReport
) -> Iterator[sqlite3.Connection]:
    """A scratch database of every row that was found, each once, in its newest version as far as can be told."""
    found = sqlite3.connect(path, isolation_level=None)
    try:
        found.execute("PRAGMA synchronous = OFF")
        found.execute("PRAGMA journal_mode = OFF")
        for statement in _FOUND:
            found.execute(statement)
        with PageFile(copy, PAGE_BYTES) as pages:
            if not pages.freelist_is_whole:
                what = (
                    "its header or its list of free pages is damaged: records that were deleted long ago may be among"
                    " those salvaged"
                )
                report.lost.append(Problem("database", DATABASE_NAME, what))
            if pages.n_missing:
                what = f"its last {pages.n_missing:,} pages are missing, with whatever was in them"
                report.lost.append(Problem("database", DATABASE_NAME, what))
            found.execute("BEGIN")
            for rowid, cells in pages.rows(log.pages, log.doubtful):
                _sort_in(found, rowid, cells, report)
            found.execute("COMMIT")
        for record_id, key in found.execute(_OLDER).fetchall():
            _lost(report, "record", repr(key), "two records with this key were found; the newer is kept")
            found.execute("DELETE FROM records WHERE id = ?", (record_id,))
        yield found
    finally:
        found.close()


def _sort_in(found: sqlite3.Connection, rowid: int, cells: tuple[Any, ...], report: RepairReport) -> None:
    """Put a row where it belongs, by its shape; rows of no table of interest are passed over."""
    if len(cells) == _N_RECORD and cells[0] is None and isinstance(cells[1], int) and cells[3] in _MODALITIES:
        _, _, key, modality, content, uri, metadata, content_hash, row_hash = cells
        row = (rowid, key, content, metadata, modality, uri, content_hash, row_hash)
        fault = record_fault(row)
        if fault is not None:
            _lost(report, "record", repr(key), fault)
            return
        before = found.execute("SELECT row_hash FROM records WHERE id = ?", (rowid,)).fetchone()
        if before is not None and before[0] != row_hash:
            _lost(report, "record", repr(key), "two versions of it were found; the newer is kept")
        found.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    elif len(cells) == _N_VECTOR and cells[0] is None and isinstance(cells[3], bytes) and isinstance(cells[4], bytes):
        if isinstance(cells[2], int):
            row_of = (rowid, cells[2], cells[3], cells[4])
            found.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", row_of)
    elif len(cells) == _N_FITTED and isinstance(cells[0], int) and cells[2] in (TRANSFORM, DIRECTION):
        with suppress(DamagedRow):
            made_fitted(cells)
            found.execute("INSERT OR REPLACE INTO fitted VALUES (?, ?, ?, ?, ?)", cells[:5])
    elif len(cells) == _N_TUNING and cells[0] is None and isinstance(cells[1], str):
        if tuning_hash(rowid, cells[1]) == cells[2]:
            measured = orjson.loads(cells[1]).get("measured_at", "")
            found.execute(
                "INSERT INTO tunings VALUES (?, ?, ?) ON CONFLICT (space) DO UPDATE SET report = excluded.report,"
                " measured_at = excluded.measured_at WHERE excluded.measured_at > measured_at",
                (rowid, cells[1], measured),
            )
    else:
        with suppress(DamagedRow, TypeError, ValueError):
            _sort_in_catalog(found, rowid, cells)


# The numbers of cells by which rows are told apart, together with what is in them.
_N_RECORD, _N_VECTOR, _N_COMMIT, _N_FITTED, _N_TUNING = 9, 5, 7, 6, 3
_N_COLLECTION, _N_SPACE = 5, 9
_N_OLD_COLLECTION, _N_OLD_SPACE = 9, 12  # of revisions 0001 and 0002
_NO_DIGEST = bytes(16)


def _sort_in_catalog(found: sqlite3.Connection, rowid: int, cells: tuple[Any, ...]) -> None:
    """The rows of collections, spaces and commits, as revision 0003 and those before it have them."""
    if cells[0] is not None:  # their first cell is the rowid; SQLite's own tables have others
        return
    if len(cells) == _N_COLLECTION and isinstance(cells[1], str):
        row = catalog.collection_row((rowid, cells[1], cells[2], 0, cells[3], 0, 0, _NO_DIGEST))
        _sort_in_collection(found, row, None)
    elif len(cells) == _N_OLD_COLLECTION and isinstance(cells[1], str):
        row = catalog.collection_row((rowid, *cells[1:8]))
        _sort_in_collection(found, row, row.n_records)
    elif len(cells) == _N_SPACE and isinstance(cells[2], str):
        _sort_in_space(found, catalog.space_row((rowid, *cells[1:], 0, 0, _NO_DIGEST)), None)
    elif len(cells) == _N_OLD_SPACE and isinstance(cells[2], str):
        space = catalog.space_row((rowid, *cells[1:]))
        _sort_in_space(found, space, space.n_live)
    elif len(cells) == _N_COMMIT and isinstance(cells[4], int) and isinstance(cells[6], str):
        catalog.space_states(cells[6])
        found.execute("INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", (rowid, cells[4], cells[6]))


def _sort_in_collection(found: sqlite3.Connection, row: CollectionRow, n_records: int | None) -> None:
    check_collection_name(row.name)
    text = orjson.dumps([row.name, row.default_space, n_records]).decode()
    found.execute("INSERT OR REPLACE INTO collections VALUES (?, ?)", (row.collection_id, text))


def _sort_in_space(found: sqlite3.Connection, space: SpaceRow, n_live: int | None) -> None:
    text = orjson.dumps([*space[1:9], n_live]).decode()
    found.execute("INSERT OR REPLACE INTO spaces VALUES (?, ?)", (space.space_id, text))


def _lost(report: RepairReport, part: str, name: str, what: str) -> None:
    if len(report.lost) < _MAX_LISTED:
        report.lost.append(Problem(part, name, what))


# ---- writing the new store


def _write_store(found: sqlite3.Connection, folder: Path, report: RepairReport) -> None:
    database = SQLiteDatabase(folder, lock_timeout=_LOCK_SECONDS)
    try:
        database.create(lambda transaction: catalog.note_store(transaction, __version__))
        known = dict(found.execute("SELECT id, row FROM collections ORDER BY id").fetchall())
        ids = [row[0] for row in found.execute(f"SELECT DISTINCT id / {ID_SHIFT} FROM records ORDER BY 1")]
        for collection_id in sorted({*known, *ids}):
            described = orjson.loads(known[collection_id]) if collection_id in known else None
            _write_collection(found, database, collection_id, described, report)
    finally:
        database.close()


def _write_collection(
    found: sqlite3.Connection, database: SQLiteDatabase, old_id: int, described: list[Any] | None, report: RepairReport
) -> None:
    """One collection with its spaces, records and vectors; ``described`` is None where its own row is lost."""
    name, default_space, n_records = described or (f"salvaged-{old_id}", "", None)
    newest = found.execute(
        "SELECT n_records FROM commits WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT 1", id_range(old_id)
    ).fetchone()
    n_records = n_records if newest is None else newest[0]
    if described is None:
        _lost(report, "collection", name, "its name and settings are lost; its records are kept under this name")
    spaces = salvaged_spaces(found, old_id, lambda space, what: _lost(report, "space", f"{name}/{space}", what))
    with database.write() as transaction:
        row = _create(transaction, name, default_space, spaces, found)
    report.n_collections += 1
    n_found, n_vectors = 0, dict.fromkeys(spaces, 0)
    stream = _records_with_vectors(found, old_id)
    while part := list(islice(stream, _BATCH)):
        n_found += len(part)
        _write_batch(database, row, part, spaces, n_vectors, report)
        reach("repair.batch")
    report.n_records += n_found
    report.n_vectors += sum(n_vectors.values())
    if n_records is not None and n_found != n_records:
        _lost(report, "collection", name, f"{n_found:,} of its {n_records:,} records were found whole")
        for (record_id,) in found.execute(_WITHOUT_RECORD, id_range(old_id)):
            what = "its row was not found, though a vector of it was"
            _lost(report, "record", f"{name}, number {record_id % ID_SHIFT:,}", what)
    for space_id, space in spaces.items():
        if space.n_written is not None and n_vectors[space_id] != space.n_written:
            what = f"{n_vectors[space_id]:,} of its {space.n_written:,} vectors were found whole"
            _lost(report, "space", f"{name}/{space.name}", what)
            for (key,) in found.execute(_WITHOUT_VECTOR, (*id_range(old_id), *id_range(space_id))):
                what = f"it has no vector in {space.name!r} now; if it had one, that was lost"
                _lost(report, "vector", f"{name}/{key!r}", what)


def _create(
    transaction: Transaction, name: str, default_space: str, spaces: dict[int, SalvagedSpace],
    found: sqlite3.Connection,
) -> CollectionRow:  # fmt: skip
    names = [space.name for space in spaces.values()]
    row = catalog.create_collection(transaction, name, default_space if default_space in names else names[0])
    for old_id, space in spaces.items():
        made = catalog.create_space(
            transaction, row.collection_id, space.name, dim=space.dim, metric=space.metric, encoder=space.encoder,
            fingerprint=space.fingerprint, recipe=space.recipe,
        )  # fmt: skip
        kept = found.execute("SELECT space, name, kind, description, body FROM fitted WHERE space = ?", (old_id,))
        for cells in kept.fetchall():
            if cells[1] or space.encoder:  # where the encoder is lost, so is what it is of
                put_fitted(transaction, made.space_id, made_fitted((*cells, row_hash(*cells))))
        for (report,) in found.execute("SELECT report FROM tunings WHERE space = ?", (old_id,)).fetchall():
            catalog.put_tuning(transaction, made.space_id, orjson.loads(report))
    return row


def _records_with_vectors(
    found: sqlite3.Connection, collection_id: int
) -> Iterator[tuple[tuple[Any, ...], list[tuple[int, bytes, bytes]]]]:
    """The records of a collection in order, each with its vectors as (id, hash, bytes)."""
    of_record = "SELECT id, row_hash, vec FROM vectors WHERE record = ? ORDER BY id"
    for row in found.execute("SELECT * FROM records WHERE id BETWEEN ? AND ? ORDER BY id", id_range(collection_id)):
        yield row, found.execute(of_record, (row[0],)).fetchall()


def _write_batch(
    database: SQLiteDatabase,
    collection: CollectionRow,
    part: list[tuple[tuple[Any, ...], list[tuple[int, bytes, bytes]]]],
    spaces: dict[int, SalvagedSpace],
    n_vectors: dict[int, int],
    report: RepairReport,
) -> None:
    batch = Batch()
    lines: dict[int, dict[int, bytes]] = {}
    for position, (row, vectors) in enumerate(part):
        _append(batch, position, row)
        for vector_id, hashed, vec in vectors:
            space_id = vector_id // ID_SHIFT
            if space_id not in spaces:
                continue
            if len(vec) == 4 * (spaces[space_id].dim or 0) and vector_is_whole(vec, hashed, row[1]):
                lines.setdefault(space_id, {})[position] = vec
            else:
                where = f"{collection.name}/{spaces[space_id].name}/{row[1]!r}"
                _lost(report, "vector", where, "it is not what was written")
    given = {}
    for space_id, by_position in lines.items():
        matrix = np.frombuffer(b"".join(by_position.values()), "<f4").reshape(len(by_position), -1)
        given[spaces[space_id].name] = SpaceVectors(list(by_position), matrix)
        n_vectors[space_id] += len(by_position)
    with database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        writer.upsert(batch, given)
        writer.finish()


def _append(batch: Batch, position: int, row: tuple[Any, ...]) -> None:
    _, key, content, metadata, modality, uri, content_hash, row_hash = row
    batch.keys.append(key)
    batch.contents.append(content)
    batch.uris.append(uri)
    batch.metadata.append(metadata.encode())
    batch.content_hashes.append(content_hash)
    batch.row_hashes.append(row_hash)
    batch.row_numbers.append(position + 1)
    batch.modalities.append(Modality(modality))
    metadata_json(orjson.loads(metadata), None, batch.kinds)
