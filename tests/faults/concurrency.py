"""Many processes on one store: every answer is one that a single history of whole batches gives.

Writers change batches of ``BATCH`` records and note in a journal what they begin and what is acknowledged. The state of
a batch after its operation number n is either absent or has v = n in all its records. Readers look into the journal
before and after a query, and accept the states between the last acknowledged and the last begun operation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import embedstore
from embedstore import RecordNotFound
from embedstore.storage import catalog
from embedstore.storage.fitted import fitted_of

TESTS = Path(__file__).resolve().parent.parent
BATCH = 5
DIM = 8
ANY = -2
"""Stands for the version of records that were only counted."""
PATIENCE = 60.0
"""Seconds that a writer waits for its turn; no writer may wait longer."""


# ---- what is written


def tag_of(writer: int, number: int) -> str:
    """The name of a batch; a word that only its records hold."""
    return f"w{writer}b{number}"


def keys_of(tag: str) -> list[str]:
    """The keys of a batch."""
    return [f"{tag}-{place}" for place in range(BATCH)]


def vector_of(tag: str) -> np.ndarray:
    """A direction that belongs to a batch."""
    return np.random.default_rng(list(tag.encode())).standard_normal(DIM).astype(np.float32)


def records_of(tag: str, version: int) -> list[dict[str, Any]]:
    """The records of a batch after its operation number ``version``."""
    vector = vector_of(tag)
    return [
        {
            "key": key, "text": f"record {place} of {tag} at version {version}", "batch": tag, "v": version,
            "vector": vector + np.float32(0.01 * place + 0.001 * version),
        }
        for place, key in enumerate(keys_of(tag))
    ]  # fmt: skip


@dataclass(slots=True)
class History:
    """What the journal says of one batch: operations begun and acknowledged, and which of them were deletions."""

    begun: int = -1
    acknowledged: int = -1
    absent_after: set[int] = field(default_factory=lambda: {-1})

    def allows(self, version: int | None, acknowledged: int) -> bool:
        """Whether a state may be seen, by one who knew of ``acknowledged`` operations before asking."""
        possible = range(acknowledged, self.begun + 1)
        if version is None:
            return any(one in self.absent_after for one in possible)
        present = [one for one in possible if one not in self.absent_after]
        return bool(present) if version == ANY else version in present


class Journal:
    """The journals of all writers, read as they grow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[Path, int] = {}
        self.batches: dict[str, History] = defaultdict(History)

    def read(self) -> None:
        """Read what was added."""
        for path in sorted(self._folder.glob("journal-*")):
            with path.open("rb") as file:
                file.seek(self._places.get(path, 0))
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._places[path] = self._places.get(path, 0) + len(line)
                    word, tag, number, kind = line.decode().split()
                    history = self.batches[tag]
                    if word == "A":
                        history.acknowledged = int(number)
                        continue
                    history.begun = int(number)
                    if kind == "delete":
                        history.absent_after.add(int(number))


# ---- the parts


