"""Seals a SQLite file that is a cache: notes its page hash beside it, so that whoever opens it can tell damage."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from embedstore.failpoints import reach
from embedstore.indexing.cachefile import descriptor_page_hash
from embedstore.storage.apart import held
from embedstore.storage.files import replace_file


def seal(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the log into the file and note the file's page hash beside it; the caller holds the lock.

    The older note goes first: a file without one is unfinished, and is made anew by whoever opens it next.
    """
    path.with_suffix(".seal").unlink(missing_ok=True)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    reach("keywords.checkpointed")
    with held(path) as descriptor:
        note = json.dumps({"n_bytes": path.stat().st_size, "page_hash": descriptor_page_hash(descriptor)})
    replace_file(path.with_suffix(".seal"), note.encode())
    reach("keywords.sealed")


def is_sealed(path: Path) -> bool:
    """Whether the file is what was last sealed."""
    try:
        note = json.loads(path.with_suffix(".seal").read_bytes())
        if path.stat().st_size != note["n_bytes"]:
            return False
        with held(path) as descriptor:
            return bool(descriptor_page_hash(descriptor) == note["page_hash"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
