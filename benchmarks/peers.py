"""Queries over 60,000 real vectors of dimension 384 beside other stores: ten hits with text and metadata, and recall.

Each store is measured where it is installed, with the settings that stand beside its figures: its own defaults where
nothing else is said. The stores take turns, one round each; the figures are medians of the rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from glosses import records
from recipes import K, p50, queries_of
from report import save

FIELDS = ("category", "n_words", "hundredth", "share")
Search = Callable[[np.ndarray], list[str]]
"""Takes a unit vector, and gives the keys of the hits after their texts and metadata were read."""


def embedstore_with(recipe: str, settings: dict[str, int] | None = None) -> Callable[[Path, list[dict]], Search]:
    def build(folder: Path, rows: list[dict]) -> Search:
        import embedstore

        collection = embedstore.open(folder).collection("glosses", encoder="none", recipe=recipe)
        for start in range(0, len(rows), 10_000):
            collection.add([{**row, "vector": row["vector"]} for row in rows[start : start + 10_000]])
        if settings is None:
            collection.index()
        else:
            collection.tune(recall=0.95, recipes=[recipe])

        def search(query: np.ndarray) -> list[str]:
            hits = collection.search(query, K)
            return [hit.key for hit in hits if hit.record.content and hit.record.metadata]

        return search

    return build


class _Rows:
    """Texts and metadata in SQLite, beside an index that has none."""

    def __init__(self, folder: Path, rows: list[dict]) -> None:
        folder.mkdir()
        self._database = sqlite3.connect(folder / "rows.db")
        self._database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT, text TEXT, metadata TEXT)")
        self._database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", [
            (i, row["key"], row["text"], json.dumps({name: row[name] for name in FIELDS})) for i, row in enumerate(rows)
        ])  # fmt: skip
        self._database.commit()

    def keys(self, ids: list[int]) -> list[str]:
        marks = ",".join("?" * len(ids))
        sql = f"SELECT id, key, text, metadata FROM rows WHERE id IN ({marks})"
        found = self._database.execute(sql, ids).fetchall()
        by_id = {row[0]: row[1] for row in found}
        return [by_id[one] for one in ids]


def hnswlib_and_sqlite(folder: Path, rows: list[dict]) -> Search:
    import hnswlib

    kept = _Rows(folder, rows)
    index = hnswlib.Index("cosine", 384)
    index.init_index(len(rows), ef_construction=120, M=32)
    index.add_items(np.stack([row["vector"] for row in rows]))
    index.set_ef(64)
    index.set_num_threads(1)
    return lambda query: kept.keys(index.knn_query(query, K)[0][0].tolist())


def usearch_and_sqlite(folder: Path, rows: list[dict]) -> Search:
    from usearch.index import Index

    kept = _Rows(folder, rows)
    index = Index(ndim=384, metric="cos", dtype="f32")
    index.add(np.arange(len(rows)), np.stack([row["vector"] for row in rows]))
    return lambda query: kept.keys(index.search(query, K).keys.tolist())


def chroma(folder: Path, rows: list[dict]) -> Search:
    import chromadb
    from chromadb.config import Settings

    client = chromadb.PersistentClient(str(folder), settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection("glosses", metadata={"hnsw:space": "cosine"}, embedding_function=None)
    for start in range(0, len(rows), 5_000):
        part = rows[start : start + 5_000]
        collection.add(
            ids=[row["key"] for row in part], embeddings=np.stack([row["vector"] for row in part]),
            documents=[row["text"] for row in part],
            metadatas=[{name: row[name] for name in FIELDS} for row in part],
        )  # fmt: skip
    return lambda query: collection.query(query_embeddings=[query], n_results=K)["ids"][0]


def _lance_table(folder: Path, rows: list[dict]) -> Any:
    import lancedb
    import pyarrow

    flat = np.concatenate([row["vector"] for row in rows])
    return lancedb.connect(folder).create_table("glosses", pyarrow.table({
        "vector": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), 384),
        **{name: [row[name] for row in rows] for name in ("key", "text", *FIELDS)},
    }))  # fmt: skip


def lancedb_scan(folder: Path, rows: list[dict]) -> Search:
    table = _lance_table(folder, rows)
    return lambda query: [row["key"] for row in table.search(query).distance_type("cosine").limit(K).to_list()]


def lancedb_indexed(folder: Path, rows: list[dict]) -> Search:
    table = _lance_table(folder, rows)
    table.create_index(metric="cosine", index_type="IVF_HNSW_SQ")
    table.wait_for_index([one.name for one in table.list_indices()])

    def search(query: np.ndarray) -> list[str]:
        asked = table.search(query).distance_type("cosine").ef(64).refine_factor(3)
        return [row["key"] for row in asked.limit(K).to_list()]

    return search


def qdrant_local(folder: Path, rows: list[dict]) -> Search:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(folder))
    client.create_collection("glosses", models.VectorParams(size=384, distance=models.Distance.COSINE))
    client.upload_collection(
        "glosses", np.stack([row["vector"] for row in rows]),
        payload=[{name: row[name] for name in ("key", "text", *FIELDS)} for row in rows], ids=range(len(rows)),
    )  # fmt: skip
    return lambda query: [hit.payload["key"] for hit in client.query_points("glosses", query, limit=K).points]


def sqlite_vec(folder: Path, rows: list[dict]) -> Search:
    import apsw
    import sqlite_vec

    folder.mkdir()
    database = apsw.Connection(str(folder / "vec.db"))
    database.enable_load_extension(True)
    database.load_extension(sqlite_vec.loadable_path())
    database.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, key TEXT, text TEXT, metadata TEXT)")
    database.execute("CREATE VIRTUAL TABLE vectors USING vec0(embedding float[384] distance_metric=cosine)")
    database.execute("BEGIN")
    for i, row in enumerate(rows):
        metadata = json.dumps({name: row[name] for name in FIELDS})
        database.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (i, row["key"], row["text"], metadata))
        database.execute("INSERT INTO vectors (rowid, embedding) VALUES (?, ?)", (i, row["vector"].tobytes()))
    database.execute("COMMIT")
    sql = (
        "SELECT r.key, r.text, r.metadata FROM vectors AS v JOIN rows AS r ON r.id = v.rowid"
        f" WHERE v.embedding MATCH ? AND k = {K} ORDER BY v.distance"
    )
    return lambda query: [row[0] for row in database.execute(sql, (query.tobytes(),)).fetchall()]


class Store(NamedTuple):
    """What is measured: the module that it needs, how it is built and asked, and its settings in words."""

    module: str
    build: Callable[[Path, list[dict]], Search]
    settings: str


STORES: dict[str, Store] = {
    "embedstore flat": Store("embedstore", embedstore_with("flat"), "every vector compared"),
    "embedstore hnsw-sq8": Store("embedstore", embedstore_with("hnsw-sq8", {}), "tuned to a recall of 0.95"),
    "embedstore ivf-pq-refine": Store("embedstore", embedstore_with("ivf-pq-refine", {}), "tuned to a recall of 0.95"),
    "hnswlib and SQLite": Store("hnswlib", hnswlib_and_sqlite, "M 32, ef_construction 120, ef 64"),
    "usearch and SQLite": Store("usearch", usearch_and_sqlite, "its defaults, f32"),
    "Chroma": Store("chromadb", chroma, "its defaults (HNSW)"),
    "LanceDB, no index": Store("lancedb", lancedb_scan, "every vector compared, its default"),
    "LanceDB, IVF_HNSW_SQ": Store("lancedb", lancedb_indexed, "default build, ef 64, refine_factor 3"),
    "Qdrant, local": Store("qdrant_client", qdrant_local, "every vector compared: its mode without a server"),
    "sqlite-vec": Store("sqlite_vec", sqlite_vec, "every vector compared"),
}


def main() -> None:
    import faiss

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=40)
    options = parser.parse_args()
    os.environ["EMBEDSTORE_BUILD"] = "0"
    rows = records()
    matrix = np.stack([row["vector"] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    keys = [row["key"] for row in rows]
    queries = queries_of(rows, options.queries)
    truth = [{keys[i] for i in np.argsort(-(matrix @ query))[:K]} for query in queries]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as scratch:
        searches: dict[str, Search] = {}
        for number, (name, one) in enumerate(STORES.items()):
            if importlib.util.find_spec(one.module) is None:
                continue
            started = time.perf_counter()
            searches[name] = one.build(Path(scratch) / str(number), rows)
            seconds = round(time.perf_counter() - started, 1)
            figures[name] = {"settings": one.settings, "built_in_seconds": seconds}
            print(f"==> {name}: {seconds} s", flush=True)
        faiss.omp_set_num_threads(1)
        samples: dict[str, list[float]] = {name: [] for name in searches}
        for _ in range(options.rounds):
            for name, search in searches.items():
                samples[name].append(p50(search, queries))
        for name, search in searches.items():
            right = [len(set(search(query)) & best) / K for query, best in zip(queries, truth, strict=True)]
            figures[name] |= {
                "milliseconds": round(statistics.median(samples[name]), 3),
                "spread": [round(min(samples[name]), 3), round(max(samples[name]), 3)],
                "recall_at_10": round(float(np.mean(right)), 4),
            }
    save("peers", figures)


if __name__ == "__main__":
    main()
