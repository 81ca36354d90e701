"""Runs statements on one connection to SQLite: how its SQL is spelled, bulk inserts, copies."""

from __future__ import annotations

import functools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from embedstore.forking import inside_sqlite
from embedstore.storage.database import (
    FEW_ROWS,
    KeyTaken,
    Mark,
    Memory,
    PackedRecord,
    Parameters,
    RecordRows,
    Row,
    VectorRows,
)
from embedstore.storage.head import Head
from embedstore.storage.layout import ID_SHIFT, id_range

_FETCHED_ROWS = 256
_PAGES_A_STEP = 4096
_FEW_IDS = 64
_MOST_CHARACTERS = 100_000_000


class SQLiteDialect:
    """How SQLite spells what differs."""

    name = "sqlite"
    json_type = "text"
    for_update = ""  # there is one writer
    goes_on = True

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

    def __init__(self, connection: sqlite3.Connection, memory: Memory | None = None) -> None:
        self._connection = connection
        self.memory = memory
        self.head: Head | None = None
        self.vouched = False

    def commit_number(self, name: bytes) -> int:
        if self.head is None:
            assert self.memory is not None  # of a transaction that writes
            self.head = Head(newest_number(self.memory) + 1, name.hex())
        return self.head.number

    def vouch(self) -> None:
        self.vouched = True

    def newest_head(self) -> Head | None:
        """The newest commit that the database holds; ValueError where what it says of it cannot be read."""
        with inside_sqlite:
            return newest_head(self._connection)

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

    def records_packed(self, record_ids: Sequence[int]) -> list[PackedRecord] | None:
        # All rows come as one, since the driver gives the interpreter's lock away and takes it back for every row: two
        # threads that search would do little but pass it to each other.
        try:
            statement, given = packed_statement(len(record_ids)), ids_parameters(record_ids)
            with inside_sqlite:
                (_, _, packed) = self._connection.execute(statement, given).fetchone()
            return [] if packed is None else orjson.loads(packed)
        except (sqlite3.OperationalError, sqlite3.DataError, orjson.JSONDecodeError, TypeError):
            return None  # damage, which reading row by row tells, or more than fits in one value

    def mark(self, collection_id: int) -> Mark | None:
        with inside_sqlite:
            return self._connection.execute(f"SELECT {_MARK}", id_range(collection_id)).fetchone()  # type: ignore[no-any-return]

    def alone(self) -> None:
        pass  # every write transaction is

    def insert_records(self, records: RecordRows) -> None:
        if len(records.rows) <= FEW_ROWS:
            self._insert_few_records(records)
            return
        n_characters = sum(len(row[1] or "") + len(row[3]) for row in records.rows)
        if n_characters > _MOST_CHARACTERS:  # SQLite holds no more than a thousand million bytes in one value
            for half in records.halves():
                self.insert_records(half)
            return
        # One statement, as for vectors.
        self.run(
            "INSERT INTO records (record_id, collection_id, key, modality, content, uri, metadata, content_hash,"
            " row_hash) SELECT :first + row.key, :collection, json_extract(row.value, '$[0]'),"
            " json_extract(row.value, '$[4]'),"
            " json_extract(row.value, '$[1]'), json_extract(row.value, '$[2]'), json_extract(row.value, '$[3]'),"
            " CASE WHEN json_type(row.value, '$[1]') = 'null' THEN NULL"
            " ELSE substr(:content_hashes, 1 + 16 * row.key, 16) END,"
            " substr(:row_hashes, 1 + 16 * row.key, 16) FROM json_each(:rows) AS row",
            {
                "first": records.first_record_id, "collection": records.collection_id,
                "content_hashes": records.content_hashes, "row_hashes": records.row_hashes,
                "rows": orjson.dumps(records.rows).decode(),
            },
        )  # fmt: skip

    def insert_vectors(self, vectors: VectorRows) -> None:
        if len(vectors.record_ids) <= FEW_ROWS:
            self._insert_few_vectors(vectors)
            return
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

    def _insert_few_records(self, records: RecordRows) -> None:
        """By a statement a row, which is quicker where there are few."""
        place = 0
        try:
            with inside_sqlite:
                for place, (key, content, uri, metadata, modality) in enumerate(records.rows):
                    hashed = slice(16 * place, 16 * place + 16)
                    self._connection.execute(
                        "INSERT INTO records (record_id, collection_id, key, modality, content, uri, metadata,"
                        " content_hash, row_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                        (
                            records.first_record_id + place, records.collection_id, key, modality, content,
                            uri, metadata, None if content is None else records.content_hashes[hashed],
                            records.row_hashes[hashed],
                        ),
                    )  # fmt: skip
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
                raise KeyTaken(place) from error
            raise

    def _insert_few_vectors(self, vectors: VectorRows) -> None:
        n_bytes = vectors.n_bytes
        with inside_sqlite:
            for place, record_id in enumerate(vectors.record_ids):
                self._connection.execute(
                    "INSERT INTO vectors (vector_id, space_id, record_id, row_hash, vec) VALUES (?, ?, ?, ?, ?)",
                    (
                        vectors.first_vector_id + place, vectors.space_id, record_id,
                        vectors.row_hashes[16 * place : 16 * place + 16],
                        vectors.vecs[n_bytes * place : n_bytes * (place + 1)],
                    ),
                )  # fmt: skip

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        marks = ",".join("?" * len(columns))
        with inside_sqlite:
            self._connection.executemany(f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})", rows)


