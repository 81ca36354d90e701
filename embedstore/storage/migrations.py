"""Upgrades the tables of an older store by Alembic, after a backup. Imported only where a revision differs."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

from embedstore.shipped import shipped_folder
from embedstore.storage.database import Database
from embedstore.storage.postgres import PostgresDatabase
from embedstore.storage.sqlite import SQLiteDatabase

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LOG = logging.getLogger("embedstore")


def upgrade(database: Database, path: Path, found: str) -> None:
    """Bring the tables to this release's revision in one transaction; the old database is kept beside it."""
    if isinstance(database, SQLiteDatabase):
        backup = path.with_name(f"{path.name}.before-upgrade-from-{found}")
        with database.exclusive() as connection:
            _back_up(connection, backup)
            _LOG.warning("upgrading %s from revision %s; the old database is kept as %s", path, found, backup.name)
            with _over_sqlite(connection) as over:
                run_migrations(over)
    elif isinstance(database, PostgresDatabase):
        _LOG.warning("upgrading %s from revision %s; keep a pg_dump of it", database.address, found)
        with database.connection() as sql, sql.begin():
            run_migrations(sql)


def run_migrations(connection: Connection) -> None:
    """Run every migration that the database lacks, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(shipped_folder("migrations")))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    with sqlite3.connect(target) as copy:
        connection.backup(copy)
    copy.close()


@contextmanager
def _over_sqlite(connection: sqlite3.Connection) -> Iterator[Connection]:
    """A SQLAlchemy connection over an open SQLite connection, in one IMMEDIATE transaction."""
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as sql:
        sql.exec_driver_sql("BEGIN IMMEDIATE")
        yield sql
        sql.exec_driver_sql("COMMIT")
