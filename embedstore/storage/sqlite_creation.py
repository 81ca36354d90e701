"""Makes a new SQLite database: its file, and its tables."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from embedstore.storage.layout import DATABASE_NAME
from embedstore.storage.sqlite_statements import SQLiteTransaction

PAGE_BYTES = 8192
FRESH_NAME = f"{DATABASE_NAME}.new"


def create_file(path: Path) -> None:
    """Make an empty database in WAL mode. It gets its name when it is whole and durable.

    Made in place it would have a rollback journal for a moment; a process killed then would leave a file that
    cannot be opened read-only.
    """
    fresh = path.with_name(FRESH_NAME)
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        setup = sqlite3.connect(fresh, isolation_level=None)
        try:
            setup.execute("PRAGMA journal_mode = MEMORY")
            setup.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            setup.execute("PRAGMA journal_mode = WAL")
        finally:
            setup.close()
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(fresh, path)


def create_tables(transaction: SQLiteTransaction) -> None:
    """Create every table of the current schema, and note its revision as Alembic does."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateIndex, CreateTable

    from embedstore.storage.schema import CREATE_REVISION, SCHEMA_REVISION, tables

    dialect = sqlite.dialect()
    for table in tables.sorted_tables:
        transaction.run(str(CreateTable(table).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda one: str(one.name)):
            transaction.run(str(CreateIndex(index).compile(dialect=dialect)))
    transaction.run(CREATE_REVISION)
    transaction.insert("alembic_version", ["version_num"], [(SCHEMA_REVISION,)])
