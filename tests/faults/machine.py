"""A store against a model of it, by random sequences of operations, failures among them.

The model is a dictionary of records; searches are compared with brute force. Writers are killed, other processes write,
caches are damaged, stores are closed, compacted, backed up and restored, in any order that Hypothesis finds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from shared import ROOT, brute_force

import embedstore
from faults.specimen import everything_used

DIM = 5
N_KEYS = 24
METRICS = ("cosine", "dot", "euclidean")
LONG_EXAMPLES, LONG_STEPS = 500, 30

Model = dict[str, dict[str, Any]]
"""Records by key: number, version, and metadata."""

keys = st.integers(0, N_KEYS - 1)
versions = st.integers(0, 9)
some_keys = st.lists(keys, min_size=1, max_size=8, unique=True)


def vector_of(number: int, version: int) -> np.ndarray | None:
    """The vector of a version of a record, float32 (DIM,); None for some that have none."""
    if number % 8 == 7:
        return None
    return np.random.default_rng([number, version]).standard_normal(DIM).astype(np.float32)


def words_of(number: int, version: int) -> list[str]:
    """The words of a version of a record; some have no text."""
    return [] if number % 6 == 5 else [f"own{number}v{version}", f"shared{version % 3}"]


def given(number: int, version: int) -> dict[str, Any]:
    """A record as embedstore takes it."""
    record: dict[str, Any] = {"key": f"k{number}", "n": number, "v": version, "tag": "abc"[version % 3]}
    vector, words = vector_of(number, version), words_of(number, version)
    if words:
        record["text"] = " ".join(words)
    if vector is not None:
        record["vector"] = vector
    if vector is None and not words:
        record["uri"] = f"file:{number}"
    return record


def held(number: int, version: int) -> dict[str, Any]:
    """The same record in the model. A record that is overwritten without a vector keeps the one that it had."""
    metadata = {"n": number, "v": version, "tag": "abc"[version % 3]}
    return {"number": number, "version": version, "metadata": metadata}


# ---- operations, which other processes carry out as well


def carry_out(collection: embedstore.Collection, operation: dict[str, Any]) -> None:
    """One write."""
    verb = operation["verb"]
    if verb in ("add", "upsert"):
        getattr(collection, verb)([given(*one) for one in operation["records"]])
    elif verb == "delete":
        collection.delete([f"k{number}" for number in operation["numbers"]])
    elif verb == "delete where":
        collection.delete(where=f"v = {operation['version']}")
    else:
        collection.update([{"key": f"k{number}", "v": operation["version"]} for number in operation["numbers"]])


def after(model: Model, operation: dict[str, Any]) -> Model:
    """The model after one write."""
    new = {key: {**one, "metadata": dict(one["metadata"])} for key, one in model.items()}
    verb = operation["verb"]
    if verb in ("add", "upsert"):
        new.update({f"k{number}": held(number, version) for number, version in operation["records"]})
    elif verb == "delete":
        for number in operation["numbers"]:
            new.pop(f"k{number}", None)
    elif verb == "delete where":
        new = {key: one for key, one in new.items() if one["metadata"]["v"] != operation["version"]}
    else:
        for number in operation["numbers"]:
            new[f"k{number}"]["metadata"]["v"] = operation["version"]
    return new


_WORKER = """
import json, sys
import embedstore
from faults.machine import carry_out
for line in sys.stdin:
    job = json.loads(line)
    store = embedstore.open(job["path"])
    print("ready", flush=True)
    carry_out(store.collection("c"), job["operation"])
    print("done", flush=True)
    if job["close"]:
        store.close()
        print("closed", flush=True)
"""


class Worker:
    """Another process, which writes when it is asked to; kept from one test to the next, for it is slow to start."""

    def __init__(self) -> None:
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'plugin'}"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, path: Path, operation: dict[str, Any], *, close: bool) -> None:
        """Have it begin a write."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"path": str(path), "operation": operation, "close": close}) + "\n")
        self._process.stdin.flush()
        assert self.line() == "ready"

    def line(self) -> str:
        """The next line that it says; empty where it died."""
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def kill(self) -> list[str]:
        """Kill it; what it had said before."""
        self._process.send_signal(signal.SIGKILL)
        said, _ = self._process.communicate()
        return said.split()

    def end(self) -> None:
        """Let it end by itself."""
        self._process.communicate()


