"""Keeps a store's tables at the revision of this release, by Alembic where they are older."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from embedstore.errors import NotAStore, StorageFailed, UnsupportedFormat
from embedstore.storage.database import Database, Transaction
from embedstore.storage.layout import DATABASE_NAME, SCHEMA_REVISION
from embedstore.version import __version__

KNOWN_REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision that there has been, oldest first."""


def stored_revision(database: Database) -> str:
    """The revision of a store's tables; NotAStore where the database is not one."""
    with database.read() as transaction:
        return revision_in(transaction, database.address)


def revision_in(transaction: Transaction, address: str) -> str:
    """The revision that a transaction sees; NotAStore where the database states none."""
    try:
        row = transaction.one("SELECT version_num FROM alembic_version")
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        row = None
    if row is None:
        raise NotAStore(f"{address} is a database but no store: it does not state its revision")
    return str(row[0])


def check_known(transaction: Transaction, address: str, found: str) -> None:
    """Raise UnsupportedFormat for a revision of a newer release, with the release that can open it."""
    if found in KNOWN_REVISIONS:
        return
    row = transaction.one("SELECT value FROM store_info WHERE name = 'needs'")
    needed = "a newer release of embedstore" if row is None else f"embedstore {row[0]} or newer"
    raise UnsupportedFormat(
        f"{address} has tables of revision {found!r}; this release, {__version__}, knows up to"
        f" {SCHEMA_REVISION!r}. Open it with {needed}"
    )


def check_current(transaction: Transaction, address: str) -> None:
    """Raise where the tables are not of this release's revision any more: others may upgrade an open store."""
    found = revision_in(transaction, address)
    if found == SCHEMA_REVISION:
        return
    check_known(transaction, address, found)
    raise StorageFailed(f"{address} has older tables, of revision {found!r}, than when it was opened; open it again")


def bring_up_to_date(database: Database, folder: Path) -> Path | None:
    """Upgrade older tables; the backup that was taken, if any. UnsupportedFormat for tables of a newer release."""
    with database.read() as transaction:
        found = revision_in(transaction, database.address)
        if found == SCHEMA_REVISION:
            return None
        check_known(transaction, database.address, found)
    from embedstore.storage.migrations import upgrade

    return upgrade(database, folder / DATABASE_NAME, found)
