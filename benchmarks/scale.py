"""A million vectors of dimension 128 on the disk: built, opened by a new process with a cold page cache, and searched.

The vectors are made of real ones: definitions of WordNet through minilm, projected to 128 numbers by PCA, each of them
mixed with a near neighbour at random and given some noise, which keeps their clusters. Dropping the page cache needs
root; otherwise the figures are of a warm one, and say so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from glosses import records
from report import save

DIM = 128
OPENED = (
    "import sys, time, json\n"
    "started = time.perf_counter()\n"
    "import numpy, embedstore\n"
    "store = embedstore.open(sys.argv[1])\n"
    "hits = store.collection('million').search(numpy.load(sys.argv[2])[0], k=10)\n"
    "assert len(hits) == 10 and hits[0].record.content\n"
    "first = time.perf_counter() - started\n"
    "rss = int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024\n"
    "print(json.dumps({'seconds': first, 'plan': hits.plan, 'rss': rss}))\n"
)


def million(n: int) -> np.ndarray:
    """``n`` unit vectors of dimension 128."""
    base = np.stack([row["vector"] for row in records()]).astype(np.float32)
    base -= base.mean(axis=0)
    _, _, axes = np.linalg.svd(base[::10], full_matrices=False)
    base = base @ axes[:DIM].T
    random = np.random.default_rng(0)
    order = np.argsort(base @ random.standard_normal(DIM))  # neighbours along a line are near more often than not
    base = base[order]
    first = random.integers(0, len(base), n)
    second = np.clip(first + random.integers(-20, 20, n), 0, len(base) - 1)
    share = random.uniform(0.5, 1.0, (n, 1)).astype(np.float32)
    made = share * base[first] + (1 - share) * base[second]
    made += 0.01 * random.standard_normal(made.shape).astype(np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def drop_page_cache() -> bool:
    """Whether the system has let go of what it read of files."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def main() -> None:
    import embedstore

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--recipe", default="ivf-disk")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ["EMBEDSTORE_BUILD"] = "0"
    matrix = million(options.n)
    figures: dict = {"vectors": options.n, "dim": DIM, "recipe": options.recipe}
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parents[1]) as folder:
        scratch = Path(folder)
        with embedstore.open(scratch / "store") as store:
            collection = store.collection("million", encoder="none")
            started = time.perf_counter()
            for start in range(0, options.n, 10_000):
                collection.add(
                    {"key": str(start + i), "text": f"vector {start + i}", "vector": row, "turn": (start + i) % 1000}
                    for i, row in enumerate(matrix[start : start + 10_000])
                )
            figures["written_records_per_second"] = round(options.n / (time.perf_counter() - started))
            started = time.perf_counter()
            collection.index(recipe=options.recipe)
            figures["index_build_seconds"] = round(time.perf_counter() - started, 1)
            queries = matrix[np.random.default_rng(1).integers(0, options.n, 100)] + 0.02
            queries /= np.linalg.norm(queries, axis=1, keepdims=True)
            np.save(scratch / "queries.npy", queries.astype(np.float32))
            samples, right = [], []
            for query in queries:
                began = time.perf_counter()
                hits = collection.search(query, 10)
                samples.append(time.perf_counter() - began)
                best = np.argpartition(-(matrix @ query), 10)[:10]
                right.append(len({int(key) for key in hits.keys} & set(best.tolist())) / 10)
            figures["query_milliseconds"] = round(1e3 * statistics.median(samples), 3)
            figures["recall_at_10"] = round(float(np.mean(right)), 4)
        opened = []
        for _ in range(options.rounds):
            figures["page_cache"] = "dropped before each" if drop_page_cache() else "warm: dropping it needs root"
            done = subprocess.run(
                [sys.executable, "-c", OPENED, str(scratch / "store"), str(scratch / "queries.npy")], check=True,
                capture_output=True, text=True,
            )  # fmt: skip
            opened.append(json.loads(done.stdout))
        figures["opened_to_first_answer_seconds"] = round(statistics.median(one["seconds"] for one in opened), 3)
        figures["all_seconds"] = sorted(round(one["seconds"], 3) for one in opened)
        figures["memory_megabytes_in_all"] = round(statistics.median(one["rss"] for one in opened), 1)
        figures["plan"] = opened[0]["plan"]
    save("scale", figures)


if __name__ == "__main__":
    main()
