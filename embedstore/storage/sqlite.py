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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import orjson

from embedstore.errors import (
    DamagedRow,
    EmbedstoreError,
    NotAStore,
    StorageFailed,
    StorageFull,
    StoreDamaged,
    StoreLocked,
)
from embedstore.failpoints import reach
from embedstore.forking import abandon, inside_sqlite, tell_forked
from embedstore.storage.damage import damaged
from embedstore.storage.database import Mark, Memory, PackedRecord, Transaction
from embedstore.storage.files import has_content, make_private, sync_folder
from embedstore.storage.head import HEAD_NAME, Head, read_head, write_head
from embedstore.storage.layout import APPLICATION, DATABASE_NAME, LOCK_NAME, id_range
from embedstore.storage.locks import ProcessLock
from embedstore.storage.revision import check_current
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
PAGE_BYTES = 8192
_FRESH_NAME = f"{DATABASE_NAME}.new"
CHECKPOINT_BYTES = 128 << 20
"""The log is copied into the database, and emptied, when it has grown past this."""
CHECKPOINT_PAGES = 1000
"""After a small commit it is copied from so many pages on, and then written over: a log that grows syncs slowly."""
_SMALL_COMMIT = 1000  # rows
_BUSY_MILLISECONDS = 10_000


class SQLiteDatabase:
    """The file ``store.db`` in a store's folder."""

    dialect = SQLiteDialect()

    def __init__(self, folder: Path, *, lock_timeout: float) -> None:
        self._folder = folder = Path(os.path.abspath(folder))
        self._path = folder / DATABASE_NAME
        self._address = os.fspath(self._path)
        self._head_path = os.fspath(folder / HEAD_NAME)
        self._lock_timeout = lock_timeout
        self._lock: ProcessLock | None = None
        self._guard = threading.Lock()
        self._readers: list[_Connection] = []
        self._writer: _Connection | None = None
        self._anchor: _Connection | None = None
        self._wrote = False
        self._lost: str | None = None
        self._identity: tuple[int, int] | None = None
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
                self._create_file()
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

    def _create_file(self) -> None:
        """Make an empty database in WAL mode. It gets its name when it is whole and durable.

        Made in place it would have a rollback journal for a moment; a process killed then would leave a file that
        cannot be opened read-only.
        """
        fresh = self._folder / _FRESH_NAME
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            setup = sqlite3.connect(fresh, isolation_level=None)
            try:
                setup.execute("PRAGMA journal_mode = MEMORY")
                setup.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                setup.execute("PRAGMA journal_mode = WAL")
            finally:
                setup.close()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(fresh, self._path)

    def _refuse_foreign_folder(self) -> None:
        if self._folder.is_dir():
            known = {DATABASE_NAME, _FRESH_NAME, LOCK_NAME, HEAD_NAME}
            others = sorted(name.name for name in self._folder.iterdir() if name.name not in known)
            if others and not self._path.exists():  # else another process is just creating the store
                raise NotAStore(
                    f"{self._folder} is no store: it holds {len(others)} other files ({others[0]!r} ...) and no"
                    f" {DATABASE_NAME}; give a new or an empty folder"
                )
        elif self._folder.exists():
            raise NotAStore(f"{self._folder} is a file; a store is a folder")

    def read(self) -> _Reading:
        return _Reading(self)

    def records_and_mark(
        self, collection_id: int, record_ids: Sequence[int]
    ) -> tuple[list[PackedRecord], Mark] | None:
        connection = self.take_reader()
        try:
            with inside_sqlite:
                ((newest, head, packed),) = connection.execute(
                    packed_statement(len(record_ids), marked=True),
                    (*id_range(collection_id), *ids_parameters(record_ids)),
                ).fetchall()
            read = [] if packed is None else orjson.loads(packed), (newest, head)
        except (sqlite3.OperationalError, sqlite3.DatabaseError, orjson.JSONDecodeError):
            with inside_sqlite:
                connection.close()
            return None
        self.keep_reader(connection)
        return read

    def write(self, timeout: float | None = None) -> _Writing:
        return _Writing(self, self._lock_timeout if timeout is None else timeout)

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
        with self.writer_lock().held(self._lock_timeout), translated(self._path):
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
            grown = os.stat(f"{self._path}-wal").st_size > CHECKPOINT_BYTES
        except OSError:
            return
        if grown:
            reach("checkpoint.begun")
            with suppress(sqlite3.Error):  # the commit stands whether or not the log could be copied
                with _impatient(connection):
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            reach("checkpoint.done")

    def writer_lock(self) -> ProcessLock:
        """The lock that lets one process write at a time."""
        with self._guard:
            if self._lock is None:
                self._lock = ProcessLock(self._folder / LOCK_NAME)
            return self._lock

    def _take_writer(self) -> _Connection:
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

    def take_reader(self) -> _Connection:
        """A connection for one snapshot, which nobody else has until ``keep_reader``."""
        self._refuse_replaced()
        try:
            return self._readers.pop()  # of a list, which threads may share without a lock
        except IndexError:
            return self._connect("ro")

    def keep_reader(self, connection: _Connection) -> None:
        """Keep a connection for the next snapshot, where it may be."""
        if connection.lasting:
            self._readers.append(connection)
        else:
            with inside_sqlite:
                connection.close()

    def _refuse_replaced(self) -> None:
        """Raise StorageFailed where another file has come into the place of the one that is open."""
        opened = self._identity  # another thread may be closing the store
        if opened is not None and _identity(self._address) != opened:
            raise StorageFailed(
                f"{self._path} was moved away or replaced while this process had it open; close the store, and open it"
                " again"
            )

    def forget_parent(self) -> None:
        """Give up the parent's connections. Closing them here would free locks that the parent holds on the file."""
        abandon(*self._readers, self._writer, self._anchor)
        self._readers, self._writer, self._anchor, self._lock = [], None, None, None
        if self._head_descriptor is not None:
            os.close(self._head_descriptor)
            self._head_descriptor = None
        self._guard = threading.Lock()
        self._wrote = False

    def _connect(self, mode: str) -> _Connection:
        with inside_sqlite:
            return self._connected(mode)

    def _connected(self, mode: str) -> _Connection:
        """Open the file. Readers open it read-only, so that they never checkpoint, even as the last to close."""
        address = f"file:{quote(os.fsencode(self._path))}?mode={mode}"
        connection = _opened(address)
        if mode == "ro" and not _may_write(self._folder) and not _can_read(connection):
            # Without the right to write there is no shared memory to read a log by. A store that was closed cleanly has
            # none; what another user writes from now on is seen by connections that are opened later.
            connection.close()
            if has_content(Path(f"{self._path}-wal")):
                raise StorageFailed(
                    f"{self._path} has a log that only a user with the right to write to the folder can read; let one"
                    " open and close the store"
                )
            connection = _opened(f"{address}&immutable=1")
            connection.lasting = False
        if self._identity is None:
            self._identity = _identity(self._address)
        try:
            for name, value in _pragmas(mode).items():
                connection.execute(f"PRAGMA {name} = {value}").fetchall()
                (found,) = connection.execute(f"PRAGMA {name}").fetchone()
                if str(found).lower() != value:
                    raise StorageFailed(f"{self._path}: SQLite set {name} to {found!r}, not {value!r} as asked")
        except BaseException:
            connection.close()
            raise
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
            with _impatient(connection):
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
        if not _may_write(self._folder):
            return None
        with suppress(StoreLocked), self.writer_lock().held(0):
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
                    self._close_writer(lock)
        with inside_sqlite:
            while self._readers:
                with suppress(IndexError):  # another thread may take the last one
                    self._readers.pop().close()
        self._identity = None

    def _close_writer(self, lock: ProcessLock) -> None:
        """Copy the log into the database, and close the writing connection; no other thread has it."""
        if self._wrote and self._writer is not None:
            with suppress(EmbedstoreError, sqlite3.Error), lock.kept_from_processes(0), inside_sqlite:
                self._writer.execute("PRAGMA busy_timeout = 0")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                reach("close.checkpointed")
        self.drop_writer()
        if self._anchor is not None:
            self._anchor.close()
            self._anchor = None
        if self._head_descriptor is not None:
            os.close(self._head_descriptor)
            self._head_descriptor = None


