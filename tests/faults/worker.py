"""The process that is broken: it carries out a plan on a store, and says before and after each operation where it is.

It reads one line of JSON from its input: ``folder``, ``plan`` (see ``plans``), ``settings`` (constants of
``embedstore.storage.sqlite`` by name) and ``breaks`` (keys of ``BREAKS``). It writes ``READY``, then ``TRY i`` before
and ``ACK i`` after the operation at place i. It exits with 0 only where every operation succeeded and every search
found what it must.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import embedstore
from embedstore.indexing import cachefile
from embedstore.storage import sqlite, sqlite_connection
from faults.plans import Operation, archive_of, changes, given, key_of


def say(line: str) -> None:
    """Write a line in one system call, so that it is out before anything else happens."""
    os.write(1, f"{line}\n".encode())


class Worker:
    """Carries out operations on one store."""

    def __init__(self, folder: str) -> None:
        self._store = embedstore.open(folder)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def carry_out(self, operation: Operation) -> None:
        """One operation, by embedstore's public interface."""
        match operation["verb"]:
            case "reopen":
                path = self._store.path
                self._store.close()
                self._store = embedstore.open(path)
            case "drop":
                self._store.delete_collection(operation["collection"])
            case "compact":
                self._store.compact()
            case "backup":
                self._store.backup(archive_of(self._store.path), overwrite=True)
            case "restore":
                embedstore.restore(operation["archive"], operation["into"])
            case "repair":
                embedstore.repair(operation["source"], operation["into"])
            case verb:
                collection = self._store.collection(
                    operation["collection"], encoder="none", metric=operation["metric"], dim=operation["dim"]
                )
                _VERBS[verb](collection, operation)


def _records(operation: Operation) -> list[dict[str, Any]]:
    return [given(number, version, operation["dim"]) for number, version in operation["records"]]


def _update(collection: embedstore.Collection, operation: Operation) -> None:
    fields = changes(operation["version"])
    collection.update({"key": key_of(number), **fields} for number in operation["numbers"])


def _search(collection: embedstore.Collection, operation: Operation) -> None:
    """A record is the nearest to its own vector; one without a vector is not among the hits."""
    key = operation["key"]
    try:
        query = collection.vectors([key])[0]
    except embedstore.RecordNotFound:
        query = np.ones(operation["dim"], np.float32)
        assert key not in collection.search(query, k=10_000).keys, key
        return
    assert collection.search(query, k=3).keys[0] == key, key


def _words(collection: embedstore.Collection, operation: Operation) -> None:
    content = collection.get(operation["key"]).content
    if content is not None:
        assert collection.search(content.split()[0], mode="text").keys == [operation["key"]], operation["key"]


_VERBS: dict[str, Callable[[embedstore.Collection, Operation], object]] = {
    "create": lambda collection, _: collection.create(),
    "add": lambda collection, operation: collection.add(_records(operation)),
    "upsert": lambda collection, operation: collection.upsert(_records(operation)),
    "update": _update,
    "delete": lambda collection, operation: collection.delete([key_of(one) for one in operation["numbers"]]),
    "delete_below": lambda collection, operation: collection.delete(where=f"n < {operation['below']}"),
    "search": _search,
    "words": _words,
    "refresh": lambda collection, _: collection.refresh(),
    "index": lambda collection, _: collection.index(recipe="hnsw"),
}


# ---- what is broken on purpose, to prove that it is noticed


def _commits_unsynced() -> None:
    """Let SQLite sync its log at checkpoints only."""
    right = sqlite_connection.pragmas
    sqlite_connection.pragmas = lambda mode: right(mode) | ({} if mode == "ro" else {"synchronous": "1"})


class _LazySystem:
    """The module ``os``, but of files only manifests are synced."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        if "MANIFEST" in os.readlink(f"/proc/self/fd/{descriptor}"):
            os.fsync(descriptor)


def _caches_unsynced() -> None:
    """Publish cache files whose bytes were not synced."""
    cachefile.os = _LazySystem()


BREAKS: dict[str, Callable[[], None]] = {"commits unsynced": _commits_unsynced, "caches unsynced": _caches_unsynced}
"""Ways to break the library on purpose."""


def main() -> None:
    """Carry out the plan."""
    job = json.loads(sys.stdin.readline())
    for name, value in job["settings"].items():
        assert hasattr(sqlite, name), name
        setattr(sqlite, name, value)
    for name in job["breaks"]:
        BREAKS[name]()
    say("READY")
    worker = Worker(job["folder"])
    for place, operation in enumerate(job["plan"]):
        say(f"TRY {place}")
        worker.carry_out(operation)
        say(f"ACK {place}")
    worker.close()


if __name__ == "__main__":
    main()
