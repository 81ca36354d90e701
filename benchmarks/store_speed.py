"""Speed of the store on 60,000 real vectors of dimension 384, each figure beside what it is held against.

Durable writing beside sqlite-vec and LanceDB; a new process to its first answer; flat and hnsw beside plain FAISS;
filters with values seen and not seen before. sqlite-vec and LanceDB are measured where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from glosses import records
from report import save

DIM = 384


def median(samples: list[float]) -> float:
    return round(statistics.median(samples), 6)


# ---- writing


def write_embedstore(folder: Path, rows: list[dict], batch: int) -> None:
    import embedstore

    with embedstore.open(folder) as store:
        collection = store.collection("glosses", encoder="none")
        for start in range(0, len(rows), batch):
            collection.add(rows[start : start + batch])


def write_sqlite_vec(folder: Path, rows: list[dict], batch: int) -> None:
    import apsw  # many builds of Python's own sqlite3 cannot load extensions
    import sqlite_vec

    folder.mkdir()
    connection = apsw.Connection(str(folder / "vec.db"))
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT UNIQUE, text TEXT, metadata TEXT)")
    connection.execute(f"CREATE VIRTUAL TABLE vectors USING vec0(embedding float[{DIM}] distance_metric=cosine)")
    for start in range(0, len(rows), batch):
        chunk = list(enumerate(rows[start : start + batch], start=start))
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?)",
            [(i, row["key"], row["text"], json.dumps(_metadata(row))) for i, row in chunk],
        )
        connection.executemany(
            "INSERT INTO vectors (rowid, embedding) VALUES (?, ?)", [(i, row["vector"].tobytes()) for i, row in chunk]
        )
        connection.execute("COMMIT")
    connection.close()


def write_lancedb(folder: Path, rows: list[dict], batch: int) -> None:
    import lancedb
    import pyarrow

    database = lancedb.connect(folder)
    table = None
    for start in range(0, len(rows), batch):
        chunk = rows[start : start + batch]
        flat = np.concatenate([row["vector"] for row in chunk])
        made = pyarrow.table({
            "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), DIM),
            **{name: [row[name] for row in chunk] for name in ("key", "text", *_metadata(chunk[0]))},
        })
        if table is None:
            table = database.create_table("glosses", made)
        else:
            table.add(made)


def _metadata(row: dict) -> dict:
    return {name: row[name] for name in ("category", "n_words", "hundredth", "share")}


WRITERS: dict[str, tuple[str, Callable[[Path, list[dict], int], None]]] = {
    "embedstore": ("embedstore", write_embedstore),
    "sqlite-vec": ("apsw", write_sqlite_vec),
    "lancedb": ("lancedb", write_lancedb),
}


def writing(rows: list[dict], scratch: Path, rounds: int) -> dict:
    """Records a second, durable, in batches of 1,000 and 10,000; interleaved."""
    figures: dict[str, dict] = {}
    for batch in (1_000, 10_000):
        rates: dict[str, list[float]] = {}
        for turn in range(rounds):
            for name, (module, write) in WRITERS.items():
                if importlib.util.find_spec(module) is None:
                    continue
                folder = scratch / f"{name}-{batch}-{turn}"
                started = time.perf_counter()
                write(folder, rows, batch)
                rates.setdefault(name, []).append(len(rows) / (time.perf_counter() - started))
                shutil.rmtree(folder)
        figures[f"batches of {batch}"] = {
            name: {"records_per_second": round(statistics.median(found)), "all": [round(one) for one in sorted(found)]}
            for name, found in rates.items()
        }
    return figures


# ---- a new process

COLD = {
    "embedstore": (
        "import sys, numpy as np, embedstore\n"
        "c = embedstore.open(sys.argv[1]).collection('glosses')\n"
        "h = c.search(np.load(sys.argv[2]), k=10)\n"
        "assert len(h) == 10 and h[0].record.content and h[0].record.metadata\n"
    ),
    "sqlite-vec": (
        "import sys, apsw, sqlite_vec, numpy as np\n"
        "c = apsw.Connection(sys.argv[1] + '/vec.db'); c.enable_load_extension(True)\n"
        "c.load_extension(sqlite_vec.loadable_path())\n"
        "q = np.load(sys.argv[2]).tobytes()\n"
        "r = c.execute('SELECT r.key, r.text, r.metadata, v.distance FROM vectors v JOIN records r ON r.id = v.rowid"
        " WHERE v.embedding MATCH ? AND k = 10 ORDER BY v.distance', (q,)).fetchall()\n"
        "assert len(r) == 10\n"
    ),
    "lancedb": (
        "import sys, lancedb, numpy as np\n"
        "t = lancedb.connect(sys.argv[1]).open_table('glosses')\n"
        "assert len(t.search(np.load(sys.argv[2])).metric('cosine').limit(10).to_list()) == 10\n"
    ),
}


def cold(rows: list[dict], scratch: Path, rounds: int) -> dict:
    """Seconds from process start to the first ten hits with text and metadata."""
    query = scratch / "query.npy"
    np.save(query, rows[17]["vector"])
    folders = {}
    for name, (module, write) in WRITERS.items():
        if importlib.util.find_spec(module) is not None:
            folders[name] = scratch / f"cold-{name}"
            write(folders[name], rows, 10_000)
    seconds: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, folder in folders.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", COLD[name], str(folder), str(query)], check=True)
            if turn:  # the first run of each writes caches and warms the file system
                seconds.setdefault(name, []).append(time.perf_counter() - started)
    return {name: {"seconds": median(found)} for name, found in seconds.items()}


# ---- queries


def timed(calls: list[Callable[[], object]]) -> float:
    """The median milliseconds of the calls."""
    samples = []
    for call in calls:
        started = time.perf_counter()
        call()
        samples.append((time.perf_counter() - started) * 1e3)
    return median(samples)


def queries_of(rows: list[dict], n: int) -> np.ndarray:
    random = np.random.default_rng(0)
    picked = random.integers(0, len(rows), n)
    noise = random.standard_normal((n, DIM)).astype(np.float32) * 0.02
    return np.stack([rows[i]["vector"] for i in picked]) + noise


def searching(rows: list[dict], scratch: Path, rounds: int) -> dict:
    import faiss

    import embedstore

    faiss.omp_set_num_threads(1)
    matrix = np.stack([row["vector"] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    folder = scratch / "search"
    write_embedstore(folder, rows, 10_000)
    store = embedstore.open(folder)
    collection = store.collection("glosses")
    collection.refresh()
    queries = queries_of(rows, 100)
    flat = faiss.IndexFlatIP(DIM)
    flat.add(matrix)
    database = sqlite3.connect(folder / "store.db")
    ids = [row[0] for row in database.execute("SELECT record_id FROM records ORDER BY record_id")]

    def lookup(positions: np.ndarray) -> list:
        marks = ",".join("?" * len(positions))
        return database.execute(
            f"SELECT record_id, key, content, metadata FROM records WHERE record_id IN ({marks})",
            [ids[i] for i in positions],
        ).fetchall()

    figures: dict[str, dict] = {"flat": {}, "hnsw": {}, "filtered": {}}
    figures["flat"] = ratio(
        rounds,
        lambda: timed([lambda q=q: collection.search(q, 10) for q in queries]),
        lambda: timed([lambda q=q: flat.search(q[None], 10) for q in queries]),
    )
    started = time.perf_counter()
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    collection.index(recipe="hnsw")
    figures["hnsw_build_seconds"] = round(time.perf_counter() - started, 1)
    faiss.omp_set_num_threads(1)
    effort = 96
    raw = faiss.index_factory(DIM, "HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
    raw.hnsw.efConstruction = 120
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    raw.add(matrix)
    faiss.omp_set_num_threads(1)
    parameters = faiss.SearchParametersHNSW(efSearch=effort)
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    figures["hnsw"] = ratio(
        rounds,
        lambda: timed([lambda q=q: collection.search(q, 10) for q in queries]),
        lambda: timed([lambda q=q: lookup(raw.search(q[None], 10, params=parameters)[1][0]) for q in units]),
    )
    _, truth = flat.search(units, 10)
    keys = [row["key"] for row in rows]
    found = [collection.search(q, 10).keys for q in queries]
    figures["hnsw"]["recall_at_10"] = recall(found, [[keys[i] for i in line] for line in truth])
    figures["filtered"] = filtered(collection, rows, matrix, queries, rounds)
    store.close()
    return figures


def ratio(rounds: int, ours: Callable[[], float], other: Callable[[], float]) -> dict:
    """Medians of both, interleaved, and the median of their ratios."""
    pairs = [(ours(), other()) for _ in range(rounds)]
    return {
        "milliseconds": median([one for one, _ in pairs]), "held_against": median([two for _, two in pairs]),
        "ratio": round(statistics.median(one / two for one, two in pairs), 3),
    }


def recall(found: list[list[str]], truth: list[list[str]]) -> float:
    return round(float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)])), 4)


def filtered(collection, rows: list[dict], matrix: np.ndarray, queries: np.ndarray, rounds: int) -> dict:
    """Milliseconds under a filter whose value was not seen before, and repeated; recall@10 against an exact scan."""
    hundredths = np.array([row["hundredth"] for row in rows])
    keys = [row["key"] for row in rows]
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    collection.search(queries[0], 10, where="hundredth < 3 AND share < 2.0")  # both columns are read once
    figures = {}
    for percent in (50, 10, 1):
        unseen, repeated, answers, truth, plan = [], [], [], [], ""
        for turn in range(rounds):
            calls = []
            for number, query in enumerate(queries):
                # The second half holds for every record, and makes the filter one that was never asked before.
                where = f"hundredth < {percent} AND share < {2 + (turn * 1000 + number) / 1e6}"
                calls.append(lambda q=query, w=where: collection.search(q, 10, where=w))
            unseen.append(timed(calls))
            same = f"hundredth < {percent}"
            collection.search(queries[0], 10, where=same)
            repeated.append(timed([lambda q=query, w=same: collection.search(q, 10, where=w) for query in queries]))
        allowed = np.flatnonzero(hundredths < percent)
        for query, unit in zip(queries, units, strict=True):
            hits = collection.search(query, 10, where=f"hundredth < {percent}")
            plan = hits.plan
            assert len(hits) == 10
            answers.append(hits.keys)
            best = allowed[np.argsort(-(matrix[allowed] @ unit), kind="stable")[:10]]
            truth.append([keys[i] for i in best])
        figures[f"{percent} %"] = {
            "unseen_milliseconds": median(unseen), "repeated_milliseconds": median(repeated),
            "recall_at_10": recall(answers, truth), "plan": plan,
        }
    return figures


PARTS = {"writing": writing, "cold": cold, "searching": searching}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; else all")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = records()
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as scratch:
        for part in options.parts or PARTS:
            save(f"store_{part}", PARTS[part](rows, Path(scratch), options.rounds))


if __name__ == "__main__":
    main()
