"""Runs statements on one connection to SQLite: how its SQL is spelled, bulk inserts, copies."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from embedstore.forking import inside_sqlite
from embedstore.storage.database import Parameters, RecordRows, Row, VectorRows

_FETCHED_ROWS = 256
_PAGES_A_STEP = 4096


class SQLiteDialect:
    """How SQLite spells what differs."""

    name = "sqlite"
    json_type = "text"
    for_update = ""  # there is one writer

    def members(self, parameter: str, kind: str) -> str:
        return f"(SELECT value FROM json_each(:{parameter}))"

    def list_parameter(self, values: Sequence[Any]) -> Any:
        return orjson.dumps(values).decode()

    def json_text(self, value: bytes) -> str:
        return value.decode()

    def metadata_out(self, value: Any) -> dict[str, Any]:
        return orjson.loads(value)  # type: ignore[no-any-return]


class SQLiteTransaction:
    """One transaction on one connection."""

    dialect = SQLiteDialect()

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def all(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        with inside_sqlite:
            return self._connection.execute(sql, parameters or {}).fetchall()

    def stream(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        with inside_sqlite:
            return _fetched(self._connection.execute(sql, parameters or {}))

    def one(self, sql: str, parameters: Parameters | None = None) -> Row | None:
        with inside_sqlite:
            return self._connection.execute(sql, parameters or {}).fetchone()  # type: ignore[no-any-return]

    def run(self, sql: str, parameters: Parameters | None = None) -> int:
        with inside_sqlite:
            return self._connection.execute(sql, parameters or {}).rowcount

    def many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        with inside_sqlite:
            self._connection.executemany(sql, parameters)

    def copy_to(self, target: Path) -> None:
        """Copy what this transaction sees into a new file."""
        with inside_sqlite:
            write_copy(self._connection, target)

    def alone(self) -> None:
        pass  # every write transaction is

    def insert_records(self, records: RecordRows) -> None:
        # One statement, as for vectors.
        self.run(
            "INSERT INTO records (record_id, collection_id, key, modality, content, uri, metadata, content_hash,"
            " row_hash) SELECT :first + row.key, :collection, json_extract(row.value, '$[0]'), :modality,"
            " json_extract(row.value, '$[1]'), json_extract(row.value, '$[2]'), json_extract(row.value, '$[3]'),"
            " CASE WHEN json_type(row.value, '$[1]') = 'null' THEN NULL"
            " ELSE substr(:content_hashes, 1 + 16 * row.key, 16) END,"
            " substr(:row_hashes, 1 + 16 * row.key, 16) FROM json_each(:rows) AS row",
            {
                "first": records.first_record_id, "collection": records.collection_id, "modality": records.modality,
                "content_hashes": records.content_hashes, "row_hashes": records.row_hashes,
                "rows": orjson.dumps(records.rows).decode(),
            },
        )  # fmt: skip

    def insert_vectors(self, vectors: VectorRows) -> None:
        # One statement cuts the rows out of one blob: half the time of a statement a row, and without the
        # interpreter's lock, so that another thread can prepare the next batch meanwhile.
        self.run(
            "INSERT INTO vectors (vector_id, space_id, record_id, row_hash, vec)"
            " SELECT :first + row.key, :space, row.value, substr(:row_hashes, 1 + 16 * row.key, 16),"
            " substr(:vecs, 1 + :n_bytes * row.key, :n_bytes) FROM json_each(:records) AS row",
            {
                "first": vectors.first_vector_id, "space": vectors.space_id, "n_bytes": vectors.n_bytes,
                "row_hashes": vectors.row_hashes, "vecs": vectors.vecs,
                "records": orjson.dumps(vectors.record_ids).decode(),
            },
        )  # fmt: skip

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        marks = ",".join("?" * len(columns))
        with inside_sqlite:
            self._connection.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", rows)


def _fetched(cursor: sqlite3.Cursor) -> Iterator[Row]:
    while True:
        with inside_sqlite:
            rows = cursor.fetchmany(_FETCHED_ROWS)
        if not rows:
            return
        yield from rows


def write_copy(connection: sqlite3.Connection, target: Path) -> None:
    """Copy what a connection sees into a new file, and sync it; OSError where there is one already."""
    descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # a copy that fails is thrown away
            copy.execute("PRAGMA synchronous = OFF")  # synced below, once
            # Signals are answered when Python code runs, between two steps.
            connection.backup(copy, pages=_PAGES_A_STEP, progress=lambda *_: None)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
