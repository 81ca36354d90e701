"""A store with everything in it that can be damaged, the truth about it, and questions whose answers are known.

It has two collections, three spaces (exact, exact with vectors from elsewhere, HNSW), records of every shape, updates
and deletions, so that the logs are filled, keyword indexes, and commits that no cache has seen. It is written once, by
a process of its own, and either closed or killed, so that its newest commits are in SQLite's log alone.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from shared import ROOT, brute_force

import embedstore
from embedstore.indexing import space_cache
from embedstore.searching import plan

DIM, EXTRA_DIM = 16, 24
_GAP = 1e-3
"""So much do the scores of hits that follow each other differ at least, that rounding cannot change their order."""

Stored = tuple[str | None, str | None, str]
"""A record as it is stored: content, uri, metadata."""
Question = Callable[[embedstore.Store], Any]


# ---- writing


def text_of(number: int, version: int) -> str:
    """A text with letters that the encoder counts, a word of its own, and words that others have."""
    rng = np.random.default_rng([number, version])
    letters = " ".join("".join(rng.choice(list("abcde"), int(rng.integers(1, 9)))) for _ in range(4))
    filler = " filling" * 5000 if number % 60 == 7 else ""
    return f"{letters} word{number}x{version} common{number % 5} größe{filler}"


def metadata_of(number: int, version: int) -> dict[str, Any]:
    """Metadata of every kind."""
    return {
        "n": number, "v": version, "half": number / 2 + 0.25, "even": number % 2 == 0, "none": None,
        "tags": ["a", "b", "c"][: number % 4], "deep": {"name": f"ü{number % 9}", "x": {"y": -number}},
        "mixed": (number, f"m{number}", True, 0.5)[number % 4], "big": 2**53 + number,
    }  # fmt: skip


def note(number: int, version: int) -> dict[str, Any]:
    """A record of the collection ``notes``."""
    record: dict[str, Any] = {
        "key": f"k{number}", "text": text_of(number, version), "metadata": metadata_of(number, version)
    }
    if number % 3:
        record["vectors"] = {"extra": np.random.default_rng([1, number, version]).standard_normal(EXTRA_DIM)}
    return record


def point(number: int, version: int) -> dict[str, Any]:
    """A record of the collection ``points``; some have no vector, some no text."""
    record: dict[str, Any] = {"key": f"p{number}", "metadata": metadata_of(number, version)}
    if number % 4:
        record["text"] = text_of(number, version)
    if number % 10:
        record["vector"] = np.random.default_rng([2, number, version]).standard_normal(DIM)
    if number % 5 == 0:
        record["uri"] = f"file:{number}.txt"
    return record


def write(folder: str, n: int, end: str) -> None:
    """Write the store, of about ``n`` records a collection; ``end`` says whether it is 'closed' or 'killed'."""
    with embedstore.open(folder) as store:
        _write_first(store, n)
    store = embedstore.open(folder)
    for step in range(6):
        _write_later(store, n, step)
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    store.close()


def _write_first(store: embedstore.Store, n: int) -> None:
    notes = store.collection("notes", encoder="letters")
    notes.create()
    notes.add_space("extra", dim=EXTRA_DIM, metric="euclidean")
    points = store.collection("points", encoder="none", dim=DIM, recipe="hnsw")
    notes.add(note(i, 0) for i in range(n))
    points.add(point(i, 0) for i in range(n))
    points.index()
    notes.upsert(note(i, 1) for i in range(0, n, 9))
    points.upsert(point(i, 1) for i in range(0, n, 11))
    notes.update({"key": f"k{i}", "v": 7, "even": None} for i in range(3, n, 13))
    notes.delete([f"k{i}" for i in range(5, n, 17)])
    points.delete(where=f"n >= {n - n // 12}")
    for collection in (notes, points):
        collection.refresh()
    notes.update({"key": f"k{i}", "v": 8} for i in range(1, n, 19) if i % 17 != 5)


def _write_later(store: embedstore.Store, n: int, step: int) -> None:
    notes, points = store.collection("notes"), store.collection("points")
    first = 10 * n + 7 * step
    notes.add(note(i, 0) for i in range(first, first + 7))
    points.upsert(point(i, 2 + step) for i in range(step, n // 2, 29))
    points.delete([f"p{12 + step}"])


def made(folder: Path, n: int, end: str) -> None:
    """Have the store written by a process of its own."""
    script = "import sys; from faults.specimen import write; write(sys.argv[1], int(sys.argv[2]), sys.argv[3])"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'plugin'}"}
    done = subprocess.run([sys.executable, "-c", script, folder, str(n), end], env=environment, check=False)
    assert done.returncode == (-signal.SIGKILL if end == "killed" else 0)


# ---- the truth


@dataclass(frozen=True, slots=True)
class Truth:
    """What is stored, read without embedstore: records and vectors by collection, and every earlier version."""

    records: dict[str, dict[str, Stored]]
    vectors: dict[tuple[str, str], dict[str, bytes]]
    earlier: dict[str, dict[str, set[Stored]]] = field(default_factory=dict)


def truth_of(folder: Path) -> Truth:
    """What a whole store holds; with its log, also what it held without it."""
    records, vectors = _read(folder / "store.db", "ro")
    earlier: dict[str, dict[str, set[Stored]]] = {}
    if (folder / "store.db-wal").exists():
        for name, held in _read(folder / "store.db", "ro&immutable=1")[0].items():
            earlier[name] = {key: {one} for key, one in held.items()}
    return Truth(records, vectors, earlier)


def _read(path: Path, mode: str) -> tuple[dict[str, dict[str, Stored]], dict[tuple[str, str], dict[str, bytes]]]:
    records: dict[str, dict[str, Stored]] = {}
    vectors: dict[tuple[str, str], dict[str, bytes]] = {}
    with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True)) as database:
        for name, key, *rest in database.execute(
            "SELECT c.name, r.key, r.content, r.uri, r.metadata FROM records AS r JOIN collections AS c"
            " ON c.collection_id = r.collection_id ORDER BY r.record_id"
        ):
            records.setdefault(name, {})[key] = tuple(rest)
        for name, space, key, vec in database.execute(
            "SELECT c.name, s.name, r.key, v.vec FROM vectors AS v JOIN spaces AS s ON s.space_id = v.space_id"
            " JOIN records AS r ON r.record_id = v.record_id"
            " JOIN collections AS c ON c.collection_id = r.collection_id"
        ):
            vectors.setdefault((name, space), {})[key] = vec
    return records, vectors


def read_whole(folder: Path) -> Truth:
    """What a store holds, by embedstore."""
    with embedstore.open(folder) as store:
        records = {
            name: {one.key: _stored(one) for one in store.collection(name).records()} for name in store.collections()
        }
        vectors = {}
        for name in records:
            for space in store.collection(name).spaces():
                vectors[name, space.name] = _vectors_of(store, name, space.name)
    return Truth(records, vectors)


def _stored(record: embedstore.Record) -> Stored:
    import orjson

    metadata = orjson.dumps(record.metadata, option=orjson.OPT_SORT_KEYS).decode()
    return record.content, record.uri, metadata


def _vectors_of(store: embedstore.Store, collection: str, space: str) -> dict[str, bytes]:
    with store.reading() as transaction:
        return dict(
            transaction.all(
                "SELECT r.key, v.vec FROM vectors AS v JOIN spaces AS s ON s.space_id = v.space_id JOIN records AS r"
                " ON r.record_id = v.record_id JOIN collections AS c ON c.collection_id = s.collection_id"
                " WHERE s.name = :space AND c.name = :collection",
                {"space": space, "collection": collection},
            )
        )


# ---- questions


def questions(truth: Truth) -> dict[str, Question]:
    """Questions by name; their answers are compared by ``same``."""
    asked: dict[str, Question] = {}
    for name, space, metric, where in (
        ("notes", "text", "cosine", None), ("notes", "extra", "euclidean", None), ("points", "vector", "cosine", None),
        ("points", "vector", "cosine", "even = true"), ("notes", "extra", "euclidean", "deep.x.y <= -50"),
    ):  # fmt: skip
        query = clear_query(truth, name, space, metric, where)
        asked[f"{name}/{space} where {where}"] = _nearest(name, space, query, where)
    asked["records of notes"] = lambda store: [_stored(one) for one in store.collection("notes").records()]
    asked["records of points"] = lambda store: [_stored(one) for one in store.collection("points").records()]
    asked["vectors"] = lambda store: store.collection("points").vectors(["p1", "p11", "p22"]).tolist()
    asked["get"] = lambda store: [_stored(one) for one in store.collection("notes").get_many(["k7", "k18", "none"])]
    asked["counts"] = lambda store: [
        store.collection(name).count(where)
        for name in ("notes", "points") for where in (None, "n < 90", "tags contains 'b'", "mixed = true", "v = 8")
    ]  # fmt: skip
    asked["words"] = lambda store: pairs(store.collection("notes").search("word18x1 common3", 12, mode="text"))
    asked["words of points"] = lambda store: pairs(
        store.collection("points").search("common2 größe", 12, mode="text", where="even = false")
    )
    asked["hybrid"] = lambda store: store.collection("notes").search("abba cede common1", 10, mode="hybrid").keys
    asked["stats"] = lambda store: [_facts(store.collection(name).stats()) for name in ("notes", "points")]
    return asked


def _nearest(name: str, space: str, query: np.ndarray, where: str | None) -> Question:
    return lambda store: pairs(store.collection(name).search(query, 10, space=space, where=where))


def pairs(hits: embedstore.Hits) -> list[tuple[str, float]]:
    """Hits as keys with their scores."""
    return [(hit.record.key, hit.score) for hit in hits]


def _facts(stats: dict[str, Any]) -> dict[str, Any]:
    spaces = [(one["name"], one["dim"], one["metric"], one["n_vectors"], one["digest"]) for one in stats["spaces"]]
    return {**{name: stats[name] for name in ("name", "n_records", "digest", "fields")}, "spaces": spaces}


def clear_query(truth: Truth, name: str, space: str, metric: str, where: str | None) -> np.ndarray:
    """A query whose ten best have scores so different that rounding does not change their order."""
    keys, scores_of = _scored(truth, name, space, metric, where)
    rng = np.random.default_rng(5)
    while True:
        query = rng.standard_normal(len(next(iter(truth.vectors[name, space].values()))) // 4).astype(np.float32)
        best = np.sort(scores_of(query))[::-1][:11]
        if np.all(best[:-1] - best[1:] > _GAP):
            return query


def nearest_by_brute_force(
    truth: Truth, name: str, space: str, metric: str, where: str | None, query: np.ndarray
) -> list[tuple[str, float]]:
    """The ten best, with their scores, by comparing every vector."""
    keys, scores_of = _scored(truth, name, space, metric, where)
    scores = scores_of(query)
    return [(keys[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:10]]


def _scored(
    truth: Truth, name: str, space: str, metric: str, where: str | None
) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
    import orjson

    allowed: dict[str | None, Callable[[dict[str, Any]], bool]] = {
        None: lambda _: True, "even = true": lambda one: one.get("even") is True,
        "deep.x.y <= -50": lambda one: one["deep"]["x"]["y"] <= -50,
    }  # fmt: skip
    held = truth.vectors[name, space]
    keys = [key for key in held if allowed[where](orjson.loads(truth.records[name][key][2]))]
    matrix = np.stack([np.frombuffer(held[key], "<f4") for key in keys])
    return keys, lambda query: brute_force(matrix, query, metric)


def same(one: Any, other: Any) -> bool:
    """Whether two answers are equal, but for the last digits of scores."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-4 * max(1.0, abs(one))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@contextmanager
def everything_used(*, caches_at_once: bool) -> Iterator[None]:
    """Have small spaces searched by their HNSW index, and caches written however little they lack."""
    limit = 0 if caches_at_once else space_cache._BUILD_BYTES
    always = mock.patch.object(plan, "index_cost", lambda *_, **__: 0.0)
    with always, mock.patch.object(space_cache, "_BUILD_BYTES", limit):
        yield
