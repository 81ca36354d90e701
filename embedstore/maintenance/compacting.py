"""Gives back room: log entries that caches no longer need, dead rows in caches, free pages, files left behind."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

from embedstore.errors import StorageFailed, StoreLocked
from embedstore.failpoints import reach
from embedstore.maintenance.reports import CompactReport
from embedstore.searching.search import CollectionSearch
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow
from embedstore.storage.database import Database, Transaction
from embedstore.storage.layout import keyword_cache_path, space_cache_folder
from embedstore.storage.locks import ProcessLock

_LEFT_BEHIND = (".corrupt", ".tmp")


def compact(database: Database, search: CollectionSearch, caches: Path) -> CompactReport:
    """Make the database and the caches as small as they can be without losing anything; readers go on meanwhile.

    The caches in ``caches`` are brought up to date first. Caches on other machines that lag behind are made anew there
    when they are next used.
    """
    before = database.n_bytes()
    reach("compact.begun")
    floors = _refresh_caches(database, search, caches)
    n_log_rows = 0
    with database.write() as transaction:
        for row, floor in floors:
            n_log_rows += _prune_logs(transaction, row, floor)
        reach("compact.pruned")
    reach("compact.committed")
    database.vacuum()
    reach("compact.vacuumed")
    n_files = _sweep(database, caches)
    reach("compact.swept")
    return CompactReport(n_log_rows, n_files, before, database.n_bytes())


def _refresh_caches(
    database: Database, search: CollectionSearch, caches: Path
) -> list[tuple[CollectionRow, int]]:
    """Rewrite caches that lag behind or hold dead rows; each collection, and the change that all its caches hold."""
    floors = []
    with database.read() as transaction:
        for row in catalog.all_collections(transaction):
            held = [row.last_change]
            for space in catalog.spaces_of(transaction, row.collection_id).values():
                if space.dim is not None and space_cache_folder(caches, space.space_id).is_dir():
                    cache = search.space_cache(space.space_id)
                    cache.refresh(transaction, row, space, always=True)
                    held.append(cache.cached_change(transaction, row, space))
            if keyword_cache_path(caches, row.collection_id).exists():
                search.keyword_cache(row.collection_id).catch_up(transaction, row)
            floors.append((row, min(held)))
    return floors


def _prune_logs(transaction: Transaction, seen: CollectionRow, floor: int) -> int:
    """Remove what is logged up to the change that the caches hold; that commit itself stays, to know them by."""
    row = catalog.lock_collection(transaction, seen.name)
    if row is None or row.collection_id != seen.collection_id:
        return 0  # deleted meanwhile
    catalog.forget(transaction)
    return catalog.forget_logs(transaction, row.collection_id, floor)


def _sweep(database: Database, caches: Path) -> int:
    """Delete caches of collections and spaces that are no more, and files set aside or left by killed processes."""
    if not caches.is_dir():
        return 0
    # Listed before the snapshot: what is made meanwhile is not taken for a leftover. A lock goes after what it guards.
    held = sorted(caches.iterdir(), key=lambda path: (path.suffix == ".lock", path.name))
    with database.read() as transaction:
        collections = {row.collection_id for row in catalog.all_collections(transaction)}
        spaces = {
            space.space_id for one in collections for space in catalog.spaces_of(transaction, one).values()
        }
    n_files = 0
    for path in held:
        owner = re.fullmatch(r"(space|keywords)-(\d+)(\..*)?", path.name)
        gone = owner is not None and int(owner[2]) not in (spaces if owner[1] == "space" else collections)
        lock = path / "build.lock" if path.is_dir() else path.with_name(path.name.split(".")[0] + ".lock")
        with suppress(StoreLocked, StorageFailed, OSError):  # whoever holds it is writing these files just now
            with ProcessLock(lock).held(0) if owner is not None else nullcontext():
                n_files += _swept(path, gone)
    return n_files


def _swept(path: Path, gone: bool) -> int:
    """Delete what is left over of a cache, or all of it; the number of files deleted."""
    if path.is_dir():
        inside = list(path.iterdir())
        old = inside if gone else [one for one in inside if one.suffix in _LEFT_BEHIND]
        for one in old:
            one.unlink(missing_ok=True)
        if gone:
            shutil.rmtree(path, ignore_errors=True)
        return len(old)
    if gone or path.suffix in _LEFT_BEHIND:
        path.unlink()
        return 1
    return 0
