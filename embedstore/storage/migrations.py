"""Upgrades the tables of an older store by Alembic, after a backup. Imported only where a revision differs.

Whoever comes first upgrades, under the writer lock and in one transaction; the others wait, and find it done. A process
that is killed on the way leaves the tables as they were.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from embedstore.errors import EmbedstoreError, StorageFailed, StorageFull, StoreLocked
from embedstore.failpoints import reach
from embedstore.shipped import shipped_folder
from embedstore.storage.database import Database
from embedstore.storage.files import is_full, sync_folder
from embedstore.storage.layout import SCHEMA_REVISION
from embedstore.storage.postgres import PostgresDatabase, PostgresTransaction
from embedstore.storage.revision import check_known, revision_in
from embedstore.storage.sqlite import SQLiteDatabase
from embedstore.storage.sqlite_errors import translated
from embedstore.storage.sqlite_statements import SQLiteTransaction, write_copy

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from embedstore.storage.database import Row, Transaction

_LOG = logging.getLogger("embedstore")
_STATE = (
    "SELECT name, value FROM store_info ORDER BY name",
    "SELECT * FROM collections ORDER BY collection_id",
    "SELECT * FROM spaces ORDER BY space_id",
    "SELECT * FROM commits",
    "SELECT * FROM ingest_jobs ORDER BY collection_id, source",
    "SELECT version_num FROM alembic_version",
)
"""What is equal in two databases only where they hold the same: a commit's id is random, and in no other history."""


def upgrade(database: Database, path: Path, found: str) -> Path | None:
    """Bring tables of revision ``found`` to this release's in one transaction, unless another process just did.

    Gives the backup of the database as it was, beside ``path``; None where this call upgraded nothing, and with
    PostgreSQL. Raises StorageFull, StorageFailed or StoreLocked with nothing changed.
    """
    try:
        if isinstance(database, SQLiteDatabase):
            return _upgrade_sqlite(database, path)
        assert isinstance(database, PostgresDatabase)
        _upgrade_postgres(database)
        return None
    except (StorageFull, StorageFailed, StoreLocked) as error:
        raise type(error)(
            f"{database.address} has tables of revision {found!r}, which this release upgrades before it reads them,"
            f" but: {error}"
        ) from error


def run_migrations(connection: Connection) -> None:
    """Run every migration that the database lacks, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(shipped_folder("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _upgrade_sqlite(database: SQLiteDatabase, path: Path) -> Path | None:
    with database.exclusive() as connection:
        found = _older_revision(SQLiteTransaction(connection), database.address)
        if found is None:
            return None
        reach("migrate.locked")
        connection.execute("BEGIN IMMEDIATE")  # a file that cannot be written is refused before it is copied
        connection.execute("ROLLBACK")
        backup = _back_up(connection, path, found)
        reach("migrate.backed_up")
        _LOG.warning("upgrading %s from revision %s; the old database is kept as %s", path, found, backup.name)
        with _over_sqlite(connection) as over:
            run_migrations(over)
            reach("migrate.migrated")
        reach("migrate.committed")
        return backup


def _upgrade_postgres(database: PostgresDatabase) -> None:
    with database.exclusive() as connection:
        found = _older_revision(PostgresTransaction(connection), database.address)
        if found is None:
            return
        reach("migrate.locked")
        _LOG.warning("upgrading %s from revision %s; keep a pg_dump of it", database.address, found)
        run_migrations(connection)
        reach("migrate.migrated")
    reach("migrate.committed")


def _older_revision(transaction: Transaction, address: str) -> str | None:
    """The revision under the lock; None where another process has upgraded the tables meanwhile."""
    found = revision_in(transaction, address)
    check_known(transaction, address, found)
    return None if found == SCHEMA_REVISION else found


# ---- the backup


def _back_up(connection: sqlite3.Connection, path: Path, found: str) -> Path:
    """A durable copy of the database under a name of its own; one that is there already is never overwritten.

    An upgrade that was interrupted left such a copy. It is used again where nothing was written since.
    """
    first = path.with_name(f"{path.name}.before-upgrade-from-{found}")
    for number in count(1):
        target = first if number == 1 else first.with_name(f"{first.name}-{number}")
        if not target.exists():
            _copy(connection, target)
            return target
        if _holds_the_same(connection, target):
            return target
    raise AssertionError("there is always a next number")


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    """Copy the database to ``target``, which is there only when all of it is on disk."""
    partial = target.with_name(f"{target.name}.partial")
    try:
        with translated(target):
            partial.unlink(missing_ok=True)  # of a process that was killed
            write_copy(connection, partial)
        os.replace(partial, target)
        sync_folder(target.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, EmbedstoreError):
            kind = StorageFull if is_full(error) else StorageFailed
            raise kind(f"the backup {target} cannot be written: {error.strerror or error}") from error
        raise


def _holds_the_same(connection: sqlite3.Connection, backup: Path) -> bool:
    """Whether a backup is whole, and nothing was written to the database since it was taken."""
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(backup.absolute()))}?immutable=1", uri=True)) as kept:
            if _state(kept) != _state(connection):
                return False
            return bool(kept.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.Error:
        return False


def _state(connection: sqlite3.Connection) -> list[list[Row]]:
    return [connection.execute(sql).fetchall() for sql in _STATE]


@contextmanager
def _over_sqlite(connection: sqlite3.Connection) -> Iterator[Connection]:
    """A SQLAlchemy connection over an open SQLite connection, in one IMMEDIATE transaction.

    Foreign keys are not enforced meanwhile: a migration may copy a table, drop the old one and rename the new. The
    driver's errors come out as they are, for ``SQLiteDatabase`` to put into words.
    """
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    connection.execute("PRAGMA foreign_keys = 0")
    try:
        with engine.connect() as sql:
            sql.exec_driver_sql("BEGIN IMMEDIATE")
            yield sql
            sql.exec_driver_sql("COMMIT")
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.Error):
            raise error.orig from error
        raise
    connection.execute("PRAGMA foreign_keys = 1")
