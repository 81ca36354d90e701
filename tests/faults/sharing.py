"""One store in many threads, and in processes forked while those threads work: nobody hangs, everybody sees the same.

    python tests/faults/sharing.py threads|forks FOLDER URL NUMBER

prints what was wrong as a list in JSON. It runs as a process of its own, so that a crash is only its end.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import embedstore

TESTS = Path(__file__).resolve().parent.parent
N_THREADS = 16
N_SHARED = 1000
_CHILD_SECONDS = 15.0


def opened(folder: str, url: str) -> embedstore.Store:
    """A store with a collection in which everything that is imported late has been used once."""
    store = embedstore.open(folder, database=url or None, lock_timeout=60)
    collection = store.collection("c", encoder="letters")
    collection.add([{"key": f"shared{i}", "text": "abc bad cab", "n": i} for i in range(N_SHARED)])
    for _ in range(2):
        work_once(collection, "warm", 0)
    return store


def work_once(collection: embedstore.Collection, name: str, number: int) -> None:
    """Write a record of one's own, find it in every way there is, change it and delete it."""
    key, word = f"{name}-{number}", f"{name}x{number}"
    assert collection.upsert([{"key": key, "text": f"bee {word}", "n": -number, "owner": name}]).added == 1
    assert collection.get(key).content == f"bee {word}"
    assert collection.search(word, mode="text", k=3).keys == [key]
    assert key in collection.search(word, k=2000, where=f"owner = '{name}'").keys
    assert collection.count(f"owner = '{name}'") == 1
    assert collection.update([{"key": key, "n": number}]).updated == (number != 0)
    assert len(collection.search("bad", k=3, where=f"n >= 0 and n <= {N_SHARED}")) == 3
    assert [record.key for record in collection.records(f"owner = '{name}'")] == [key]
    assert len(collection.sample(3)) == 3
    assert collection.delete([key]) == 1
    assert key not in collection


class Workers:
    """Threads that work until they are stopped."""

    def __init__(self, n_threads: int, work: Callable[[int, int], None]) -> None:
        self.faults: list[str] = []
        self.n_done = 0
        self._stop = threading.Event()
        self._work = work
        self._threads = [threading.Thread(target=self._run, args=(place,)) for place in range(n_threads)]
        for thread in self._threads:
            thread.start()

    def _run(self, place: int) -> None:
        number = 0
        try:
            while not self._stop.is_set():
                self._work(place, number)
                number += 1
                self.n_done += 1
        except BaseException:
            self.faults.append(traceback.format_exc()[-2000:])
            self._stop.set()

    def finish(self) -> None:
        """Stop them all."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


def threads(folder: str, url: str, seconds: float) -> list[str]:
    """Let threads write, search, build caches and close the store under each other's feet."""
    store = opened(folder, url)
    collection = store.collection("c")
    random = Random(0)

    def work(place: int, number: int) -> None:
        if place == 0:
            time.sleep(0.05)
            random.choice([store.close, collection.refresh, store.compact, collection.stats])()
        elif place == 1:
            collection.index(recipe=random.choice(["flat", "hnsw"]))
        else:
            work_once(collection, f"t{place}", number)

    workers = Workers(N_THREADS, work)
    time.sleep(seconds)
    workers.finish()
    faults = workers.faults
    if len(collection) != N_SHARED:
        faults.append(f"{len(collection)} records are left of {N_SHARED}")
    faults += [f"verify: {problem}" for problem in store.verify().problems]
    store.close()
    return faults


def forks(folder: str, url: str, n_forks: float) -> list[str]:
    """Fork while threads work; each child works with the store that it inherits."""
    store = opened(folder, url)
    collection = store.collection("c")
    workers = Workers(4, lambda place, number: work_once(collection, f"t{place}", number))
    faults = []

    def child(number: int) -> None:
        faulthandler.dump_traceback_later(_CHILD_SECONDS, exit=True)
        work_once(collection, f"child{number}", 1)
        collection.add([{"key": f"kept{number}", "text": "ace", "n": -1}])
        store.close()

    forking = multiprocessing.get_context("fork")
    for number in range(int(n_forks)):
        process = forking.Process(target=child, args=(number,))
        process.start()
        process.join(_CHILD_SECONDS + 5)
        if process.exitcode != 0:
            faults.append(f"child {number} ended with {process.exitcode}")
            process.kill()
    workers.finish()
    if len(collection) != N_SHARED + int(n_forks):
        faults.append(f"{len(collection)} records instead of {N_SHARED + int(n_forks)}")
    faults += workers.faults + [f"verify: {problem}" for problem in store.verify().problems]
    store.close()
    return faults


def run(what: str, folder: Path, url: str | None, number: float, timeout: float = 300) -> list[str]:
    """What was wrong in a process that does ``what``."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, what, str(folder), url or "", str(number)],
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}{os.pathsep}{TESTS / 'plugin'}"},
        timeout=timeout, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        return [f"{what} ended with {done.returncode}: {done.stderr[-3000:]}"]
    faults: list[str] = json.loads(done.stdout.splitlines()[-1])
    return [f"{fault}\n{done.stderr[-2000:]}" for fault in faults]


def campaign(seed: int, seconds: float = 30.0, n_forks: int = 100) -> dict[str, Any]:
    """Threads for some seconds and many forks, on SQLite and on PostgreSQL."""
    from faults.migrations import databases

    faults = []
    with tempfile.TemporaryDirectory(prefix="embedstore-sharing-") as name, databases() as create:
        for kind in ("sqlite", *(() if create is None else ("postgres",))):
            for what, number in (("threads", seconds), ("forks", float(n_forks))):
                url = create() if kind == "postgres" and create is not None else None
                faults += run(what, Path(name, f"{kind}-{what}-{seed}"), url, number)
    return {"rounds": 2 * (n_forks + 1), "violations": len(faults), "faults": faults[:20]}


CAMPAIGNS = {"threads and forks": campaign}
QUICK_CAMPAIGNS = {"threads and forks": lambda seed: campaign(seed, seconds=3.0, n_forks=6)}


if __name__ == "__main__":
    chosen = {"threads": threads, "forks": forks}[sys.argv[1]]
    print(json.dumps(chosen(sys.argv[2], sys.argv[3], float(sys.argv[4]))))