class _Workers:
    def __init__(self) -> None:
        self._worker: Worker | None = None

    def get(self) -> Worker:
        if self._worker is None:
            self._worker = Worker()
        return self._worker

    def kill(self) -> list[str]:
        worker, self._worker = self.get(), None
        return worker.kill()

    def end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


workers = _Workers()


# ---- the machine


class StoreMachine(RuleBasedStateMachine):
    """A collection in a store, and what it must hold."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="embedstore-machine-", dir=_memory()))
        self.path = self.scratch / "0"
        self.used = everything_used(caches_at_once=False)
        self.used.__enter__()
        self.model: Model = {}
        self.n_stores = 0
        self.n_steps = 0
        self.store = embedstore.open(self.path)

    @property
    def collection(self) -> embedstore.Collection:
        """The one collection."""
        return self.store.collection("c")

    @initialize(
        metric=st.sampled_from(METRICS), recipe=st.sampled_from(["flat", "hnsw"]), at_once=st.booleans(),
        searched_every=st.sampled_from([1, 2, 5]),
    )  # fmt: skip
    def create(self, metric: str, recipe: str, at_once: bool, searched_every: int) -> None:
        """Choose how the collection is searched, and after how many steps."""
        self.metric = metric
        self.searched_every = searched_every
        self.used.__exit__(None, None, None)
        self.used = everything_used(caches_at_once=at_once)
        self.used.__enter__()
        self.store.collection("c", encoder="none", metric=metric, recipe=recipe, dim=DIM).create()
        self.write({"verb": "upsert", "records": [[number, 0] for number in range(0, N_KEYS, 2)]})

    def write(self, operation: dict[str, Any]) -> None:
        """Write in this process."""
        carry_out(self.collection, operation)
        self.model = after(self.model, operation)

    # ---- writing

    @rule(numbers=some_keys, version=versions)
    def add(self, numbers: list[int], version: int) -> None:
        """Add what is new; where something is not, nothing is added."""
        operation = {"verb": "add", "records": [[number, version] for number in numbers]}
        if all(f"k{number}" not in self.model for number in numbers):
            self.write(operation)
            return
        try:
            carry_out(self.collection, operation)
        except embedstore.DuplicateKey:
            return
        raise AssertionError("a key that exists was added")

    @rule(numbers=some_keys, version=versions)
    def upsert(self, numbers: list[int], version: int) -> None:
        """Add and overwrite."""
        self.write({"verb": "upsert", "records": [[number, version] for number in numbers]})

    @rule(numbers=some_keys)
    def delete(self, numbers: list[int]) -> None:
        """Delete by key."""
        self.write({"verb": "delete", "numbers": numbers})

    @precondition(lambda self: self.model)
    @rule(version=versions)
    def delete_where(self, version: int) -> None:
        """Delete by a filter."""
        self.write({"verb": "delete where", "version": version})

    @precondition(lambda self: self.model)
    @rule(numbers=some_keys, version=versions)
    def update(self, numbers: list[int], version: int) -> None:
        """Change metadata."""
        self.write({"verb": "update", "numbers": self._known(numbers), "version": version})

    @rule(numbers=some_keys, version=versions, close=st.booleans())
    def another_process_writes(self, numbers: list[int], version: int, close: bool) -> None:
        """What another process wrote is there at once, whether or not it closed the store."""
        operation = {"verb": "upsert", "records": [[number, version] for number in numbers]}
        workers.get().start(self.path, operation, close=close)
        assert workers.get().line() == "done"
        if close:
            assert workers.get().line() == "closed"
        self.model = after(self.model, operation)

    @rule(numbers=some_keys, version=versions, delete=st.booleans(), acknowledged=st.booleans())
    def another_process_is_killed(self, numbers: list[int], version: int, delete: bool, acknowledged: bool) -> None:
        """A write that was acknowledged stays; one that was not is there as a whole, or not at all."""
        operation: dict[str, Any] = {"verb": "upsert", "records": [[number, version] for number in numbers]}
        if delete:
            operation = {"verb": "delete", "numbers": numbers}
        workers.get().start(self.path, operation, close=False)
        said = [workers.get().line()] if acknowledged else []
        said += workers.kill()
        new = after(self.model, operation)
        if "done" in said or self._read() == _contents(new):
            self.model = new

    # ---- reading

    @rule(number=keys, version=versions, k=st.integers(1, 2 * N_KEYS), filtered=st.booleans())
    def search(self, number: int, version: int, k: int, filtered: bool) -> None:
        """The nearest are those of brute force, best first, and all of them where ``k`` is large."""
        self._search(number, version, k, filtered=filtered)

    def _search(self, number: int, version: int, k: int, *, filtered: bool) -> None:
        if filtered and not self.model:
            return
        query = np.random.default_rng([99, number, version]).standard_normal(DIM).astype(np.float32)
        where = f"n >= {number} or tag = 'a'" if filtered else None
        found = self.collection.search(query, k, where=where)
        wanted = {
            key: vector for key, vector in self._vectors().items()
            if vector is not None and (not filtered or self._matches(key, number))
        }  # fmt: skip
        names = list(wanted)
        assert len(found) == min(k, len(names))
        if not names:
            return
        scores = brute_force(np.stack([wanted[name] for name in names]), query, self.metric)
        best = np.sort(scores)[::-1][:k]
        assert np.allclose([hit.score for hit in found], best, rtol=1e-4, atol=1e-4)
        by_name = dict(zip(names, scores.tolist(), strict=True))
        assert np.allclose([by_name[key] for key in found.keys], best, rtol=1e-4, atol=1e-4)

    @rule(number=keys, version=versions)
    def words(self, number: int, version: int) -> None:
        """A record's own word finds it, as long as it has it; a shared one finds all that have it."""
        self._words(number, version)

    def _words(self, number: int, version: int) -> None:
        for word in (f"own{number}v{version}", f"shared{version % 3}"):
            found = self.collection.search(word, 2 * N_KEYS, mode="text").keys
            wanted = {key for key, one in self.model.items() if word in words_of(one["number"], one["version"])}
            assert set(found) == wanted
            assert len(found) == len(wanted)

    @precondition(lambda self: self.model)
    @rule(version=versions, number=keys)
    def count(self, version: int, number: int) -> None:
        """Filters count what they should."""
        metadata = [one["metadata"] for one in self.model.values()]
        assert self.collection.count(f"v = {version}") == sum(one["v"] == version for one in metadata)
        wanted = sum(one["n"] < number and one["tag"] != "b" for one in metadata)
        assert self.collection.count(f"n < {number} and tag != 'b'") == wanted

    @invariant()
    def everything_is_there(self) -> None:
        """The records are those of the model."""
        if not hasattr(self, "metric"):
            return
        self.n_steps += 1
        assert self._read() == _contents(self.model)
        if self.n_steps % self.searched_every == 0:
            self._search(self.n_steps, 0, 2 * N_KEYS, filtered=self.n_steps % 4 == 3)
            self._words(self.n_steps % N_KEYS, self.n_steps % 10)

    # ---- everything else

    @rule()
    def reopen(self) -> None:
        """Close, and open again."""
        self.store.close()
        self.store = embedstore.open(self.path)

    @rule()
    def close_and_go_on(self) -> None:
        """Close, and use the same object again."""
        self.store.close()

    @rule(recipe=st.sampled_from(["flat", "hnsw"]))
    def index(self, recipe: str) -> None:
        """Build the index anew."""
        self.collection.index(recipe=recipe)

    @rule()
    def refresh(self) -> None:
        """Bring the caches up to date."""
        self.collection.refresh()

    @rule()
    def compact(self) -> None:
        """Give back room."""
        self.store.compact()

    @rule(place=st.integers(0, 10**6), which=st.integers(0, 100), delete=st.booleans())
    def damage_a_cache(self, place: int, which: int, delete: bool) -> None:
        """Flip a bit of a cache file, or delete it; a store that is opened then takes no notice."""
        files = sorted(path for path in (self.path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock")
        files = [path for path in files if not path.name.endswith(("-wal", "-shm")) and path.stat().st_size]
        if not files:
            return
        self.store.close()
        path = files[which % len(files)]
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 1 << place % 8
        path.unlink()  # what is mapped stays as it was
        if not delete:
            path.write_bytes(content)
        self.store = embedstore.open(self.path)

    @rule(with_caches=st.booleans())
    def move_to_a_backup(self, with_caches: bool) -> None:
        """Back up, restore elsewhere, perhaps beside caches as they are, and go on there."""
        self.n_stores += 1
        target = self.scratch / str(self.n_stores)
        self.store.backup(self.scratch / "file.backup", overwrite=True)
        self.store.close()
        if with_caches and (self.path / "cache").is_dir():
            shutil.copytree(self.path / "cache", target / "cache")
        embedstore.restore(self.scratch / "file.backup", target)
        self.path = target
        self.store = embedstore.open(target)

    @rule()
    def move_to_a_repaired_store(self) -> None:
        """Repair loses nothing of a whole store."""
        self.n_stores += 1
        self.store.close()
        target = self.scratch / str(self.n_stores)
        assert embedstore.repair(self.path, target).lost == []
        self.path = target
        self.store = embedstore.open(target)

    @rule()
    def verify(self) -> None:
        """Nothing is lost."""
        assert self.store.verify().lost == []

    def teardown(self) -> None:
        """In the end the store is whole, its caches too once they were used."""
        try:
            if self.model:
                self.collection.search(np.ones(DIM, np.float32), 1)
                self.collection.search("shared1", mode="text")
                report = self.store.verify()
                assert report.problems == [], report.problems[0]
        finally:
            self.store.close()
            self.used.__exit__(None, None, None)
            shutil.rmtree(self.scratch, ignore_errors=True)

    # ---- inside

    def _known(self, numbers: list[int]) -> list[int]:
        """``numbers`` as records that exist."""
        there = sorted(int(key[1:]) for key in self.model)
        return sorted({there[number % len(there)] for number in numbers})

    def _vectors(self) -> dict[str, np.ndarray | None]:
        return {key: vector_of(one["number"], one["version"]) for key, one in self.model.items()}

    def _matches(self, key: str, number: int) -> bool:
        metadata = self.model[key]["metadata"]
        return metadata["n"] >= number or metadata["tag"] == "a"

    def _read(self) -> dict[str, tuple[str | None, dict[str, Any]]]:
        return {one.key: (one.content, one.metadata) for one in self.collection.records()}


def _contents(model: Model) -> dict[str, tuple[str | None, dict[str, Any]]]:
    return {
        key: (" ".join(words_of(one["number"], one["version"])) or None, one["metadata"]) for key, one in model.items()
    }


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def limits(n_examples: int, n_steps: int, *, derandomize: bool) -> settings:
    """How long Hypothesis goes on; nothing is kept from one run for the next."""
    return settings(
        max_examples=n_examples, stateful_step_count=n_steps, derandomize=derandomize, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), print_blob=False,
    )  # fmt: skip


def campaign(number: int, n_examples: int = LONG_EXAMPLES, n_steps: int = LONG_STEPS) -> dict[str, Any]:
    """Many sequences; whatever goes wrong in its own way, made as short as can be, is told."""
    logging.getLogger("embedstore").setLevel(logging.CRITICAL)
    violations = []
    try:
        run_state_machine_as_test(
            seed(number)(StoreMachine), settings=limits(n_examples, n_steps, derandomize=False)
        )
    except Exception as error:
        distinct = error.exceptions if isinstance(error, BaseExceptionGroup) else [error]
        violations += ["".join(traceback.format_exception(one)) for one in distinct]  # each with its sequence
    finally:
        workers.end()
    details = {"steps": n_steps, "violations": violations}
    return {"rounds": n_examples, "violations": len(violations), "details": details}


CAMPAIGNS: dict[str, Callable[[int], dict[str, Any]]] = {"state machine": campaign}
