"""Checks a whole store: every row against its hash, every count and digest, every cache file against the rows.

Nothing is changed. What cannot be read is a problem like any other, so a damaged store gives a report, not an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from embedstore.errors import EmbedstoreError, StorageFailed, StoreDamaged
from embedstore.indexing.recipes import find_recipe
from embedstore.maintenance.cache_checks import check_caches
from embedstore.maintenance.reports import VerifyReport
from embedstore.metadata import FieldKinds, metadata_json
from embedstore.reading import RECORD_COLUMNS, record_fault
from embedstore.records import vector_is_whole
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Database, Row, Transaction
from embedstore.storage.digests import shift_digest
from embedstore.storage.fitted import all_fitted
from embedstore.storage.layout import ID_SHIFT, id_range
from embedstore.storage.sqlite import SQLiteDatabase
from embedstore.transforms import checked_transform, is_derived, parents_of

_CHUNK = 2000
MAX_PROBLEMS = 1000
"""After so many problems of one collection or space, the rest are only counted."""


def verify(database: Database, caches: Path | None) -> VerifyReport:
    """Check the database and, where ``caches`` is their folder, its caches; one snapshot."""
    report = VerifyReport()
    if isinstance(database, SQLiteDatabase):
        with noting(report, "database", database.address):
            for what in database.structural_faults():
                report.add("database", database.address, what)
    with noting(report, "database", database.address), database.read() as transaction:
        _check_store(transaction, report)
        for collection in _collections(transaction, report):
            _check_collection(transaction, collection, report)
        if caches is not None and caches.is_dir():
            check_caches(transaction, caches, report)
    return report


@contextmanager
def noting(report: VerifyReport, part: str, name: str) -> Iterator[None]:
    """Turn what damage raises into a problem of the report; other errors, such as a missing store, stay errors."""
    try:
        yield
    except StoreDamaged as error:
        report.add(part, name, error.what)
    except StorageFailed as error:
        if not os.access(name, os.R_OK):  # which says nothing of what is in it
            raise
        report.add(part, name, str(error))


class _Limited:
    """Notes problems of one kind of rows, the first of them in full and the rest by their number."""

    def __init__(self, report: VerifyReport, part: str) -> None:
        self._report = report
        self._part = part
        self._n = 0

    def add(self, name: str, what: str) -> None:
        self._n += 1
        if self._n <= MAX_PROBLEMS:
            self._report.add(self._part, name, what)

    def close(self, where: str) -> None:
        if self._n > MAX_PROBLEMS:
            self._report.add(self._part, where, f"{self._n - MAX_PROBLEMS:,} more like these")


def _check_store(transaction: Transaction, report: VerifyReport) -> None:
    """The rows about the store itself."""
    info: dict[str, str] = dict(transaction.all("SELECT name, value FROM store_info"))
    for name in ("uuid", "last_collection_id", "last_space_id", "head", "needs"):
        if name not in info:
            report.add("database", "store_info", f"the row {name!r} is missing")
    for name, table, column in (
        ("last_collection_id", "collections", "collection_id"), ("last_space_id", "spaces", "space_id")
    ):  # fmt: skip
        row = transaction.one(f"SELECT max({column}) FROM {table}")
        newest = 0 if row is None or row[0] is None else row[0]
        if not str(info.get(name, "")).isdecimal() or int(info[name]) < newest:
            report.add("database", "store_info", f"{name} is {info.get(name)!r}, but id {newest} was given out")
    _check_owners(transaction, report)


def _check_owners(transaction: Transaction, report: VerifyReport) -> None:
    """That there are no rows but those of collections and spaces that there are."""
    row = transaction.one("SELECT count(*) FROM fitted WHERE space_id NOT IN (SELECT space_id FROM spaces)")
    assert row is not None
    if row[0]:
        report.add("database", "fitted", f"{row[0]:,} of its rows belong to no space")
    for table, of in (("records", "collection"), ("vectors", "space"), ("commits", "collection")):
        row_id = {"records": "record_id", "vectors": "vector_id", "commits": "commit_key"}[table]
        row = transaction.one(
            f"SELECT count(*) FROM {table} WHERE {row_id} / {ID_SHIFT} NOT IN (SELECT {of}_id FROM {of}s)"
        )
        assert row is not None
        if row[0]:
            report.add("database", table, f"{row[0]:,} of its rows belong to no {of}")


def _collections(transaction: Transaction, report: VerifyReport) -> list[CollectionRow]:
    names = [row[0] for row in transaction.all("SELECT name FROM collections ORDER BY collection_id")]
    found = []
    for name in names:
        with noting(report, "collection", repr(name)):
            row = catalog.find_collection(transaction, name)
            if row is None:
                report.add("collection", repr(name), "it cannot be found by its name")
            else:
                found.append(row)
    return found


def _check_collection(transaction: Transaction, collection: CollectionRow, report: VerifyReport) -> None:
    report.n_collections += 1
    for check in (_check_records, _check_commits, _check_spaces):
        with _read(report, "collection", collection.name):
            check(transaction, collection, report)


@contextmanager
def _read(report: VerifyReport, part: str, name: str) -> Iterator[None]:
    """Like ``noting``, for the driver's own errors within one transaction too."""
    import sqlite3

    try:
        with noting(report, part, name):
            yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        report.add(part, name, f"it cannot be read: {error}")


