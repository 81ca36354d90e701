"""Every recipe beside the FAISS index that it wraps, on 60,000 real vectors of dimension 384.

A query (ten hits with text and metadata) beside the raw index and one read of SQLite; 500 queries at once beside the
raw index; two threads beside one; filters with values not seen before and repeated; memory of a process that opened the
store and searched. The raw index rescores as the recipe does (IndexRefine). What is compared is measured in turns.
Leaves the curve of recall against time of each recipe in ``indexes/NAME.curve.json``, and their picture in the docs.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from glosses import records
from report import machine, save

K = 10
DIM = 384
INDEXES = Path(__file__).resolve().parents[1] / "indexes"
PERCENTS = (50, 10, 1, 0.1)
BUILD_ROUNDS = {"hnsw": 5}


def queries_of(rows: list[dict], n: int, seed: int = 0) -> np.ndarray:
    """Stored vectors with some noise."""
    random = np.random.default_rng(seed)
    picked = random.integers(0, len(rows), n)
    noise = random.standard_normal((n, DIM)).astype(np.float32) * 0.02
    made = np.stack([rows[i]["vector"] for i in picked]) + noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


class Raw:
    """The FAISS index of a recipe, as FAISS users would build it, with a read of SQLite for the hits."""

    def __init__(self, recipe, matrix: np.ndarray, store: Path) -> None:
        import faiss

        self._faiss, self._recipe = faiss, recipe
        n, dim = matrix.shape
        started = time.perf_counter()
        if recipe.exact:
            self.index = faiss.IndexFlatIP(dim)
            self.index.add(matrix)
        elif recipe.factory == "Binary":
            self.index = _BinaryRefine(matrix, recipe.rescore)
        else:
            self.index = faiss.index_factory(dim, recipe.factory_for(n, dim), faiss.METRIC_INNER_PRODUCT)
            if "efConstruction" in recipe.build:
                self.index.hnsw.efConstruction = int(recipe.build["efConstruction"])
            self.index.train(matrix)
            self.index.add(matrix)
        self.build_seconds = time.perf_counter() - started
        if recipe.mapped:
            self.index = _on_disk(self.index, store.parent / "raw.faiss")
        self._base = self.index
        if recipe.rescore and recipe.factory != "Binary":
            self._flat = faiss.IndexFlatIP(dim)
            self._flat.add(matrix)
            self.index = faiss.IndexRefine(self._base, self._flat)
        self._address = store / "store.db"
        self._kept = threading.local()  # a connection
        self._ids = [row[0] for row in self._connection().execute("SELECT record_id FROM records ORDER BY record_id")]

    def _connection(self) -> sqlite3.Connection:
        """One for each thread; where there are several, FAISS is not to use further ones."""
        if not hasattr(self._kept, "connection"):
            self._kept.connection = sqlite3.connect(self._address)
            if threading.current_thread() is not threading.main_thread():
                self._faiss.omp_set_num_threads(1)
        return self._kept.connection

    def parameters(self, knob: int | None = None) -> Any:
        faiss, recipe = self._faiss, self._recipe
        value = knob if knob is not None else recipe.search.get(recipe.knob)
        inner = None
        if recipe.factory == "Binary":
            return None
        if recipe.knob == "efSearch":
            inner = faiss.SearchParametersHNSW(efSearch=value)
        elif recipe.knob == "nprobe" and "qb" in recipe.search:
            inner = faiss.IVFRaBitQSearchParameters(nprobe=value, qb=recipe.search["qb"])
        elif recipe.knob == "nprobe":
            inner = faiss.SearchParametersIVF(nprobe=value)
        if not recipe.rescore:
            return inner
        return faiss.IndexRefineSearchParameters(k_factor=max(recipe.rescore, 32 / K), base_index_params=inner)

    def search(self, query: np.ndarray) -> list:
        connection = self._connection()
        _, found = self.index.search(query[None], K, params=self.parameters())
        marks = ",".join("?" * K)
        return connection.execute(
            f"SELECT record_id, key, content, metadata FROM records WHERE record_id IN ({marks})",
            [self._ids[i] for i in found[0]],
        ).fetchall()

    def batch(self, queries: np.ndarray) -> np.ndarray:
        return self.index.search(queries, K, params=self.parameters())[1]


def _on_disk(index, path: Path):
    """The index with its lists mapped from a file, without FAISS's threads that read ahead, which make it slower."""
    import faiss

    faiss.write_index(index, str(path))
    mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    faiss.downcast_InvertedLists(mapped.invlists).prefetch_nthread = 0
    return mapped


class _BinaryRefine:
    """FAISS's index of bits, and the exact comparison that its users write around it."""

    def __init__(self, matrix: np.ndarray, rescore: int) -> None:
        import faiss

        self._matrix, self._rescore = matrix, rescore
        self._centre = matrix.mean(axis=0)
        self._bits = faiss.IndexBinaryFlat(matrix.shape[1])
        self._bits.add(np.packbits(matrix > self._centre, axis=1))

    def search(self, queries: np.ndarray, k: int, params: None = None) -> tuple[np.ndarray, np.ndarray]:
        _, found = self._bits.search(np.packbits(queries > self._centre, axis=1), k * self._rescore)
        scores = np.stack([self._matrix[line] @ query for line, query in zip(found, queries, strict=True)])
        order = np.argsort(-scores, axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)