class _Reading:
    """The block of one snapshot: a connection that nobody else has, a transaction, and the errors of the driver.

    A class for the reason that ``_Writing`` is one.
    """

    __slots__ = ("_connection", "_database")

    def __init__(self, database: SQLiteDatabase) -> None:
        self._database = database

    def __enter__(self) -> SQLiteTransaction:
        try:
            connection = self._connection = self._database.take_reader()
            try:
                with inside_sqlite:
                    connection.execute("BEGIN")
                    connection.recall()
            except BaseException:
                with inside_sqlite:
                    connection.close()
                raise
        except BaseException as error:
            raise_translated(error, self._database.path)
        return SQLiteTransaction(connection, connection.memory)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        connection = self._connection
        if error is None:
            try:
                with inside_sqlite:
                    connection.execute("COMMIT")
            except sqlite3.Error as failed:
                connection.close()
                raise_translated(failed, self._database.path)
            self._database.keep_reader(connection)
        else:
            with inside_sqlite:
                connection.close()
            if isinstance(error, (sqlite3.Error, DamagedRow)):
                raise_translated(error, self._database.path)


class _Writing:
    """The block of one write: takes the lock, begins, commits or rolls back, gives back the lock.

    A class, since generators for each of these take a tenth of the time of a small write.
    """

    __slots__ = ("_database", "_lock", "_timeout", "_transaction")

    def __init__(self, database: SQLiteDatabase, timeout: float) -> None:
        self._database = database
        self._lock = database.writer_lock()
        self._timeout = timeout

    def __enter__(self) -> SQLiteTransaction:
        self._lock.take(self._timeout)
        try:
            # All of it: a child that is forked in the middle would hold its copy of SQLite's lock for ever.
            inside_sqlite.__enter__()
            try:
                self._transaction = self._database.begin_write()
            except BaseException:
                inside_sqlite.__exit__()
                raise
        except BaseException as error:
            self._lock.give_back()
            raise_translated(error, self._database.path)
        return self._transaction

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self._database.commit(self._transaction)
            else:
                self._database.drop_writer()
                raise_translated(error, self._database.path)
        except (sqlite3.Error, DamagedRow) as failed:
            raise_translated(failed, self._database.path)
        finally:
            inside_sqlite.__exit__()
            self._lock.give_back()