class Part:
    """A process that works on the store for some seconds, and counts what it did and what went wrong.

    It says that it is ready, and begins when its input ends, so that all begin together.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        name, folder, cache, url, seconds, seed = arguments
        self.name = name
        self.folder = Path(folder)
        self.seconds = float(seconds)
        self.number = int(seed) % 1000
        self.random = Random(int(seed))
        self.store = embedstore.open(cache, database=url or None, lock_timeout=PATIENCE)
        self.collection = self.store.collection("c")
        self.done: dict[str, int] = defaultdict(int)
        self.faults: list[str] = []

    def run(self) -> None:
        """Work, then print the report."""
        work = getattr(self, self.name)
        len(self.collection)
        print("ready", flush=True)
        sys.stdin.read()
        stop = time.monotonic() + self.seconds
        try:
            while time.monotonic() < stop and len(self.faults) < 10:
                self.done[work()] += 1
        except BaseException:
            self.faults.append(f"{self.name} {self.number}: {traceback.format_exc()[-2500:]}")
        self.store.close()
        print(json.dumps({"done": self.done, "faults": self.faults}))

    def writer(self) -> str:
        """Change one of this writer's batches."""
        if "batches" not in vars(self):
            self.batches: dict[str, tuple[int, bool]] = {}
            self.journal = os.open(
                self.folder / f"journal-{self.number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
            )
        kind = self.random.choice(["add", "add", "upsert", "upsert", "update", "delete", "readd"])
        there = [tag for tag, (_, present) in self.batches.items() if present]
        gone = [tag for tag, (_, present) in self.batches.items() if not present]
        if kind == "readd" and gone:
            tag, kind = self.random.choice(gone), "add"
        elif kind in ("add", "readd") or not there:
            tag, kind = tag_of(self.number, len(self.batches)), "add"
        else:
            tag = self.random.choice(there[-8:])
        version = self.batches.get(tag, (-1, False))[0] + 1
        self._note("B", tag, version, kind)
        report = self._change(tag, version, kind)
        self._note("A", tag, version, kind)
        self.batches[tag] = version, kind != "delete"
        if report != BATCH:
            self.faults.append(f"{kind} of {tag} changed {report} records")
        return kind

    def _change(self, tag: str, version: int, kind: str) -> int:
        if kind == "add":
            return self.collection.add(records_of(tag, version)).added
        if kind == "upsert":
            return self.collection.upsert(records_of(tag, version)).updated
        if kind == "update":
            return self.collection.update([{"key": key, "v": version} for key in keys_of(tag)]).updated
        return self.collection.delete(keys_of(tag))

    def _note(self, word: str, tag: str, version: int, kind: str) -> None:
        os.write(self.journal, f"{word} {tag} {version} {kind}\n".encode())

    def reader(self) -> str:
        """Ask one question about one batch, and compare the answer with the journal."""
        if "known" not in vars(self):
            self.known = Journal(self.folder)
        self.known.read()
        if not self.known.batches:
            time.sleep(0.01)
            return "wait"
        tags = list(self.known.batches)
        tag = self.random.choice(tags[-12:] if self.random.random() < 0.7 else tags)
        acknowledged = self.known.batches[tag].acknowledged
        kind = self.random.choice(["search", "search_batch", "get", "get_many", "count", "keywords", "records"])
        seen = self._seen(tag, kind)
        self.known.read()
        history = self.known.batches[tag]
        if len(seen) not in ((0, 1) if kind == "get" else (0, BATCH)) or len(set(seen)) > 1:
            self.faults.append(f"{kind} of {tag} saw half a batch: {seen}")
        elif not history.allows(seen[0] if seen else None, acknowledged):
            self.faults.append(f"{kind} of {tag} saw {seen}; knew {acknowledged} before, and then {history}")
        return kind

    def _seen(self, tag: str, kind: str) -> list[int]:
        """The versions of the batch's records that one query finds; ANY where it does not tell them."""
        ours, where, vector = self.collection, f"batch = '{tag}'", vector_of(tag)
        if kind == "count":
            return [ANY] * ours.count(where)
        if kind == "get":
            try:
                return [ours.get(self.random.choice(keys_of(tag))).metadata["v"]]
            except RecordNotFound:
                return []
        if kind == "get_many":
            records = ours.get_many(keys_of(tag))
        elif kind == "records":
            records = list(ours.records(where))
        else:
            if kind == "keywords":
                hits = ours.search(tag, k=3 * BATCH, mode="text")
            elif kind == "search_batch":
                hits = ours.search_batch([vector, vector + 1], k=3 * BATCH, where=where)[0]
            else:
                hits = ours.search(vector, k=3 * BATCH, where=where)
            records = [hit.record for hit in hits]
        return [record.metadata["v"] for record in records]

    def builder(self) -> str:
        """Build caches, or make the store smaller."""
        kind = self.random.choice(["refresh", "hnsw", "flat", "search", "compact"])
        if kind == "refresh":
            self.collection.refresh()
        elif kind == "search":
            self.collection.search(np.ones(DIM, np.float32), k=3)
        elif kind == "compact":
            self.store.compact()
        else:
            self.collection.index(recipe=kind)
        time.sleep(0.3)
        return kind


# ---- the conductor