def p50(call: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """The median milliseconds of a call."""
    samples = []
    for query in queries:
        started = time.perf_counter()
        call(query)
        samples.append(time.perf_counter() - started)
    return statistics.median(samples) * 1e3


def in_turns(rounds: int, ours: Callable[[], float], other: Callable[[], float]) -> dict:
    pairs = [(ours(), other()) for _ in range(rounds)]
    ratios = [one / two for one, two in pairs]
    return {
        "ours": round(statistics.median(one for one, _ in pairs), 4),
        "other": round(statistics.median(two for _, two in pairs), 4),
        "ratio": round(statistics.median(ratios), 3), "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def threads_rate(search: Callable[[np.ndarray], object], queries: np.ndarray, n_threads: int) -> float:
    """Searches a second by so many threads, each asking all of the queries five times.

    The time begins when each has asked once, and so has its connection to the database.
    """
    ready = threading.Barrier(n_threads + 1)

    def work() -> None:
        search(queries[0])
        ready.wait()
        for _ in range(5):
            for query in queries:
                search(query)

    workers = [threading.Thread(target=work) for _ in range(n_threads)]
    for worker in workers:
        worker.start()
    ready.wait()
    started = time.perf_counter()
    for worker in workers:
        worker.join()
    return 5 * n_threads * len(queries) / (time.perf_counter() - started)


def filtered(collection, rows: list[dict], matrix: np.ndarray, queries: np.ndarray, rounds: int) -> dict:
    """Milliseconds under filters not seen before and repeated, and recall@10 against an exact scan."""
    keys = [row["key"] for row in rows]
    figures = {}
    for percent in PERCENTS:
        allowed = np.flatnonzero(np.arange(len(rows)) % 1000 < percent * 10)
        unseen, repeated, n_found = [], [], []
        for turn in range(rounds):
            samples = []
            for number, query in enumerate(queries):
                where = f"turn < {percent * 10:g} AND share < {2 + (turn * 1000 + number) / 1e6}"
                started = time.perf_counter()
                collection.search(query, K, where=where)
                samples.append(time.perf_counter() - started)
            unseen.append(statistics.median(samples) * 1e3)
            same = f"turn < {percent * 10:g}"
            collection.search(queries[0], K, where=same)
            repeated.append(p50(lambda query, same=same: collection.search(query, K, where=same), queries))
        right, plan = [], ""
        for query in queries:
            hits = collection.search(query, K, where=f"turn < {percent * 10:g}")
            plan = hits.plan
            n_found.append(len(hits))
            best = allowed[np.argsort(-(matrix[allowed] @ query), kind="stable")[:K]]
            right.append(len(set(hits.keys) & {keys[i] for i in best}) / K)
        figures[f"{percent:g} %"] = {
            "unseen_milliseconds": round(statistics.median(unseen), 3),
            "repeated_milliseconds": round(statistics.median(repeated), 3),
            "recall_at_10": round(float(np.mean(right)), 4), "fewest_hits": min(n_found), "plan": plan,
        }
    return figures


MEMORY = (
    "import sys\n"
    "def rss():\n"
    "    return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024\n"
    "import numpy, faiss\n"
    "bare = rss()\n"
    "if sys.argv[1] != '-':\n"
    "    import embedstore\n"
    "    store = embedstore.open(sys.argv[1])\n"
    "    hits = store.collection('glosses').search(numpy.load(sys.argv[2]), k=10)\n"
    "    assert len(hits) == 10 and hits[0].record.content\n"
    "print(rss() - bare)\n"
)


def memory(store: Path, scratch: Path, query: np.ndarray) -> float:
    """Megabytes that opening the store and one search add to a process that has imported FAISS."""
    np.save(scratch / "query.npy", query)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(store), str(scratch / "query.npy")], check=True, capture_output=True,
        text=True, env={**os.environ, "EMBEDSTORE_BUILD": "0"},
    )  # fmt: skip
    return round(float(done.stdout), 1)


def curve(recipe, collection, matrix: np.ndarray, queries: np.ndarray) -> list[dict]:
    """Recall@10 and microseconds of each useful setting, through the library's own search of the index."""
    from embedstore.searching.index_search import IndexSearch

    collection.search(queries[0])
    view = collection.store.search.space_cache(collection.space().space_id)._view
    _, scores = view.scan_batch(queries, K, None)
    points = []
    for value in recipe.useful.get(recipe.knob, (0,)):
        if recipe.knob == "nprobe" and value > view.approximate.index.n_lists:
            break
        search = IndexSearch(view, K, None, value, recipe.n_candidates(K))
        right = []
        for query, line in zip(queries, scores, strict=True):
            found = search.run(view, query)
            right.append(float((found.scores >= line[-1] - 1e-5).sum()) / K)
        milliseconds = p50(lambda query, search=search: search.run(view, query), queries)
        points.append({
            "settings": {} if recipe.knob is None else {recipe.knob: value},
            "recall_at_10": round(float(np.mean(right)), 4), "microseconds": round(1e3 * milliseconds, 1),
        })  # fmt: skip
    return points


