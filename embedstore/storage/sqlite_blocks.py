"""The blocks of a snapshot and of a write: what is taken when they begin, and given back however they end.

They are classes, since generators for each of these take a tenth of the time of a small write.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING

from embedstore.forking import inside_sqlite
from embedstore.storage.sqlite_errors import ERRORS, raise_translated
from embedstore.storage.sqlite_statements import SQLiteTransaction

if TYPE_CHECKING:
    from embedstore.storage.sqlite import SQLiteDatabase


class Reading:
    """The block of one snapshot: a connection that nobody else has, with a transaction."""

    __slots__ = ("_connection", "_database")

    def __init__(self, database: SQLiteDatabase) -> None:
        self._database = database

    def __enter__(self) -> SQLiteTransaction:
        inside_sqlite.begin(self)
        try:
            connection = self._connection = self._database.take_reader()
            try:
                with inside_sqlite:
                    connection.execute("BEGIN")
                    connection.recall()
            except BaseException:
                self._database.drop_reader(connection)
                raise
        except BaseException as error:
            inside_sqlite.end(self)
            raise_translated(error, self._database.path)
        return SQLiteTransaction(connection, connection.memory)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._end(error)
        finally:
            inside_sqlite.end(self)

    def _end(self, error: BaseException | None) -> None:
        connection = self._connection
        if error is None and connection.process == os.getpid():
            try:
                with inside_sqlite:
                    connection.execute("COMMIT")
            except sqlite3.Error as failed:
                self._database.drop_reader(connection)
                raise_translated(failed, self._database.path)
            self._database.keep_reader(connection)
        else:
            self._database.drop_reader(connection)
            if isinstance(error, ERRORS):
                raise_translated(error, self._database.path)


class Writing:
    """The block of one write: takes the lock, begins, commits or rolls back, gives back the lock."""

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
        except ERRORS as failed:
            raise_translated(failed, self._database.path)
        finally:
            inside_sqlite.__exit__()
            self._lock.give_back()
