"""Keeps a store's tables at the revision of this release, by Alembic where they are older."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from embedstore.errors import NotAStore, UnsupportedFormat
from embedstore.storage.database import Database
from embedstore.storage.layout import DATABASE_NAME, SCHEMA_REVISION
from embedstore.version import __version__

KNOWN_REVISIONS = ("0001", "0002")
"""Every revision that there has been, oldest first."""


def stored_revision(database: Database) -> str:
    """The revision of a store's tables; NotAStore where the database is not one."""
    with database.read() as transaction:
        try:
            row = transaction.one("SELECT version_num FROM alembic_version")
        except sqlite3.OperationalError:
            row = None
    if row is None:
        raise NotAStore(f"{database.address} is a database but no store: it does not state its revision")
    return str(row[0])


def bring_up_to_date(database: Database, folder: Path) -> None:
    """Upgrade older tables, after a backup; UnsupportedFormat for tables of a newer release."""
    found = stored_revision(database)
    if found == SCHEMA_REVISION:
        return
    if found not in KNOWN_REVISIONS:
        with database.read() as transaction:
            row = transaction.one("SELECT value FROM store_info WHERE name = 'needs'")
        needed = "a newer release of embedstore" if row is None else f"embedstore {row[0]} or newer"
        raise UnsupportedFormat(
            f"{database.address} has tables of revision {found!r}; this release, {__version__}, knows up to"
            f" {SCHEMA_REVISION!r}. Open it with {needed}"
        )
    from embedstore.storage.migrations import upgrade

    upgrade(database, folder / DATABASE_NAME, found)
