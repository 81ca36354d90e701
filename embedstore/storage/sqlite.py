"""SQLite as the store's database: WAL, full durability, commits and checkpoints under one lock.

The statements go straight to the driver: importing SQLAlchemy costs more than a whole search from a new process
may take (docs/decisions/0002), so it is imported only to create tables.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import orjson

from embedstore.errors import (
    EmbedstoreError,
    NotAStore,
    StorageFailed,
    StoreDamaged,
    StoreLocked,
)
from embedstore.failpoints import reach
from embedstore.forking import abandon, inside_sqlite, tell_forked
from embedstore.storage.damage import damaged
from embedstore.storage.database import Mark, PackedRecord, Transaction
from embedstore.storage.files import has_content, make_private, sync_folder
from embedstore.storage.head import HEAD_NAME, Head, read_head, write_head
from embedstore.storage.inherited import file_identity
from embedstore.storage.layout import APPLICATION, DATABASE_NAME, LOCK_NAME, id_range
from embedstore.storage.locks import ProcessLock
from embedstore.storage.revision import check_current
from embedstore.storage.sqlite_blocks import Reading, Writing
from embedstore.storage.sqlite_connection import Connection, connect, impatient, may_write
from embedstore.storage.sqlite_creation import FRESH_NAME, create_file, create_tables
from embedstore.storage.sqlite_errors import ERRORS, translated
from embedstore.storage.sqlite_statements import (
    SQLiteDialect,
    SQLiteTransaction,
    WriteTransaction,
    ids_parameters,
    newest_number,
    packed_statement,
    remember_number,
)

_LOG = logging.getLogger("embedstore")
CHECKPOINT_BYTES = 128 << 20
"""The log is copied into the database, and emptied, when it has grown past this."""
CHECKPOINT_PAGES = 1000
"""After a small commit it is copied from so many pages on, and then written over: a log that grows syncs slowly."""
_SMALL_COMMIT = 1000  # rows
_IN_PLACE_SECONDS = 0.02
"""So long what was seen to be the open file is taken for it by who only reads: every look costs searches their lock."""


class SQLiteDatabase:
    """The file ``store.db`` in a store's folder."""

    dialect = SQLiteDialect()

    def __init__(self, folder: Path, *, lock_timeout: float) -> None:
        self._folder = folder = Path(os.path.abspath(folder))
        self._path = folder / DATABASE_NAME
        self._address = os.fspath(self._path)
        self._log_address = f"{self._address}-wal"
        self._head_path = os.fspath(folder / HEAD_NAME)
        self._lock_timeout = lock_timeout
        self._lock: ProcessLock | None = None
        self._guard = threading.Lock()
        self._readers: list[Connection] = []
        self._writer: Connection | None = None
        self._anchor: Connection | None = None
        self._wrote = False
        self._lost: str | None = None
        self._identity: tuple[int, int] | None = None
        self._in_place_until = 0.0
        self._checkpoint_pages = 0
        self._changes = 0
        self._head_descriptor: int | None = None
        tell_forked(self)

    @property
    def address(self) -> str:
        return self._address

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return self._folder

    def exists(self) -> bool:
        if self._has_tables():
            return True
        head = read_head(self._folder)
        if head is not None:
            raise StoreDamaged(
                f"{self._path} is missing or empty, but commit {head.number:,} was acknowledged here; there is nothing"
                " to salvage: restore a backup into a new folder"
            )
        return False

    def _has_tables(self) -> bool:
        if not has_content(self._path):
            return False
        with self.read() as transaction:
            found = transaction.one("SELECT 1 FROM sqlite_master WHERE name = 'store_info'")
        return found is not None

    def create(self, fill: Callable[[Transaction], None]) -> None:
        """Create folder, file and tables. The tables come in one transaction: they are all there or none is."""
        if self.exists():
            return
        self._refuse_foreign_folder()
        try:
            make_private(self._folder)
        except OSError as error:
            raise StorageFailed(f"{self._folder} cannot be created: {error.strerror}") from error
        reach("create.folder")
        with self.writer_lock().held(self._lock_timeout), translated(self._path):
            if self.exists():
                return
            if not has_content(self._path):
                with inside_sqlite:
                    create_file(self._path)
            reach("create.file")
            sync_folder(self._folder)
            sync_folder(self._folder.parent)  # where the folder was there before, its name may not be durable yet
            with inside_sqlite:
                transaction = self._begun()
                try:
                    if transaction.one("SELECT 1 FROM sqlite_master") is not None:
                        raise NotAStore(
                            f"{self._path} is the database of another program; give a new or an empty folder"
                        )
                    create_tables(transaction)
                    reach("create.tables")
                    fill(transaction)
                    transaction.run(f"PRAGMA application_id = {APPLICATION}")
                except BaseException:
                    self.drop_writer()
                    raise
                self.commit(transaction)
            reach("create.committed")

    def _refuse_foreign_folder(self) -> None:
        if self._folder.is_dir():
            known = {DATABASE_NAME, FRESH_NAME, LOCK_NAME, HEAD_NAME}
            others = sorted(name.name for name in self._folder.iterdir() if name.name not in known)
            if others and not self._path.exists():  # else another process is just creating the store
                raise NotAStore(
                    f"{self._folder} is no store: it holds {len(others)} other files ({others[0]!r} ...) and no"
                    f" {DATABASE_NAME}; give a new or an empty folder"
                )
        elif self._folder.exists():
            raise NotAStore(f"{self._folder} is a file; a store is a folder")

    def read(self) -> Reading:
        return Reading(self)

    def records_and_mark(
        self, collection_id: int, record_ids: Sequence[int]
    ) -> tuple[list[PackedRecord], Mark] | None:
        with inside_sqlite:  # from its taking on, since a fork must find every connection closed or in a block
            try:
                connection = self.take_reader()
            except ERRORS:
                return None
            try:
                ((newest, head, packed),) = connection.execute(
                    packed_statement(len(record_ids), marked=True),
                    (*ids_parameters(record_ids), *id_range(collection_id)),
                ).fetchall()
                read = [] if packed is None else orjson.loads(packed), (newest, head)
            except BaseException as error:
                self.drop_reader(connection)
                if isinstance(error, (*ERRORS, orjson.JSONDecodeError)):
                    return None
                raise
            self.keep_reader(connection)
            return read

    def write(self, timeout: float | None = None) -> Writing:
        return Writing(self, self._lock_timeout if timeout is None else timeout)

    def begin_write(self) -> SQLiteTransaction:
        """Begin a transaction of ``write``; the caller holds the writer lock, and no other thread forks meanwhile."""
        reach("write.locked")
        self._refuse_replaced()
        if self._lost is not None:
            what = f"{self._lost}. Nothing more is written; to go on with what is left, delete {HEAD_NAME}"
            raise damaged(self._path, what)
        transaction = self._begun()
        try:
            if not transaction.memory:  # else nobody else has written since this was last looked at
                check_current(transaction, self.address)
                newest = transaction.newest_head()
                assert transaction.memory is not None
                remember_number(transaction.memory, 0 if newest is None else newest.number)
        except BaseException:
            self.drop_writer()
            raise
        return transaction

    @contextmanager
    def exclusive(self) -> Iterator[sqlite3.Connection]:
        """The writing connection itself, under the writer lock; for migrations and backups."""
        with self.writer_lock().held(self._lock_timeout), translated(self._path), inside_sqlite:
            try:
                connection = self._take_writer()
                connection.memory.clear()
                yield connection
                self._wrote = True
            except BaseException:
                self.drop_writer()
                raise

    def _begun(self) -> SQLiteTransaction:
        """A write transaction; the caller holds the writer lock."""
        connection = self._take_writer()
        try:
            connection.execute("BEGIN IMMEDIATE")
            reach("write.begun")
            self._changes = connection.total_changes
            connection.recall()
        except BaseException:
            self.drop_writer()
            raise
        return WriteTransaction(connection, connection.memory)

    def commit(self, transaction: SQLiteTransaction) -> None:
        """Commit what ``begin_write`` began."""
        connection = self._take_writer()
        try:
            n_changed = connection.total_changes - self._changes
            head = transaction.head
            if n_changed and head is None:
                head = _advance_head(connection)
            if transaction.vouched and head is not None:
                remember_number(connection.memory, head.number)
            elif n_changed:
                connection.memory.clear()
            self._set_checkpoint(connection, CHECKPOINT_PAGES if n_changed < _SMALL_COMMIT else 0)
            reach("write.finished")
            connection.execute("COMMIT")
            reach("write.committed")
        except BaseException:
            # After a failed COMMIT the outcome is unknown. Closing rolls back what is not committed, and the next
            # connection reads what the file really holds.
            self.drop_writer()
            raise
        self._wrote = True
        if head is not None:
            self._head_descriptor = write_head(self._head_path, head, self._head_descriptor)
            reach("write.head")
        self._checkpoint_if_grown(connection)

    def _set_checkpoint(self, connection: sqlite3.Connection, pages: int) -> None:
        """Let COMMIT, which runs under the writer lock, copy the log when it has so many pages; 0 for never."""
        if self._checkpoint_pages != pages:
            connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
            self._checkpoint_pages = pages

    def _checkpoint_if_grown(self, connection: sqlite3.Connection) -> None:
        try:
            grown = os.stat(self._log_address).st_size > CHECKPOINT_BYTES
        except OSError:
            return
        if grown:
            reach("checkpoint.begun")
            with suppress(sqlite3.Error):  # the commit stands whether or not the log could be copied
                with impatient(connection):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            reach("checkpoint.done")

    def writer_lock(self) -> ProcessLock:
        """The lock that lets one process write at a time."""
        lock = self._lock
        if lock is not None:
            return lock
        with self._guard:
            if self._lock is None:
                self._lock = ProcessLock(self._folder / LOCK_NAME)
            return self._lock

    def _take_writer(self) -> Connection:
        if self._writer is None:
            # The anchor keeps the writer from ever being the last connection to close, when SQLite would
            # checkpoint outside the lock.
            if self._anchor is None:
                self._anchor = self._connect("ro")
            self._writer = self._connect("rw")
            self._checkpoint_pages = 0
        return self._writer

    def drop_writer(self) -> None:
        """Close the writing connection, which rolls back what it has not committed."""
        if self._writer is not None:
            with suppress(sqlite3.Error), inside_sqlite:
                self._writer.close()
            self._writer = None

    def _drop_anchor(self) -> None:
        """Close the connection that keeps the writing one from being the last; after that one."""
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None

    def take_reader(self) -> Connection:
        """A connection for one snapshot, which nobody else has until ``keep_reader``."""
        if time.monotonic() > self._in_place_until:
            self._refuse_replaced()
        pool = self._readers
        connection: Connection | None
        try:
            connection = pool.pop()  # of a list, which threads may share without a lock
        except IndexError:
            connection = None
        if connection is None:
            self._refuse_replaced()
            connection = self._connect("ro")
            connection.pool = pool
        return connection

    def keep_reader(self, connection: Connection) -> None:
        """Keep a connection for the next snapshot, where it may be."""
        pool = self._readers
        if connection.lasting and connection.pool is pool:  # else the store was closed meanwhile
            pool.append(connection)
        else:
            self.drop_reader(connection)

    def drop_reader(self, connection: Connection) -> None:
        """Close a connection that ``take_reader`` gave; one that this process was forked with is only let go."""
        if connection.process != os.getpid():
            abandon(connection)
            return
        with inside_sqlite:
            connection.close()

    def _refuse_replaced(self) -> None:
        """Raise StorageFailed where another file has come into the place of the one that is open."""
        opened = self._identity  # another thread may be closing the store
        if opened is not None and file_identity(self._address) != opened:
            self._in_place_until = 0.0
            raise StorageFailed(
                f"{self._path} was moved away or replaced while this process had it open; close the store, and open it"
                " again"
            )
        self._in_place_until = time.monotonic() + _IN_PLACE_SECONDS

    def before_fork(self) -> None:
        """Close what nobody uses now, so that nothing of it is left in SQLite's memory for a child to trip over."""
        self.drop_writer()
        self._drop_anchor()
        self._close_readers()

    def forget_parent(self) -> None:
        """Give up the parent's connections. Closing them here would free locks that the parent holds on the file."""
        abandon(*self._readers, self._writer, self._anchor)
        self._readers, self._writer, self._anchor, self._lock = [], None, None, None
        if self._head_descriptor is not None:
            os.close(self._head_descriptor)
            self._head_descriptor = None
        self._guard = threading.Lock()
        self._wrote = False

    def _connect(self, mode: str) -> Connection:
        with inside_sqlite:
            connection = connect(self._path, mode)
        if self._identity is None:
            self._identity = file_identity(self._address)
        return connection

    def damage(self, what: str) -> StoreDamaged:
        return damaged(self._path, what)

    def n_bytes(self) -> int:
        """The size of the file and of its log."""
        total = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                total += os.stat(f"{self._path}{suffix}").st_size
        return total

    def vacuum(self) -> None:
        """Write the file anew without free pages. Needs room for two more copies of it while it runs."""
        with self.exclusive() as connection:
            connection.execute("VACUUM")
            with impatient(connection):
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def copy_to(self, target: Path) -> None:
        """Copy the newest commit to a new file by SQLite's online backup; others may read and write meanwhile."""
        with self.read() as transaction:
            transaction.one("SELECT 1 FROM store_info")  # from here on the copy is of this snapshot
            with translated(target):
                transaction.copy_to(target)

    def structural_faults(self) -> Iterator[str]:
        """What SQLite itself finds wrong with the file, and commits that it lost."""
        with translated(self._path):
            for found in (self.lost_commits(), self._unwritable()):
                if found is not None:
                    yield found
        with self.read() as transaction:
            if transaction.one("PRAGMA application_id") != (APPLICATION,):
                yield "the file's header does not say that it is a store"
            for (line,) in transaction.all("PRAGMA integrity_check"):
                if line != "ok":
                    yield str(line)
            for table, row, _, _ in transaction.all("PRAGMA foreign_key_check"):
                yield f"row {row} of {table} belongs to nothing"

    def refuse_writes_after_loss(self) -> None:
        self._lost = self.lost_commits()
        if self._lost is not None:
            _LOG.warning("%s", damaged(self._path, self._lost))

    def _unwritable(self) -> str | None:
        """What keeps the file from being written, where it is not the system; another writer is passed over."""
        if not may_write(self._folder):
            return None
        with suppress(StoreLocked), self.writer_lock().held(0), inside_sqlite:
            connection = self._connect("rw")
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("UPDATE store_info SET value = value")  # in memory only
                connection.execute("ROLLBACK")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_READONLY:
                    return "the file's header says that it cannot be written to"
                raise
            finally:
                connection.close()
        return None

    def lost_commits(self) -> str | None:
        """What is wrong, where the database lacks a commit that was acknowledged in this folder; else None."""
        noted = read_head(self._folder)  # before the database: it is written after the commit
        if noted is None:
            return None
        try:
            with self.read() as transaction:
                held = transaction.newest_head() or noted
        except (ValueError, TypeError):
            return "it does not say which commit is its newest"
        if held.number < noted.number:
            return (
                f"it ends with commit {held.number:,} of the store, but commit {noted.number:,} was"
                " acknowledged: its log (store.db-wal) was lost or damaged, or another database was put in its place"
            )
        if held.number == noted.number and held.name != noted.name:
            return f"it is of another history than the commit that {HEAD_NAME} notes beside it"
        return None

    def close(self) -> None:
        """Close every connection that is not in use; a write that another thread has in hand is waited for.

        After writing, the log is copied into the database and emptied, if no other process writes.
        """
        if self._writer is not None or self._anchor is not None:
            lock = self.writer_lock()
            # To close a connection under a thread that uses it would crash the process.
            with lock.kept_from_threads(self._lock_timeout) as kept:
                if kept:
                    with inside_sqlite:
                        self._close_writer(lock)
        self._close_readers()
        self._identity = None

    def _close_readers(self) -> None:
        """Close the connections that wait for the next snapshot; those in use are not taken back then."""
        idle, self._readers = self._readers, []
        with inside_sqlite:
            while idle:
                with suppress(IndexError):  # another thread may take the last one
                    idle.pop().close()

    def _close_writer(self, lock: ProcessLock) -> None:
        """Copy the log into the database, and close the writing connection; no other thread has it."""
        if self._wrote and self._writer is not None:
            with suppress(EmbedstoreError, sqlite3.Error), lock.kept_from_processes(0), inside_sqlite:
                self._writer.execute("PRAGMA busy_timeout = 0")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                reach("close.checkpointed")
        self.drop_writer()
        self._drop_anchor()
        if self._head_descriptor is not None:
            os.close(self._head_descriptor)
            self._head_descriptor = None


def _advance_head(connection: Connection) -> Head | None:
    """Give a commit that belongs to no collection the store's next number; None where the store is just being made."""
    head = Head(newest_number(connection.memory) + 1, secrets.token_hex(8))
    done = connection.execute("UPDATE store_info SET value = ? WHERE name = 'head'", (head.to_text(),))
    return head if done.rowcount else None