def measured(recipe, collection, rows, matrix, folder: Path, scratch: Path, rounds: int) -> dict:
    """All figures of one recipe."""
    import faiss

    cores = os.cpu_count() or 1
    queries, many = queries_of(rows, 100), queries_of(rows, 500, 1)
    builds = []
    for _ in range(BUILD_ROUNDS.get(recipe.name, 1)):
        started = time.perf_counter()
        collection.index(recipe=recipe.name)
        seconds = time.perf_counter() - started
        raw = Raw(recipe, matrix, folder)
        builds.append((seconds, raw.build_seconds))
    ratios = [ours / other for ours, other in builds]
    keys = [row["key"] for row in rows]
    truth = [{keys[i] for i in np.argsort(-(matrix @ query))[:K]} for query in queries]
    hits = [collection.search(query, K) for query in queries]
    right = [len(set(one.keys) & best) / K for one, best in zip(hits, truth, strict=True)]
    figures = {
        "plan": hits[0].plan, "recall_at_10": round(float(np.mean(right)), 4),
        "build": {
            "seconds": round(statistics.median(ours for ours, _ in builds), 2),
            "raw_seconds": round(statistics.median(other for _, other in builds), 2),
            "ratio": round(statistics.median(ratios), 3), "rounds": len(builds),
            "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
        },
    }  # fmt: skip
    faiss.omp_set_num_threads(1)
    figures["query_milliseconds"] = in_turns(
        rounds, lambda: p50(lambda query: collection.search(query, K), queries), lambda: p50(raw.search, queries)
    )
    faiss.omp_set_num_threads(cores)

    def rate(call: Callable[[np.ndarray], object]) -> float:
        started = time.perf_counter()
        call(many)
        return len(many) / (time.perf_counter() - started)

    figures["neighbours_of_500_queries_a_second"] = in_turns(
        rounds, lambda: rate(lambda some: collection.neighbours(some, K)), lambda: rate(raw.batch)
    )
    figures["search_batch_of_500_queries_a_second"] = in_turns(
        rounds, lambda: rate(lambda some: collection.search_batch(some, K)), lambda: rate(raw.batch)
    )
    for name, search in (
        ("two_threads_against_one", lambda query: collection.search(query, K)),
        ("raw_two_threads_against_one", raw.search),
    ):
        figures[name] = in_turns(
            rounds, lambda search=search: threads_rate(search, queries, 2),
            lambda search=search: threads_rate(search, queries, 1),
        )  # fmt: skip
    figures["filtered"] = filtered(collection, rows, matrix, queries, rounds)
    figures["memory_megabytes"] = memory(folder, scratch, queries[0])
    if not recipe.exact:
        figures["curve"] = curve(recipe, collection, matrix, queries)
    return figures


def main() -> None:
    import embedstore
    from embedstore.indexing.recipes import Placement, all_recipes

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", help="which; else all that are built on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["EMBEDSTORE_BUILD"] = "0"
    rows = records()
    for number, row in enumerate(rows):
        row["turn"] = number % 1000
    matrix = np.stack([row["vector"] for row in rows])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    figures = {}
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as folder:
        scratch = Path(folder)
        with embedstore.open(scratch / "store") as store:
            collection = store.collection("glosses", encoder="none")
            for start in range(0, len(rows), 10_000):
                collection.add(rows[start : start + 10_000])
            collection.search(matrix[0], where="turn < 3 AND share < 2.0")  # both columns are read once
            for recipe in all_recipes().values():
                if recipe.placement is Placement.GPU or (options.recipes and recipe.name not in options.recipes):
                    continue
                print(f"==> {recipe.name}", file=sys.stderr, flush=True)
                figures[recipe.name] = measured(
                    recipe, collection, rows, matrix, scratch / "store", scratch, options.rounds
                )
                points = figures[recipe.name].pop("curve", None)
                if points is not None:
                    about = {"measured_on": "60,000 x 384 glosses of WordNet, minilm, cosine", "machine": machine()}
                    text = json.dumps({**about, "points": points}, indent=1)
                    (INDEXES / f"{recipe.name}.curve.json").write_text(text + "\n")
    save("recipes", figures)
    draw()


def draw() -> None:
    """The picture of every curve that was measured."""
    from embedstore.indexing.recipes import all_recipes, measured_curve
    from embedstore.plots import draw_curves

    lines = {
        name: [(point["microseconds"], point["recall_at_10"]) for point in points]
        for name in all_recipes() if (points := measured_curve(name))
    }  # fmt: skip
    draw_curves(
        lines, str(INDEXES.parent / "docs" / "images" / "recipes.png"), recall_name="recall@10",
        title="60,000 x 384 (WordNet through minilm), one thread, candidates compared exactly",
    )  # fmt: skip


if __name__ == "__main__":
    main()
