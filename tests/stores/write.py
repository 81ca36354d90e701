"""Writes a store of the installed release, with everything in it that a store can hold, and what must be read back.

    python tests/stores/write.py FOLDER

makes ``FOLDER/store.db`` and ``FOLDER/expected.json``. The tests open a copy of each store that a release has left here
and compare all of it. To write one by an older release, put its code on PYTHONPATH.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "plugin"))

import embedstore

POINTS = [
    {"key": "origin", "vector": [0.5, 0.5, 0.5, 0.5], "n": 0},
    {"key": "integer", "vector": [1, 0, 0, 0], "n": -7, "big": 2**62},
    {"key": "real", "vector": [0, 2, 0, 0], "x": 0.1, "tiny": 5e-324, "huge": 1.5e308, "minus": -0.25},
    {"key": "text", "vector": [0, 0, -3, 0], "name": "Zoë’s \"naïve\" \\ café", "empty": "", "lines": "a\nb\tc"},
    {"key": "yes", "vector": [0, 0, 0, 4], "flag": True, "text": "a record with words and a flag"},
    {"key": "no", "vector": [1, 1, 0, 0], "flag": False, "uri": "file:///tmp/a%20b.txt"},
    {"key": "list", "vector": [0, 1, 1, 0], "tags": ["red", "blue", "red"], "mixed": [1, 2.5, "x", True, None]},
    {"key": "deep", "vector": [0, 0, 1, 1], "metadata": {"a": {"b": {"c": 1, "d": "two"}}, "n": 3}},
    {"key": "日本語/ключ 🎈", "vector": [0.25, -0.5, 0.75, -1], "text": "字 и ё", "n": 3},
    {"key": "12", "vector": [9, 9, 9, 9], "n": 2**53 + 1},
    {"key": "doomed", "vector": [5, 5, 5, 5], "n": 1},
    {"key": "same again", "vector": [1, 1, 0, 0], "n": 1.0},
]
WORDS = [
    {"key": f"w{i:02}", "text": text, "n": i, "even": i % 2 == 0}
    for i, text in enumerate([
        "a bad cab", "bead by bead", "added decade", "cabbage", "deed", "facade", "an ace", "a dead bee", "ebb", "dab",
        "a cab for a bee", "baggage", "faded", "edge", "the end", "a b c d e", "zzz", "bad bad bad", "bee", "cede",
    ])
]  # fmt: skip
SEARCHES: dict[str, list[dict[str, Any]]] = {
    "points": [
        {"query": [1, 1, 0, 0], "k": 12},
        {"query": [0.1, 0.2, 0.3, 0.4], "k": 3, "where": "n >= 1"},
        {"query": [0, 0, 1, 0], "k": 5, "where": "flag = true or tags contains 'red' or a.b.c = 1"},
        {"query": [1, 2], "k": 4, "space": "flat"},
        {"query": "words", "mode": "text"},
    ],
    "words": [
        {"query": "bad", "k": 5},
        {"query": "a bee", "k": 4, "mode": "hybrid"},
        {"query": "dead OR cabbage", "mode": "text"},
        {"like": ["w01"], "unlike": ["w17"], "k": 3, "where": "even = false"},
    ],
    "far": [{"query": [1, 2, 3], "k": 6}, {"query": [-1, 0, 0.5], "k": 2, "offset": 1, "where": "half < 10"}],
}


def fill(store: embedstore.Store, files: Path) -> None:
    """Write collections with all kinds of values, then change and delete some, so that the logs are filled too."""
    points = store.collection("points", encoder="none", metric="euclidean")
    points.add(POINTS)
    points.add_space("flat", metric="dot", dim=2)
    points.upsert([{"key": "text", "vectors": {"flat": [1, -1]}}, {"key": "12", "vectors": {"flat": [2, 0.5]}}])
    points.update([{"key": "origin", "n": 5, "new": "field"}, {"key": "deep", "n": None}])
    points.upsert([{"key": "real", "vector": [0, 2.5, 0, 0], "x": 0.2}])
    points.delete(["doomed", "nobody"])
    points.add([{"key": "doomed", "vector": [5, 5, 5, -5], "n": 2}])

    store.collection("gone", encoder="none").add([{"key": "a", "vector": [1.0]}])
    store.delete_collection("gone")

    words = store.collection("words", encoder="letters")
    words.add(WORDS)
    words.upsert([{"key": "w03", "text": "cabbages", "n": 3}, {"key": "w04", "text": "deed", "n": 4, "even": True}])
    words.delete(where="n = 16")

    lines = files / "far.jsonl"
    lines.write_text(
        "".join(json.dumps({"key": f"f{i}", "v": [i, i * i / 8, 1], "half": i / 2}) + "\n" for i in range(1, 31))
    )
    far = store.collection("far", encoder="none", metric="dot")
    far.ingest(lines, vector="v", progress=False)
    far.index(recipe="hnsw")


def contents(store: embedstore.Store) -> dict[str, Any]:
    """All that can be read of a store and must not change, as plain values."""
    return {name: _collection(store.collection(name)) for name in store.collections()}


def answers(store: embedstore.Store) -> list[dict[str, Any]]:
    """What the searches find: keys, and scores to six digits."""
    found = []
    for name, searches in SEARCHES.items():
        for asked in searches:
            hits = store.collection(name).search(**asked)
            scores = [float(f"{hit.score:.6g}") for hit in hits]
            found.append({"collection": name, "asked": asked, "keys": hits.keys, "scores": scores})
    return found


def _collection(collection: embedstore.Collection) -> dict[str, Any]:
    stats = collection.stats()
    records = []
    for record in collection.records():
        vectors = {}
        for space in collection.spaces():
            try:
                vectors[space.name] = collection.vectors([record.key], space=space.name)[0].tolist()
            except embedstore.RecordNotFound:
                continue
        records.append({
            "key": record.key, "text": record.content, "uri": record.uri, "metadata": record.metadata,
            "vectors": vectors,
        })  # fmt: skip
    return {
        "n_records": stats["n_records"], "commits": stats["commits"], "digest": stats["digest"],
        "fields": stats["fields"],
        "spaces": [
            {name: space[name] for name in ("name", "dim", "metric", "recipe", "digest")} for space in stats["spaces"]
        ],
        "records": records,
    }  # fmt: skip


def write(folder: Path) -> None:
    """Make ``store.db`` and ``expected.json`` in ``folder``."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "store")
        with embedstore.open(path) as store:
            fill(store, Path(scratch))
        with embedstore.open(path) as store:
            expected = {"contents": contents(store), "answers": answers(store), "release": embedstore.__version__}
        log = path / "store.db-wal"
        assert not log.exists() or log.stat().st_size == 0, "the log was not copied into the database"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / "store.db", folder / "store.db")
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
