"""The recipes of a GPU beside FAISS's own classes and beside the CPU: batches, builds, recall. Needs a GPU.

Exact search in half precision over 10,000,000 x 128 beside the bare ``GpuIndexFlat``, in batches of 1,024; graphs and
codes over 1,000,000 x 128 beside the graph of the CPU, each at the least effort that reaches a recall@10 of 0.95. The
vectors are glosses of WordNet, reduced to 128 numbers, each many times with some noise. What is compared takes turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from glosses import records
from report import NOT_HERE, save

DIM, K = 128, 10
WANTED = 0.95


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """``n`` unit vectors of 128 numbers, float32."""
    base = np.stack([row["vector"] for row in records()])
    base -= base.mean(axis=0)
    axes = np.linalg.eigh(base.T @ base)[1][:, ::-1][:, :DIM]
    base = (base @ axes).astype(np.float32)
    random = np.random.default_rng(seed)
    made = np.empty((n, DIM), np.float32)
    for start in range(0, n, 100_000):
        part = base[random.integers(0, len(base), min(100_000, n - start))]
        part = part + random.standard_normal(part.shape, np.float32) * np.float32(0.3 * base.std())
        made[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return made


def view_of(matrix: np.ndarray, approximate: Any = None, on_gpu: Any = None):
    """A space's view of vectors that lie in memory, without a database."""
    from embedstore.indexing.space_view import SpaceView
    from embedstore.model import Metric

    return replace(SpaceView.of_matrix(matrix, Metric.COSINE), approximate=approximate, gpu=on_gpu)


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def flat(n: int, rounds: int) -> dict:
    from embedstore.indexing.gpu import GpuFlat
    from embedstore.model import Metric
    from embedstore.searching.plan import nearest_batch

    matrix, queries = vectors(n), vectors(1024, 1)
    on_gpu = GpuFlat(matrix, Metric.COSINE, [0])
    view, raw = view_of(matrix, on_gpu=on_gpu), on_gpu._parts[0]
    found = nearest_batch(view, queries, K, None)
    exact = np.argsort(-(queries[:20] @ matrix.T), axis=1)[:, :K]
    right = [len({*ours} & {*best}) / K for ours, best in zip(found.rows[:20].tolist(), exact.tolist(), strict=True)]
    raw.search(queries, K)
    pairs = [
        (seconds(lambda: nearest_batch(view, queries, K, None)), seconds(lambda: raw.search(queries, K)))
        for _ in range(rounds)
    ]
    ratios = [other / ours for ours, other in pairs]
    return {
        "vectors": n, "batch": len(queries), "plan": found.plan, "recall_at_10": float(np.mean(right)),
        "queries_a_second": round(len(queries) / statistics.median(ours for ours, _ in pairs)),
        "raw_queries_a_second": round(len(queries) / statistics.median(other for _, other in pairs)),
        "rate_beside_raw": round(statistics.median(ratios), 3),
        "rate_beside_raw_spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def approximate(n: int, names: list[str], rounds: int) -> dict:
    """Builds, and the rates at the least effort that reaches the recall."""
    from embedstore.indexing.costs import IndexCosts, ScanCosts
    from embedstore.indexing.faiss_index import FaissIndex, build_index
    from embedstore.indexing.gpu import GpuFlat, GpuIndex
    from embedstore.indexing.recipes import Placement, find_recipe
    from embedstore.indexing.space_view import Approximate
    from embedstore.model import Metric
    from embedstore.searching.plan import nearest_batch

    matrix, queries = vectors(n), vectors(10_000, 1)
    truth = nearest_batch(view_of(matrix, on_gpu=GpuFlat(matrix, Metric.COSINE, [0])), queries, K, None).scores
    figures: dict[str, dict] = {}
    asked: dict[str, Callable[[], object]] = {}
    for name in names:
        recipe = find_recipe(name)
        started = time.perf_counter()
        built, shape = build_index(matrix, recipe, Metric.COSINE)
        build_seconds = time.perf_counter() - started
        index = FaissIndex(built, shape)
        of_rows = Approximate.of_rows(
            index, matrix, dict(recipe.search), IndexCosts(0.0, 0.0, 1.0, ScanCosts.guessed(DIM))
        )
        on_gpu = GpuIndex(index, [0]) if recipe.placement is Placement.GPU else None
        for effort in recipe.useful[recipe.knob]:
            view = view_of(matrix, replace(of_rows, settings={**recipe.search, recipe.knob: effort}), on_gpu)
            found = nearest_batch(view, queries, K, None)
            recall = float((found.scores >= truth[:, -1:] - 1e-5).mean())
            if recall >= WANTED:
                break
        figures[name] = {
            "build_seconds": round(build_seconds, 2), recipe.knob: effort, "recall_at_10": round(recall, 4),
            "plan": found.plan,
        }  # fmt: skip
        asked[name] = lambda view=view: nearest_batch(view, queries, K, None)
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds):
        for name, ask in asked.items():
            taken[name].append(seconds(ask))
    for name, samples in taken.items():
        figures[name]["queries_a_second"] = round(len(queries) / statistics.median(samples))
    return {"vectors": n, "queries": len(queries), **figures}


def main() -> None:
    from embedstore.indexing.gpus import n_gpus
    from embedstore.optional import load_faiss

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flat", type=int, default=10_000_000, help="vectors of the exact search")
    parser.add_argument("--approximate", type=int, default=1_000_000, help="vectors of the others")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    faiss = load_faiss()
    if not n_gpus(faiss):
        print("FAISS finds no GPU here; see what embedstore doctor says")
        raise SystemExit(NOT_HERE)
    card = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
        capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    names = ["hnsw", *(["gpu-cagra"] if hasattr(faiss, "GpuIndexCagra") else []), "gpu-ivf-pq"]
    save("gpu", {
        "card": card, "exact": flat(options.flat, options.rounds),
        "approximate": approximate(options.approximate, names, options.rounds),
    })  # fmt: skip


if __name__ == "__main__":
    main()