def _check_records(transaction: Transaction, collection: CollectionRow, report: VerifyReport) -> None:
    low, high = id_range(collection.collection_id)
    known = catalog.field_kinds(transaction, collection.collection_id)
    faults = _Limited(report, "record")
    digest, n_records, newest = catalog.EMPTY_DIGEST, 0, low
    hashes: list[bytes] = []
    for row in transaction.stream(
        f"SELECT {RECORD_COLUMNS}, r.collection_id FROM records AS r"
        " WHERE r.record_id BETWEEN :low AND :high ORDER BY r.record_id",
        {"low": low, "high": high},
    ):
        n_records += 1
        newest = row[0]
        name = f"{collection.name}/{row[1]!r}"
        fault = record_fault(row[:8]) or _metadata_fault(row[3], known)
        if row[8] != collection.collection_id:
            fault = f"it is noted under collection {row[8]!r}"
        if fault is not None:
            faults.add(name, fault)
        if isinstance(row[7], bytes) and len(row[7]) == 16:
            hashes.append(row[7])
        if len(hashes) == _CHUNK:
            digest, hashes = shift_digest(digest, added=hashes), []
    digest = shift_digest(digest, added=hashes)
    faults.close(collection.name)
    report.n_records += n_records
    if n_records != collection.n_records:
        what = f"it has {n_records:,} records; {collection.n_records:,} were written"
        report.add("collection", collection.name, what)
    if digest != collection.digest:
        report.add("collection", collection.name, "the digest of its records is not the one that was written")
    if newest - low > collection.last_serial:
        report.add("collection", collection.name, "a record has a number that was not given out yet")


def _metadata_fault(text: str, known: FieldKinds) -> str | None:
    """What is wrong with metadata whose hash is right: a field that the collection does not know."""
    kinds = FieldKinds()
    metadata_json(orjson.loads(text), None, kinds)
    for path, kind in kinds - known:
        return f"its field {'.'.join(path)!r} ({kind}) is not among the fields of the collection"
    return None


def _check_spaces(transaction: Transaction, collection: CollectionRow, report: VerifyReport) -> None:
    spaces = catalog.spaces_of(transaction, collection.collection_id)
    if collection.default_space not in spaces:
        report.add("collection", collection.name, f"its space {collection.default_space!r} is missing")
    for space in spaces.values():
        report.n_spaces += 1
        name = f"{collection.name}/{space.name}"
        for what in _configuration_faults(space):
            report.add("space", name, what)
        with _read(report, "space", name):
            catalog.tuning_of(transaction, space.space_id)
        with _read(report, "space", name):
            all_fitted(transaction, space.space_id)
            if is_derived(space):
                checked_transform(transaction, space, parents_of(space, spaces))
        with _read(report, "space", name):
            _check_vectors(transaction, collection, space, report)


def _configuration_faults(space: SpaceRow) -> Iterator[str]:
    from embedstore.encoders.spec import EncoderSpec

    try:
        find_recipe(space.recipe)
    except EmbedstoreError as error:
        yield str(error)
    if not space.encoder:
        if space.fingerprint:
            yield "it has the fingerprint of an encoder, but no encoder"
        return
    try:
        spec = EncoderSpec.from_json(space.encoder)
    except EmbedstoreError as error:
        yield f"its encoder's specification cannot be read: {error}"
        return
    if spec.fingerprint != space.fingerprint:
        yield "its encoder's specification and fingerprint differ"
    if space.dim != spec.dim:
        yield f"its vectors have {space.dim} numbers; its encoder makes {spec.dim}"


