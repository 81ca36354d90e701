"""Keeps a store's tables at the revision of this release, by Alembic where they are older."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from embedstore.errors import NotAStore, UnsupportedFormat
from embedstore.storage.database import Database
from embedstore.storage.layout import DATABASE_NAME, SCHEMA_REVISION

KNOWN_REVISIONS = ("0001",)
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
        raise UnsupportedFormat(
            f"{database.address} has tables of revision {found!r}; this release knows up to {SCHEMA_REVISION!r}."
            " Use the release that wrote it, or a newer one"
        )
    from embedstore.storage.migrations import upgrade

    upgrade(database, folder / DATABASE_NAME, found)