def spawn(role: str, folder: Path, cache: Path, url: str | None, seconds: float, seed: int) -> subprocess.Popen[str]:
    """Start a part; it waits for its input to end."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}{os.pathsep}{TESTS / 'plugin'}"}
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", __file__, role, str(folder), str(cache), url or "",
         str(seconds), str(seed)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def prepare(cache: Path, url: str | None) -> None:
    """Make the collection, with one record, so that every field is known, and with spaces made of its vectors."""
    with embedstore.open(cache, database=url) as store:
        collection = store.collection("c", encoder="none")
        collection.add([{**records_of("seed", 0)[0], "batch": "seed"}])
        collection.add_space("half", reduce="random", dim=DIM // 2)
        collection.add_space("both", reduce="product", of=["half", "vector"])


def run_parts(
    folder: Path, caches: Sequence[Path], url: str | None, seconds: float, seed: int,
    n_writers: int = 4, n_readers: int = 4,
) -> dict[str, Any]:
    """Let writers, readers and a builder work for some seconds; what they did, and what was wrong."""
    prepare(caches[0], url)
    journals = folder / "journals"
    journals.mkdir()
    roles = [*["writer"] * n_writers, *["reader"] * n_readers, "builder"]
    parts = [
        spawn(role, journals, caches[place % len(caches)], url, seconds, 1000 * seed + place)
        for place, role in enumerate(roles)
    ]
    for part in parts:
        assert part.stdin is not None
        assert part.stdout is not None
        part.stdout.readline()
    for part in parts:
        part.stdin.close()
        part.stdin = None
    done: dict[str, int] = defaultdict(int)
    faults: list[str] = []
    for role, part in zip(roles, parts, strict=True):
        printed, errors = part.communicate(timeout=seconds + 3 * PATIENCE)
        if part.returncode != 0 or "rror" in errors or "damaged" in errors:
            faults.append(f"{role} ended with {part.returncode}: {errors[-2500:]}")
        if printed:
            report = json.loads(printed.splitlines()[-1])
            faults += report["faults"]
            for kind, n_times in report["done"].items():
                done[f"{role} {kind}"] += n_times
    faults += final_faults(journals, caches, url)
    return {"done": dict(sorted(done.items())), "faults": faults}


def final_faults(journals: Path, caches: Sequence[Path], url: str | None) -> list[str]:
    """What is missing, too much or of another version at the end, and what ``verify`` finds."""
    journal = Journal(journals)
    journal.read()
    faults = []
    for cache in caches:
        with embedstore.open(cache, database=url) as store:
            found: dict[str, list[int]] = defaultdict(list)
            for record in store.collection("c").records():
                found[record.metadata["batch"]].append(record.metadata["v"])
            found.pop("seed")
            for tag, history in journal.batches.items():
                gone = history.acknowledged in history.absent_after
                wanted = [] if gone else [history.acknowledged] * BATCH
                if history.acknowledged != history.begun or found.pop(tag, []) != wanted:
                    faults.append(f"{tag} is not what was acknowledged last: {history}")
            faults += [f"{tag} was never written" for tag in found]
            faults += [f"verify: {problem}" for problem in store.verify().problems]
            faults += derived_faults(store)
    return faults


def derived_faults(store: embedstore.Store) -> list[str]:
    """Where the spaces that are made of others do not hold what becomes of those ones' vectors."""
    collection = store.collection("c")
    keys = [record.key for record in collection.records()]
    parents, half, both = (collection.vectors(keys, space=name) for name in (None, "half", "both"))
    with store.reading() as transaction:
        row = catalog.require_collection(transaction, "c")
        kept = fitted_of(transaction, catalog.spaces_of(transaction, row.collection_id)["half"].space_id, "")
    whole = np.concatenate([unit(half), unit(parents)], axis=1) * np.sqrt(0.5)
    faults = []
    for name, wanted, found in (("half", unit(parents) @ kept.arrays["matrix"].T, half), ("both", whole, both)):
        wrong = np.abs(wanted - found).max(axis=1) > 1e-4
        faults += [f"{key} in {name!r} is not of its vector" for key, bad in zip(keys, wrong, strict=True) if bad]
    return faults


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, d) at length one."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def freshness(caches: Sequence[Path], url: str | None, n_times: int) -> list[str]:
    """Have one process write and another, long open, ask at once; the questions that were answered too old."""
    prepare(caches[0], url)
    writer, reader = (_Talker(cache, url) for cache in (caches[0], caches[-1]))
    faults = []
    try:
        reader.ask("all", "seed")
        for number in range(n_times):
            tag = tag_of(9, number)
            writer.ask("add", tag)
            kinds = ["get", "search", "keywords", "count"]
            for kind in kinds[number % 4 :] + kinds[: number % 4]:
                found = reader.ask(kind, tag)
                if found != 1:
                    faults.append(f"{kind} of {tag} found {found} after the acknowledgement")
            writer.ask("delete", tag)
            if reader.ask(kinds[number % 4], tag) != 0:
                faults.append(f"{kinds[number % 4]} of {tag} found it after its deletion")
            writer.ask("add", tag)
    finally:
        writer.close()
        reader.close()
    return faults