def _check_vectors(
    transaction: Transaction, collection: CollectionRow, space: SpaceRow, report: VerifyReport
) -> None:
    low, high = id_range(space.space_id)
    faults = _Limited(report, "vector")
    digest, n_vectors, newest = catalog.EMPTY_DIGEST, 0, low
    hashes: list[bytes] = []
    for vector_id, of_space, record_id, vec, hashed, key in transaction.stream(
        "SELECT v.vector_id, v.space_id, v.record_id, v.vec, v.row_hash, r.key FROM vectors AS v"
        " LEFT JOIN records AS r ON r.record_id = v.record_id"
        " WHERE v.vector_id BETWEEN :low AND :high ORDER BY v.vector_id",
        {"low": low, "high": high},
    ):
        n_vectors += 1
        newest = vector_id
        name = f"{collection.name}/{space.name}/{vector_id - low}"
        if key is None or record_id // ID_SHIFT != collection.collection_id:
            faults.add(name, f"its record {record_id} is not there")
        elif of_space != space.space_id or not isinstance(vec, bytes) or len(vec) != 4 * (space.dim or 0):
            faults.add(name, f"it is not a vector of {space.dim} numbers of this space")
        elif not vector_is_whole(vec, hashed, key):
            faults.add(name, f"the vector of {key!r} is not what was written")
        elif not np.isfinite(np.frombuffer(vec, "<f4")).all():
            faults.add(name, f"the vector of {key!r} holds numbers that are not finite")
        if isinstance(hashed, bytes) and len(hashed) == 16:
            hashes.append(hashed)
        if len(hashes) == _CHUNK:
            digest, hashes = shift_digest(digest, added=hashes), []
    digest = shift_digest(digest, added=hashes)
    faults.close(f"{collection.name}/{space.name}")
    report.n_vectors += n_vectors
    where = f"{collection.name}/{space.name}"
    if n_vectors != space.n_live:
        report.add("space", where, f"it has {n_vectors:,} vectors; {space.n_live:,} were written")
    if digest != space.digest:
        report.add("space", where, "the digest of its vectors is not the one that was written")
    if newest - low > space.last_seq:
        report.add("space", where, "a vector has a number that was not given out yet")


def _check_commits(transaction: Transaction, collection: CollectionRow, report: VerifyReport) -> None:
    """The history: every commit from the log's floor on is there, and the logs are those that it wrote."""
    mine = {"collection": collection.collection_id}
    low, high = id_range(collection.collection_id)
    commits: dict[int, Row] = {
        row[0] - low: row[1:]
        for row in transaction.all(
            "SELECT commit_key, commit_id, number, last_serial, n_records, digest, spaces FROM commits"
            " WHERE commit_key BETWEEN :low AND :high ORDER BY commit_key",
            {"low": low, "high": high},
        )
    }
    first = collection.log_floor
    numbers = [row[1] for row in commits.values()]
    if set(commits) != set(range(first, collection.last_change + 1)) or numbers != sorted(numbers):
        report.add("log", collection.name, f"its commits are not those from {first} to {collection.last_change}")
    records = _by_change(
        transaction.stream("SELECT change, record_id FROM changed_records WHERE collection_id = :collection", mine)
    )
    vectors = _by_change(
        (change, (space, seq))
        for change, space, seq in transaction.stream(
            "SELECT d.change, d.space_id, d.seq FROM dead_vectors AS d JOIN spaces AS s ON s.space_id = d.space_id"
            " WHERE s.collection_id = :collection",
            mine,
        )
    )
    for change in sorted({*records, *vectors} - set(commits)):
        report.add("log", collection.name, f"the logs name change {change}, which has no commit")
    for change, (name, _, last_serial, n_records, digest, spaces) in commits.items():
        if change and change <= collection.log_floor:
            continue  # what it logged is no longer there
        left = collection._replace(
            last_change=change, last_serial=last_serial, n_records=n_records, digest=bytes(digest)
        )
        wanted = catalog.commit_id(bytes(name)[:8], left, spaces, records.get(change, []), vectors.get(change, []))
        if bytes(name) != wanted:
            report.add("log", collection.name, f"what commit {change} changed is not what was written")


def _by_change(rows: Iterator[tuple[int, Any]]) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = {}
    for change, value in rows:
        grouped.setdefault(change, []).append(value)
    return grouped
