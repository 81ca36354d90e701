"""Keyword search: SQLite's FTS5 in a cache file that is caught up before each answer, or PostgreSQL's full text.

In both, a query's words are joined by OR and ranked, so that a record with most of the words comes first; a phrase in
double quotes must stand as it is. Writing is not slowed by it: the index reads what was committed when next asked.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

from embedstore.errors import DamagedRow, EmbedstoreError, StorageFailed, StorageFull, StoreLocked
from embedstore.failpoints import reach
from embedstore.forking import abandon, inside_sqlite, tell_forked
from embedstore.records import HASH_BYTES
from embedstore.searching.sealing import is_sealed, seal
from embedstore.storage.apart import descriptors
from embedstore.storage.catalog import CollectionRow, commit_name, store_uuid
from embedstore.storage.database import Transaction
from embedstore.storage.files import has_content, is_full, make_private
from embedstore.storage.inherited import TrackedConnection, refuse_inherited
from embedstore.storage.layout import id_range
from embedstore.storage.locks import ProcessLock

_WORD = re.compile(r"\w+", re.UNICODE)
_PHRASE = re.compile(r'"([^"]*)"')
_VERSION = "1"
_CHUNK = 2000
_MAX_ATTEMPTS = 3
SEARCH_SECONDS = 1.0
"""A search waits so long for another process that is bringing the index up to date, then makes one for itself."""
_BUILD_SECONDS = 30.0
_LOG = logging.getLogger("embedstore")
_WORDS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5("
    "content, tokenize='porter unicode61 remove_diacritics 2')"
)

Scored = list[tuple[int, float]]
"""Pairs of a record id and its score (greater is better), best first."""


def query_terms(text: str) -> list[str]:
    """The words of a query and, as one term each, its phrases in double quotes; each once, in order."""
    phrases = [" ".join(_WORD.findall(phrase)) for phrase in _PHRASE.findall(text)]
    words = _WORD.findall(_PHRASE.sub(" ", text).replace('"', " "))
    return list(dict.fromkeys(term for term in [*phrases, *words] if term))


class KeywordCache:
    """The FTS5 file of one collection in a SQLite store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._lock: ProcessLock | None = None
        tell_forked(self)

    def before_fork(self) -> None:
        """Close the file, which nobody uses now: whoever does is within a snapshot."""
        with inside_sqlite:
            self._disconnect()

    def forget_parent(self) -> None:
        """Give up the parent's connection."""
        abandon(self._connection)
        self._connection = None
        self._file = None
        self._guard = threading.Lock()

    def search(
        self, transaction: Transaction, collection: CollectionRow, text: str, limit: int
    ) -> Scored:
        """The best ``limit`` records for the words of ``text`` by BM25, at the transaction's commit."""
        terms = query_terms(text)
        if not terms:
            return []
        match = " OR ".join('"' + term.replace('"', "") + '"' for term in terms)
        with self._guard:
            try:
                return self._ranked(transaction, collection, match, limit)
            except sqlite3.DatabaseError as error:
                if cannot_write(error):
                    return self._ranked_alone(transaction, collection, match, limit)
                self._refuse_or_rebuild(error)
                return self._ranked(transaction, collection, match, limit)
            except OSError as error:
                if isinstance(error, EmbedstoreError):
                    raise
                return self._ranked_alone(transaction, collection, match, limit)

    def _refuse_or_rebuild(self, error: sqlite3.DatabaseError) -> None:
        """Raise what rebuilding cannot mend; set a damaged file aside."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLocked(
                f"another process is bringing the keyword index {self._path} up to date; try again when it is done"
            ) from error
        if cannot_write(error):
            kind = StorageFull if code == sqlite3.SQLITE_FULL else StorageFailed
            raise kind(f"the keyword index {self._path} cannot be written: {error}") from error
        self._rebuild()

    def _ranked(self, transaction: Transaction, collection: CollectionRow, match: str, limit: int) -> Scored:
        """The answer at exactly the transaction's commit: from the file, or from an index made for it alone."""
        for _ in range(_MAX_ATTEMPTS):
            try:
                connection = self._caught_up(transaction, collection, SEARCH_SECONDS)
            except StoreLocked:
                break
            if connection is None:
                break
            with inside_sqlite:
                connection.execute("BEGIN")  # one snapshot for the state and the words
                try:
                    if index_state(connection).get("change") == collection.last_change:
                        return _best(connection, match, limit)
                finally:
                    connection.execute("COMMIT")
        return self._ranked_alone(transaction, collection, match, limit)

    def _ranked_alone(self, transaction: Transaction, collection: CollectionRow, match: str, limit: int) -> Scored:
        """The answer from an index in memory, made for it alone."""
        with inside_sqlite:
            private = self._private(transaction, collection)
            try:
                return _best(private, match, limit)
            finally:
                private.close()

    def catch_up(self, transaction: Transaction, collection: CollectionRow) -> None:
        """Index what was committed since the last time."""
        with self._guard:
            try:
                self._caught_up(transaction, collection, _BUILD_SECONDS)
            except sqlite3.DatabaseError as error:
                self._refuse_or_rebuild(error)
                self._caught_up(transaction, collection, _BUILD_SECONDS)
            except StoreLocked as error:
                _LOG.debug("the keyword index is left to whoever is at it: %s", error)
            except OSError as error:
                if isinstance(error, EmbedstoreError):
                    raise
                kind = StorageFull if is_full(error) else StorageFailed
                raise kind(f"the keyword index {self._path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file."""
        with self._guard, inside_sqlite:
            self._disconnect()

    def _caught_up(
        self, transaction: Transaction, collection: CollectionRow, seconds: float
    ) -> sqlite3.Connection | None:
        """The file at the transaction's commit or later; None where it is ahead by another reader's work.

        Raises StoreLocked where another process is at it for longer than ``seconds``.
        """
        connection = self._open(seconds)
        uuid = store_uuid(transaction)
        with inside_sqlite:
            state = index_state(connection)
        if state.get("change") == collection.last_change and self.same_history(transaction, collection, state, uuid):
            return connection
        with self._locked(seconds):
            return self._updated(connection, transaction, collection, uuid)

    def _updated(
        self, connection: sqlite3.Connection, transaction: Transaction, collection: CollectionRow, uuid: str
    ) -> sqlite3.Connection | None:
        """Index what is new; the caller holds the lock."""
        connection.execute("BEGIN IMMEDIATE")
        reach("keywords.begun")
        try:
            state = index_state(connection)  # another process may have been first
            usable = (
                collection.log_floor <= state.get("change", -1) <= collection.last_change
                and self.same_history(transaction, collection, state, uuid)
            )
            if not usable:
                if state.get("change", -1) > collection.last_change and state.get("store") == uuid:
                    connection.execute("ROLLBACK")  # keep the work of whoever sees a later commit
                    return None
                _empty(connection)
                state = {"change": 0, "last_record": id_range(collection.collection_id)[0]}
            self._apply(connection, transaction, collection, state)
            _put_state(connection, transaction, collection, uuid)
            reach("keywords.filled")
            connection.execute("COMMIT")
            reach("keywords.committed")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        if self._lock is not None:
            seal(connection, self._path)
        return connection

    @contextmanager
    def _locked(self, seconds: float) -> Iterator[None]:
        """Hold the lock under which the file changes; an index in memory needs none. Raises StoreLocked."""
        with nullcontext() if self._lock is None else self._lock.held(seconds), inside_sqlite:
            yield

    def _disconnect(self) -> None:
        """Close the file: first the connection, whose locks the descriptor would take along."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._file is not None:
            descriptors.release(self._file)
            self._file = None

    @staticmethod
    def same_history(
        transaction: Transaction, collection: CollectionRow, state: dict[str, Any], uuid: str
    ) -> bool:
        """Whether what was indexed is of this very database and history."""
        if state.get("version") != _VERSION or state.get("store") != uuid:
            return False
        if state["change"] == 0:
            return True
        return bool(commit_name(transaction, collection.collection_id, state["change"]) == state["commit_id"])

    @staticmethod
    def _apply(
        connection: sqlite3.Connection, transaction: Transaction, collection: CollectionRow, state: dict[str, Any]
    ) -> None:
        """Bring the index from ``state`` to the transaction's commit."""
        changed = [
            row[0]
            for row in transaction.all(
                "SELECT DISTINCT record_id FROM changed_records"
                " WHERE collection_id = :collection AND change > :change AND record_id <= :last",
                {
                    "collection": collection.collection_id, "change": state["change"],
                    "last": state["last_record"],
                },
            )
        ]  # fmt: skip
        ids = transaction.dialect.members("ids", "integer")
        for start in range(0, len(changed), _CHUNK):
            chunk = changed[start : start + _CHUNK]
            connection.executemany("DELETE FROM words WHERE rowid = ?", [(record_id,) for record_id in chunk])
            connection.executemany(
                "INSERT INTO words (rowid, content) VALUES (?, ?)",
                _whole(
                    transaction.all(
                        "SELECT record_id, content, content_hash FROM records"
                        f" WHERE record_id IN {ids} AND content IS NOT NULL AND modality <> 'image'",
                        {"ids": transaction.dialect.list_parameter(chunk)},
                    )
                ),
            )
        connection.executemany(
            "INSERT INTO words (rowid, content) VALUES (?, ?)",
            _whole(
                transaction.stream(
                    "SELECT record_id, content, content_hash FROM records"
                    " WHERE record_id > :last AND record_id <= :high AND content IS NOT NULL AND modality <> 'image'"
                    " ORDER BY record_id",
                    {"last": state["last_record"], "high": id_range(collection.collection_id)[1]},
                )
            ),
        )

    def _open(self, seconds: float) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        try:
            make_private(self._path.parent)
            self._lock = ProcessLock(self._path.with_suffix(".lock"))
            with self._locked(seconds):
                self._connection = self._opened()
        except StoreLocked:
            raise
        except (StorageFailed, OSError, sqlite3.OperationalError):
            self._lock = None
            self._connection = _connect(":memory:")  # a read-only folder: the index lives as long as the process
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        """The file, made where it is missing or not what was last sealed; the caller holds the lock."""
        if self._path.exists() and not is_sealed(self._path):
            if self._path.with_suffix(".seal").exists():
                _LOG.warning("keyword index damaged, rebuilding from the database: %s", self._path)
            self._rebuild()
        if not self._path.exists():
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._file = descriptors.hold(self._path)
        refuse_inherited(self._path)
        connection = _connect(str(self._path))
        connection.track(self._path)
        if not is_sealed(self._path) or has_content(Path(f"{self._path}-wal")):
            seal(connection, self._path)
        return connection

    def _rebuild(self) -> None:
        """Set a damaged file aside, so that the next use starts afresh."""
        self._disconnect()
        for suffix in ("", "-wal", "-shm"):
            path = Path(f"{self._path}{suffix}")
            if path.exists():
                os.replace(path, f"{path}.corrupt")
        self._path.with_suffix(".seal").unlink(missing_ok=True)

    @staticmethod
    def _private(transaction: Transaction, collection: CollectionRow) -> sqlite3.Connection:
        connection = _connect(":memory:")
        connection.execute("BEGIN")
        state = {"change": 0, "last_record": id_range(collection.collection_id)[0]}
        KeywordCache._apply(connection, transaction, collection, state)
        connection.execute("COMMIT")
        return connection


def _whole(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[int, str]]:
    """The ids and texts of rows of id, content and its hash; DamagedRow for a text that is not what was written."""
    for record_id, content, hashed in rows:
        if not isinstance(content, str) or blake2b(content.encode(), digest_size=HASH_BYTES).digest() != hashed:
            raise DamagedRow(f"the text of record {record_id} is not what was written")
        yield record_id, content


def _connect(address: str) -> TrackedConnection:
    connection = sqlite3.connect(
        address, isolation_level=None, check_same_thread=False, timeout=30.0, factory=TrackedConnection
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a cache: consistent after a power cut, perhaps older
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the file changes only when it is sealed
        connection.execute("PRAGMA cache_size = -32768")
        connection.execute("CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL)")
        connection.execute(_WORDS)
    except BaseException:
        connection.close()
        raise
    return connection


def index_state(connection: sqlite3.Connection) -> dict[str, Any]:
    """What the index holds; nothing where it does not say so in full."""
    found: dict[str, Any] = dict(connection.execute("SELECT name, value FROM state").fetchall())
    numbers = {name: str(found.get(name)) for name in ("change", "last_record")}
    if not ({"version", "store", "commit_id"} <= found.keys() and all(map(str.isdecimal, numbers.values()))):
        return {}
    return found | {name: int(number) for name, number in numbers.items()}


def _put_state(
    connection: sqlite3.Connection, transaction: Transaction, collection: CollectionRow, uuid: str
) -> None:
    values = {
        "version": _VERSION, "store": uuid, "change": str(collection.last_change),
        "commit_id": commit_name(transaction, collection.collection_id, collection.last_change) or "",
        "last_record": str(id_range(collection.collection_id)[0] + collection.last_serial),
    }  # fmt: skip
    connection.executemany("INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)", list(values.items()))


def cannot_write(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is refused room, so that making it anew would not help."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _empty(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM state")
    connection.execute("DROP TABLE IF EXISTS words")
    connection.execute(_WORDS)


def _best(connection: sqlite3.Connection, match: str, limit: int) -> Scored:
    rows = connection.execute(
        "SELECT rowid, -rank FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?", (match, limit)
    ).fetchall()
    return [(int(record_id), float(score)) for record_id, score in rows]


def postgres_search(transaction: Transaction, collection: CollectionRow, text: str, limit: int) -> Scored:
    """The best ``limit`` records by PostgreSQL's cover density rank over its full-text index."""
    terms = query_terms(text)
    if not terms:
        return []
    query = " || ".join(f"phraseto_tsquery('english', :t{i})" for i in range(len(terms)))
    low, high = id_range(collection.collection_id)
    rows = transaction.all(
        f"SELECT record_id, ts_rank_cd(words, q.query, 1) AS score FROM records, (SELECT {query} AS query) AS q"
        " WHERE words @@ q.query AND record_id BETWEEN :low AND :high AND modality <> 'image'"
        " ORDER BY score DESC, record_id LIMIT :limit",
        {**{f"t{i}": term for i, term in enumerate(terms)}, "low": low, "high": high, "limit": limit},
    )
    return [(int(record_id), float(score)) for record_id, score in rows]