class _Talker:
    """A process with an open store that answers one question after the other."""

    def __init__(self, cache: Path, url: str | None) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}{os.pathsep}{TESTS / 'plugin'}"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "talker", str(cache), url or ""], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, kind: str, tag: str) -> int:
        """One question; how many records were found, or were changed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{kind} {tag}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def talk(cache: str, url: str) -> None:
    """Answer questions from standard input."""
    with embedstore.open(cache, database=url or None) as store:
        collection = store.collection("c")
        for line in sys.stdin:
            kind, tag = line.split()
            answers: dict[str, Callable[[], int]] = {
                "add": lambda tag=tag: collection.add(records_of(tag, 0)[:1]).added,
                "delete": lambda tag=tag: collection.delete(keys_of(tag)),
                "get": lambda tag=tag: len(collection.get_many(keys_of(tag))),
                "search": lambda tag=tag: sum(
                    hit.record.metadata["batch"] == tag for hit in collection.search(vector_of(tag), k=1)
                ),
                "keywords": lambda tag=tag: len(collection.search(tag, mode="text")),
                "count": lambda tag=tag: collection.count(f"batch = '{tag}'"),
            }
            answers["all"] = lambda ask=answers: sum(ask[one]() for one in ("get", "search", "keywords", "count"))
            print(answers[kind](), flush=True)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="embedstore-concurrency-") as name:
        yield Path(name)


def on_sqlite(seed: int, seconds: float = 60.0) -> dict[str, Any]:
    """Four writers, four readers and a builder on one SQLite store, then 50 writes that another process must see."""
    with scratch() as folder:
        report = run_parts(folder, [folder / "store"], None, seconds, seed)
        report["faults"] += freshness([folder / "fresh"], None, 50)
        return _summary(report)


def on_postgres(seed: int, seconds: float = 60.0) -> dict[str, Any]:
    """The same on PostgreSQL, with two folders of caches, as two machines have."""
    from faults.migrations import databases

    with scratch() as folder, databases() as create:
        if create is None:
            return {"rounds": 0, "violations": 0, "faults": [], "skipped": "there is no PostgreSQL server"}
        caches = [folder / "one", folder / "two"]
        report = run_parts(folder, caches, create(), seconds, seed)
        report["faults"] += freshness(caches, create(), 50)
        return _summary(report)


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "rounds": sum(report["done"].values()) + 50, "violations": len(report["faults"]),
        "done": report["done"], "faults": report["faults"][:20],
    }  # fmt: skip


CAMPAIGNS = {"concurrency on SQLite": on_sqlite, "concurrency on PostgreSQL": on_postgres}
QUICK_CAMPAIGNS = {
    "concurrency on SQLite": lambda seed: on_sqlite(seed, 5.0),
    "concurrency on PostgreSQL": lambda seed: on_postgres(seed, 5.0),
}


if __name__ == "__main__":
    if sys.argv[1] == "talker":
        talk(*sys.argv[2:])
    else:
        Part(sys.argv[1:]).run()
