"""PostgreSQL as the store's database, through SQLAlchemy and psycopg 3.

The schema is the same, with a generated full-text column for keyword search. Writers of a collection queue up at its
row; readers see snapshots (REPEATABLE READ).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import orjson

from embedstore.errors import (
    DamagedRow,
    EmbedstoreError,
    InvalidInput,
    NotAStore,
    StorageFailed,
    StorageFull,
    StoreDamaged,
    StoreLocked,
)
from embedstore.failpoints import reach
from embedstore.forking import tell_forked
from embedstore.optional import require
from embedstore.storage.damage import damaged
from embedstore.storage.database import Mark, Memory, PackedRecord, Parameters, RecordRows, Row, Transaction, VectorRows
from embedstore.storage.revision import check_current

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, TextClause

_LOCK_KEY = 0x656D6273  # of the advisory lock under which collections and spaces are created
_TABLES_KEY = _LOCK_KEY + 1  # of that under which tables are created and upgraded; every writer shares it
_WAIT = "SELECT set_config('lock_timeout', :wait, true)"
_IS_STORE = "SELECT 1 FROM pg_tables WHERE tablename = 'store_info' AND schemaname = ANY (current_schemas(false))"
# Not to_regclass: it answers from a cache that is not refreshed while a transaction waits for a lock.


class PostgresDialect:
    """How PostgreSQL spells what differs."""

    name = "postgresql"
    json_type = "json"
    for_update = " FOR UPDATE"
    goes_on = False

    def members(self, parameter: str, kind: str) -> str:
        array = {"integer": "bigint", "text": "text"}[kind]
        return f"(SELECT unnest(CAST(:{parameter} AS {array}[])))"

    def list_parameter(self, values: Sequence[Any]) -> Any:
        return list(values)

    def json_text(self, value: bytes) -> str:
        return value.decode()

    def metadata_out(self, value: Any) -> dict[str, Any]:
        return value if isinstance(value, dict) else orjson.loads(value)


def _milliseconds(seconds: float) -> str:
    return f"{max(int(seconds * 1000), 1)}ms"


@functools.lru_cache(maxsize=512)
def _text(sql: str) -> TextClause:
    from sqlalchemy import text

    return text(sql)


class PostgresTransaction:
    """One transaction on one connection."""

    dialect = PostgresDialect()

    def __init__(self, connection: Connection, memory: Memory | None = None) -> None:
        self._connection = connection
        self.memory = memory

    def commit_number(self, name: bytes) -> int:
        return 0  # the server vouches for its own log

    def vouch(self) -> None:
        pass

    def all(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        return [tuple(row) for row in self._connection.execute(_text(sql), parameters or {})]

    def stream(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        # A named cursor is read page by page, so that memory stays flat.
        result = self._connection.execution_options(stream_results=True, max_row_buffer=2000).execute(
            _text(sql), parameters or {}
        )
        self._connection.execution_options(stream_results=False)
        return (tuple(row) for row in result)

    def one(self, sql: str, parameters: Parameters | None = None) -> Row | None:
        row = self._connection.execute(_text(sql), parameters or {}).first()
        return None if row is None else tuple(row)

    def run(self, sql: str, parameters: Parameters | None = None) -> int:
        return int(self._connection.execute(_text(sql), parameters or {}).rowcount)

    def many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        if parameters:
            self._connection.execute(_text(sql), list(parameters))

    def mark(self, collection_id: int) -> Mark | None:
        return None

    def records_packed(self, record_ids: Sequence[int]) -> list[PackedRecord] | None:
        return None

    def alone(self) -> None:
        self._connection.execute(_text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})

    def insert_records(self, records: RecordRows) -> None:
        self.insert(
            "records",
            ("record_id", "collection_id", "key", "modality", "content", "uri", "metadata", "content_hash", "row_hash"),
            (
                (
                    records.first_record_id + i, records.collection_id, key, modality, content, uri, metadata,
                    None if content is None else records.content_hashes[16 * i : 16 * i + 16],
                    records.row_hashes[16 * i : 16 * i + 16],
                )
                for i, (key, content, uri, metadata, modality) in enumerate(records.rows)
            ),
        )  # fmt: skip

    def insert_vectors(self, vectors: VectorRows) -> None:
        n_bytes = vectors.n_bytes
        self.insert(
            "vectors", ("vector_id", "space_id", "record_id", "row_hash", "vec"),
            (
                (
                    vectors.first_vector_id + i, vectors.space_id, record_id,
                    vectors.row_hashes[16 * i : 16 * i + 16], vectors.vecs[n_bytes * i : n_bytes * (i + 1)],
                )
                for i, record_id in enumerate(vectors.record_ids)
            ),
        )  # fmt: skip

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        driver = self._connection.connection.driver_connection
        assert driver is not None
        copy = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with driver.cursor() as cursor, cursor.copy(copy) as target:
            for row in rows:
                target.write_row([bytes(cell) if isinstance(cell, memoryview) else cell for cell in row])


class PostgresDatabase:
    """A PostgreSQL database that holds one store in its default schema."""

    dialect = PostgresDialect()

    def __init__(self, url: str, *, lock_timeout: float) -> None:
        require("psycopg", "postgres")
        self._lock_timeout = lock_timeout
        self._engine = _engine(url)
        # Without its query, which may hold a password too.
        self._address = self._engine.url.set(query={}).render_as_string(hide_password=True)
        tell_forked(self)

    def forget_parent(self) -> None:
        """Give up the parent's connections; a forked process must not talk over them."""
        self._engine.dispose(close=False)

    @property
    def address(self) -> str:
        return self._address

    def exists(self) -> bool:
        with self.connection() as connection:
            return connection.execute(_text(_IS_STORE)).scalar() is not None

    def create(self, fill: Callable[[Transaction], None]) -> None:
        """Create the tables in one transaction, under a lock that lets one creator in."""
        from embedstore.storage.schema import CREATE_REVISION, SCHEMA_REVISION, tables

        with self.exclusive() as connection:
            if connection.execute(_text(_IS_STORE)).scalar() is not None:
                return
            tables.create_all(connection)
            for statement in FULL_TEXT:
                connection.execute(_text(statement))
            connection.execute(_text(CREATE_REVISION))
            connection.execute(_text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": SCHEMA_REVISION})
            fill(PostgresTransaction(connection))

    @contextmanager
    def read(self) -> Iterator[PostgresTransaction]:
        with self.connection() as connection:
            snapshot = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with snapshot.begin():
                yield PostgresTransaction(snapshot, {})

    def records_and_mark(
        self, collection_id: int, record_ids: Sequence[int]
    ) -> tuple[list[PackedRecord], Mark] | None:
        return None

    @contextmanager
    def write(self, timeout: float | None = None) -> Iterator[PostgresTransaction]:
        waiting = self._lock_timeout if timeout is None else timeout
        with self.connection() as connection:
            writing = connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
            with writing.begin():
                transaction = PostgresTransaction(writing)
                transaction.one(
                    f"{_WAIT}, pg_advisory_xact_lock_shared(:key)",
                    {"wait": _milliseconds(waiting), "key": _TABLES_KEY},
                )
                check_current(transaction, self._address)
                reach("write.begun")
                yield transaction
                reach("write.finished")
            reach("write.committed")

    @contextmanager
    def exclusive(self) -> Iterator[Connection]:
        """A connection in a transaction in which nobody else creates or upgrades tables, nor writes."""
        with self.connection() as connection:
            writing = connection.execution_options(isolation_level="READ COMMITTED", postgresql_readonly=False)
            with writing.begin():
                writing.execute(_text(_WAIT), {"wait": _milliseconds(self._lock_timeout)})
                writing.execute(_text("SELECT pg_advisory_xact_lock(:key)"), {"key": _TABLES_KEY})
                yield writing

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection from the pool; the driver's errors become the store's."""
        import psycopg
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._engine.connect() as connection:
                yield connection
        except (SQLAlchemyError, psycopg.Error) as error:
            raise self._translation(error) from error
        except DamagedRow as error:
            raise damaged(self._address, str(error)) from error

    def _translation(self, error: Exception) -> EmbedstoreError:
        original = getattr(error, "orig", None) or error
        state = getattr(original, "sqlstate", None)
        line = next((part for part in str(original).splitlines() if part.strip()), type(original).__name__)
        if state in ("55P03", "40P01"):
            return StoreLocked(
                f"{self._address} is being written to by another process; try again when it is done, or give a longer"
                " --timeout"
            )
        if state == "23505":
            return StoreLocked(f"{self._address}: another process was creating the same thing; try again")
        if state == "42P01":
            return NotAStore(f"{self._address} is a database but no store, or lacks a table of one: {line}")
        if state in ("53100", "53200"):
            return StorageFull(f"{self._address} has no room left: {line}; nothing of this write was kept")
        return StorageFailed(f"{self._address}: {line}")

    def refuse_writes_after_loss(self) -> None:
        """The server vouches for its own log."""

    def damage(self, what: str) -> StoreDamaged:
        return damaged(self._address, what)

    def n_bytes(self) -> int:
        """The size of the tables with their indexes."""
        sizes = ", ".join(f"pg_total_relation_size('{table}')" for table in _TABLES)
        with self.connection() as connection:
            row = connection.execute(_text(f"SELECT {sizes}")).one()
        return sum(int(size) for size in row)

    def vacuum(self) -> None:
        """Let PostgreSQL reuse the room of deleted rows, and renew what its planner knows of the tables."""
        with self.connection() as connection:
            outside = connection.execution_options(isolation_level="AUTOCOMMIT", postgresql_readonly=False)
            outside.execute(_text(f"VACUUM (ANALYZE) {', '.join(_TABLES)}"))

    def close(self) -> None:
        self._engine.dispose()


_TABLES = ("records", "vectors", "commits", "changed_records", "dead_vectors", "collections", "spaces", "fields")

FULL_TEXT = (
    "ALTER TABLE records ADD COLUMN words tsvector GENERATED ALWAYS AS"
    " (to_tsvector('english', left(coalesce(content, ''), 100000))) STORED",
    "CREATE INDEX records_by_words ON records USING gin (words)",
)
"""What PostgreSQL has beside the shared tables; to_tsvector refuses texts above a megabyte of lexemes."""


def _engine(url: str) -> Engine:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
        if "@" in (engine.url.host or ""):
            raise ValueError  # the end of a password that holds an @, which would be shown as a host
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError):
        # The URL is not repeated: it may hold a password.
        raise InvalidInput(
            "the database URL cannot be read; write it as postgresql+psycopg://USER@HOST/NAME, special characters of a"
            " password as %40"
        ) from None
    if engine.dialect.name != "postgresql" or engine.driver != "psycopg":
        raise InvalidInput(
            f"a database of {engine.dialect.name}+{engine.driver} cannot hold a store; there are SQLite (give only the"
            " folder) and PostgreSQL (postgresql+psycopg://USER@HOST/NAME)"
        )
    return engine