_MARK = (
    "(SELECT commit_id FROM commits WHERE commit_key BETWEEN ? AND ? ORDER BY commit_key DESC LIMIT 1),"
    " (SELECT value FROM store_info WHERE name = 'head')"
)
"""Every write changes one of these two: the newest commit of a collection, and the newest that belongs to none."""


def ids_parameters(record_ids: Sequence[int]) -> Sequence[Any]:
    """The parameters of ``packed_statement``."""
    return record_ids if 0 < len(record_ids) <= _FEW_IDS else (orjson.dumps(record_ids).decode(),)


@functools.lru_cache(maxsize=128)
def packed_statement(n: int, *, marked: bool = False) -> str:
    """A statement for ``n`` records by their ids, each a parameter where they are few, else one JSON list of them.

    marked: with the mark of a collection, of which the first and the last id are the last two parameters.
    """
    # Joined, not asked for with IN, for which SQLite makes a table anew each time.
    wanted = f"VALUES {','.join(['(?)'] * n)}" if 0 < n <= _FEW_IDS else "SELECT value FROM json_each(?)"
    return (
        f"WITH wanted(id) AS ({wanted}) SELECT {_MARK if marked else 'NULL, NULL'}, '[' || group_concat(json_array("
        "r.record_id, r.key, r.content, r.metadata, r.modality, r.uri, hex(r.row_hash))) || ']'"
        " FROM wanted CROSS JOIN records AS r ON r.record_id = wanted.id"
    )


class WriteTransaction(SQLiteTransaction):
    """A transaction that is inside ``inside_sqlite`` from its beginning to its end, so that its calls need not ask."""

    def all(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return self._connection.execute(sql, parameters or {}).fetchall()

    def one(self, sql: str, parameters: Parameters | None = None) -> Row | None:
        return self._connection.execute(sql, parameters or {}).fetchone()  # type: ignore[no-any-return]

    def run(self, sql: str, parameters: Parameters | None = None) -> int:
        return self._connection.execute(sql, parameters or {}).rowcount


_NEWEST_COMMIT = (
    "WITH RECURSIVE newest(key) AS (SELECT max(commit_key) FROM commits UNION ALL SELECT (SELECT max(commit_key) FROM"
    f" commits WHERE commit_key < newest.key / {ID_SHIFT} * {ID_SHIFT}) FROM newest WHERE newest.key IS NOT NULL)"
    " SELECT number, commit_id FROM commits JOIN newest ON commit_key = newest.key ORDER BY number DESC LIMIT 1"
)
"""Jumps from the newest commit of each collection to that of the one before it."""
_NUMBER = ("head", None)  # of what a memory holds


def newest_head(connection: sqlite3.Connection) -> Head | None:
    """The newest commit that a database holds; None where its tables, or what was written to them, name none."""
    rows = connection.execute("SELECT value FROM store_info WHERE name = 'head'").fetchall()
    if not rows:
        return None  # revision 0001
    newest = Head.from_text(str(rows[0][0]))
    if connection.execute("SELECT 1 FROM pragma_table_info('commits') WHERE name = 'number'").fetchone() is None:
        return newest  # revision 0002
    of_records = connection.execute(_NEWEST_COMMIT).fetchone()
    if of_records is None or of_records[0] <= newest.number:
        return newest
    return Head(int(of_records[0]), bytes(of_records[1]).hex())


def newest_number(memory: Memory) -> int:
    """The number of the newest commit, as ``remember_number`` noted it; 0 in a store that is just being made."""
    return int(memory.get(_NUMBER, 0))


def remember_number(memory: Memory, number: int) -> None:
    """Note the number of the newest commit in a connection's memory."""
    memory[_NUMBER] = number


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
