"""Checks a keyword index against its seal, and its words against the records."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from urllib.parse import quote

from embedstore.errors import StorageFailed, StoreLocked
from embedstore.searching.keywords import SEARCH_SECONDS, KeywordCache, cannot_write, index_state
from embedstore.searching.sealing import is_sealed
from embedstore.storage.apart import held
from embedstore.storage.catalog import CollectionRow, store_uuid
from embedstore.storage.database import Transaction
from embedstore.storage.layout import id_range
from embedstore.storage.locks import ProcessLock


def keyword_faults(path: Path, transaction: Transaction, collection: CollectionRow) -> Iterator[str]:
    """What is wrong with a keyword index: its file, or words that are not those of the records."""
    # Whoever holds the lock for long is bringing it up to date, and will seal it.
    with suppress(StorageFailed, StoreLocked), ProcessLock(path.with_suffix(".lock")).held(SEARCH_SECONDS), held(path):
        if not path.with_suffix(".seal").exists():
            return  # it was never finished, so it is made anew before it is used
        if not is_sealed(path):
            yield "it is not what was written"
            return
        yield from _content_faults(path, transaction, collection)


def _content_faults(path: Path, transaction: Transaction, collection: CollectionRow) -> Iterator[str]:
    connection = sqlite3.connect(f"file:{quote(os.fsencode(path.absolute()))}?mode=ro", uri=True, isolation_level=None)
    try:
        state = index_state(connection)
        same = KeywordCache.same_history(transaction, collection, state, store_uuid(transaction))
        if not same or not collection.log_floor <= state["change"] <= collection.last_change:
            return  # of another history: made anew before it is used
        changed = {
            row[0] for row in transaction.all(
                "SELECT record_id FROM changed_records WHERE collection_id = :collection AND change > :change",
                {"collection": collection.collection_id, "change": state["change"]},
            )
        }  # fmt: skip
        indexed = ((rowid, text) for rowid, text in connection.execute("SELECT rowid, content FROM words"))
        stored = transaction.stream(
            "SELECT record_id, content FROM records WHERE record_id BETWEEN :low AND :last AND content IS NOT NULL"
            " AND modality <> 'image' ORDER BY record_id",
            {"low": id_range(collection.collection_id)[0], "last": state["last_record"]},
        )
        wanted = (row for row in stored if row[0] not in changed)
        found = (row for row in indexed if row[0] not in changed)
        for one, other in zip_longest(found, wanted):
            if one is None or other is None or tuple(one) != tuple(other):
                yield f"its words are not those of record {(other or one)[0]}"
                return
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.DatabaseError) and cannot_write(error):
            return  # SQLite found no room for what it needs beside the file, which says nothing of the file
        yield f"it cannot be read: {error}"
    finally:
        connection.close()