class _Connection(sqlite3.Connection):
    """A connection that is kept for the next transaction, unless it is not ``lasting``.

    ``memory`` is what its transactions read of the catalog. It holds until another connection commits.
    """

    lasting = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.memory: Memory = {}
        self._version = -1

    def recall(self) -> None:
        """Begin the transaction's snapshot, and forget what is remembered of another state of the database."""
        (version,) = self.execute("PRAGMA data_version").fetchone()
        if version != self._version:
            self.memory.clear()
            self._version = version


@contextmanager
def _impatient(connection: sqlite3.Connection) -> Iterator[None]:
    """Within the block, the connection waits for nobody: a reader may go on for long."""
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")


def _advance_head(connection: _Connection) -> Head | None:
    """Give a commit that belongs to no collection the store's next number; None where the store is just being made."""
    head = Head(newest_number(connection.memory) + 1, secrets.token_hex(8))
    done = connection.execute("UPDATE store_info SET value = ? WHERE name = 'head'", (head.to_text(),))
    return head if done.rowcount else None


def _opened(address: str) -> _Connection:
    return sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=_BUSY_MILLISECONDS / 1000,
        factory=_Connection,
    )  # fmt: skip


def _can_read(connection: sqlite3.Connection) -> bool:
    try:
        connection.execute("SELECT 1 FROM sqlite_master").fetchall()
    except sqlite3.OperationalError:
        return False
    return True


def _pragmas(mode: str) -> dict[str, str]:
    if mode == "ro":
        return {"query_only": "1", "cache_size": "-16384"}
    return {
        "journal_mode": "wal",
        "synchronous": "2",  # FULL: NORMAL loses acknowledged commits in a power cut
        "foreign_keys": "1",
        "wal_autocheckpoint": "0",
        "cache_size": "-65536",
    }


def _may_write(folder: Path) -> bool:
    return os.access(folder, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _identity(path: str) -> tuple[int, int] | None:
    """What tells a file from another that has its name; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def create_tables(transaction: SQLiteTransaction) -> None:
    """Create every table of the current schema, and note its revision as Alembic does."""
    from sqlalchemy.dialects import sqlite
    from sqlalchemy.schema import CreateIndex, CreateTable

    from embedstore.storage.schema import CREATE_REVISION, SCHEMA_REVISION, tables

    dialect = sqlite.dialect()
    for table in tables.sorted_tables:
        transaction.run(str(CreateTable(table).compile(dialect=dialect)))
        for index in sorted(table.indexes, key=lambda one: str(one.name)):
            transaction.run(str(CreateIndex(index).compile(dialect=dialect)))
    transaction.run(CREATE_REVISION)
    transaction.insert("alembic_version", ["version_num"], [(SCHEMA_REVISION,)])


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the driver's errors into the store's, with the path and what to do."""
    try:
        yield
    except (sqlite3.Error, DamagedRow) as error:
        raise_translated(error, path)


def raise_translated(error: BaseException, path: Path) -> NoReturn:
    """Raise an error; one of the driver's as the store's."""
    if isinstance(error, sqlite3.Error):
        raise _translation(error, path) from error
    if isinstance(error, DamagedRow):
        raise damaged(path, str(error)) from error
    raise error


def _translation(error: sqlite3.Error, path: Path) -> EmbedstoreError:
    text = str(error)
    extended = getattr(error, "sqlite_errorcode", 0)
    code = extended & 0xFF
    if extended == sqlite3.SQLITE_IOERR_SHMSIZE:
        return StorageFull(f"no space left to open {path}: SQLite needs a small file beside it; free some space")
    if code == sqlite3.SQLITE_FULL or "database or disk is full" in text:  # a backup's error has no code
        return StorageFull(f"no space left for {path}; nothing of this write was kept. Free space and write again")
    if code == sqlite3.SQLITE_BUSY:
        return StoreLocked(f"{path} is locked by a program that is not embedstore ({text}); close it and try again")
    if code == sqlite3.SQLITE_NOTADB and read_head(path.parent) is not None:
        return damaged(path, "its header is not that of a SQLite database")
    if code == sqlite3.SQLITE_NOTADB:
        return NotAStore(f"{path} is not a SQLite database, so this folder is no store (or its header is damaged)")
    if code == sqlite3.SQLITE_CORRUPT or "decode to UTF-8" in text or "malformed" in text:
        return damaged(path, text)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return StorageFailed(f"{path} cannot be opened for this ({text}); check that the folder can be written to")
    return StorageFailed(f"{path}: {text}")
