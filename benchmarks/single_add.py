"""What durability costs: one record added at a time beside a bare SQLite commit of the same row, and opening a store.

The bare commit writes the same key, text, metadata and vector to two tables with the same indexes, in WAL mode with
``synchronous=FULL``. Both go to the same disk, in turns.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from glosses import records
from report import save

BARE = (
    "CREATE TABLE records (id INTEGER PRIMARY KEY, key TEXT UNIQUE, content TEXT, metadata TEXT)",
    "CREATE TABLE vectors (id INTEGER PRIMARY KEY, record INTEGER UNIQUE, vec BLOB)",
)


def bare_store(folder: Path) -> sqlite3.Connection:
    """An empty database, set up to be as durable as a store."""
    folder.mkdir()
    database = sqlite3.connect(folder / "bare.db", isolation_level=None)
    database.execute("PRAGMA page_size = 8192")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    for statement in BARE:
        database.execute(statement)
    return database


def add_bare(database: sqlite3.Connection, row: dict) -> None:
    """One durable commit of one row."""
    metadata = json.dumps({name: row[name] for name in ("category", "n_words", "hundredth", "share")})
    database.execute("BEGIN IMMEDIATE")
    done = database.execute(
        "INSERT INTO records (key, content, metadata) VALUES (?, ?, ?)", (row["key"], row["text"], metadata)
    )
    database.execute("INSERT INTO vectors (record, vec) VALUES (?, ?)", (done.lastrowid, row["vector"].tobytes()))
    database.execute("COMMIT")


def single_adds(rows: list[dict], scratch: Path, n: int) -> dict:
    """Median milliseconds of one add and of one bare commit, in turns, after both hold a thousand rows."""
    import embedstore

    ours, bare = [], []
    database = bare_store(scratch / "bare")
    with embedstore.open(scratch / "store") as store:
        collection = store.collection("glosses", encoder="none")
        collection.add(rows[:1000])
        for row in rows[:1000]:
            add_bare(database, row)
        for row in rows[1000 : 1000 + n]:
            started = time.perf_counter()
            collection.add([row])
            middle = time.perf_counter()
            add_bare(database, row)
            ours.append(middle - started)
            bare.append(time.perf_counter() - middle)
    database.close()
    return {
        "milliseconds": round(statistics.median(ours) * 1e3, 4),
        "bare_sqlite_milliseconds": round(statistics.median(bare) * 1e3, 4),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 3),
    }


def opening(rows: list[dict], scratch: Path, rounds: int) -> dict:
    """Median milliseconds from ``open`` to the first answer, in a process that has everything imported."""
    import embedstore

    folder = scratch / "opened"
    with embedstore.open(folder) as store:
        collection = store.collection("glosses", encoder="none")
        for start in range(0, len(rows), 10_000):
            collection.add(rows[start : start + 10_000])
        collection.refresh()
    opened, answered = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        store = embedstore.open(folder)
        n_records = len(store.collection("glosses"))
        opened.append(time.perf_counter() - started)
        hits = store.collection("glosses").search(rows[17]["vector"], k=10)
        answered.append(time.perf_counter() - started)
        assert (n_records, len(hits)) == (len(rows), 10)
        store.close()
    return {
        "vectors": len(rows), "open_milliseconds": round(statistics.median(opened) * 1e3, 2),
        "first_answer_milliseconds": round(statistics.median(answered) * 1e3, 2),
    }


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=500, help="single adds of each kind")
    parser.add_argument("--rounds", type=int, default=15, help="openings")
    options = parser.parse_args()
    rows = records()
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as folder:
        scratch = Path(folder)
        figures = {
            "one durable add": single_adds(rows, scratch, options.n), "opening": opening(rows, scratch, options.rounds)
        }
    save("single_add", figures)


if __name__ == "__main__":
    main()
