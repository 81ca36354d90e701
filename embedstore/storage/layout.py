"""Constants of what is on disk that need no library to be known."""

from __future__ import annotations

from pathlib import Path

SCHEMA_REVISION = "0004"
"""The Alembic revision of the tables that this release reads and writes."""

OLDEST_RELEASE = "0.1.0"
"""The oldest release that can open tables of this revision."""

APPLICATION = 0x656D6273
"""SQLite's ``application_id`` of a store: the letters ``embs``."""

DATABASE_NAME = "store.db"
CACHE_NAME = "cache"
LOCK_NAME = "writer.lock"

def space_cache_folder(caches: Path, space_id: int) -> Path:
    """Where the cache files of a space are."""
    return caches / f"space-{space_id}"


def keyword_cache_path(caches: Path, collection_id: int) -> Path:
    """The keyword index of a collection."""
    return caches / f"keywords-{collection_id}.db"


ID_SHIFT = 1 << 40
"""Record and vector ids are ``owner * ID_SHIFT + number``."""


def id_range(owner: int) -> tuple[int, int]:
    """The first and the last id that can belong to ``owner`` (a collection's or a space's id)."""
    return owner * ID_SHIFT, (owner + 1) * ID_SHIFT - 1
