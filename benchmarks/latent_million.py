"""What is computed over a million vectors: mean, direction, and PCA to 64, beside NumPy on the same mapped array.

The vectors lie in the store's exact cache, which is mapped. NumPy's part is what one would write on that file: a mean,
a difference of two means, and a covariance with its eigenvectors, each in blocks. Both in turns, in processes of their
own for their peak of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from report import save

import embedstore

BLOCK = 20_000


def fill(folder: Path, n: int, dim: int) -> None:
    """A store of vectors with a spectrum that falls, in two groups."""
    drawn = np.random.default_rng(0)
    mixing = (drawn.standard_normal((dim, dim)) * (1 / np.sqrt(1 + np.arange(dim)))[:, None]).astype(np.float32)
    with embedstore.open(folder) as store:
        collection = store.collection("points", encoder="none", metric="euclidean")
        for start in range(0, n, BLOCK):
            vectors = drawn.standard_normal((min(BLOCK, n - start), dim), np.float32) @ mixing
            collection.add([
                {"key": str(start + i), "vector": one, "odd": (start + i) % 2} for i, one in enumerate(vectors)
            ])  # fmt: skip
        collection.refresh()
        collection.space().structure(sample=100)  # the pages of the cache are checked once


def blocks(array: np.ndarray):
    for start in range(0, len(array), BLOCK):
        yield array[start : start + BLOCK]


def by_numpy(array: np.ndarray, odd: np.ndarray, what: str) -> np.ndarray:
    if what == "mean":
        return sum(part.sum(axis=0, dtype=np.float32).astype(np.float64) for part in blocks(array)) / len(array)
    if what == "direction":
        sums = np.zeros((2, array.shape[1]))
        for start in range(0, len(array), BLOCK):
            part, mine = array[start : start + BLOCK], odd[start : start + BLOCK]
            for one in (0, 1):
                sums[one] += part[mine == one].sum(axis=0)
        counts = np.bincount(odd)
        return sums[1] / counts[1] - sums[0] / counts[0]
    mean = by_numpy(array, odd, "mean")
    shift = mean.astype(np.float32)
    squares = np.zeros((array.shape[1], array.shape[1]))
    for part in blocks(array):
        moved = part - shift
        squares += moved.T @ moved
    return np.linalg.eigh(squares / (len(array) - 1))[1][:, -64:].T


def by_store(collection, what: str) -> None:
    from embedstore.latent.moments import moments_of, pca
    from embedstore.latent.points import look_at

    if what == "mean":
        look_at(collection, None, None, lambda points: points.mean())
    elif what == "direction":
        there, here = (look_at(collection, None, f"odd = {one}", lambda points: points.mean()) for one in (1, 0))
        assert np.isfinite(there - here).all()
    else:
        look_at(collection, None, None, lambda points: pca(moments_of(points.blocks()), 64, normalize=False))


@contextmanager
def watched() -> Iterator[list[int]]:
    """The peak of this process's own memory in KiB, without what is mapped of files."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure(folder: Path, what: str, rounds: int) -> dict:
    """In turns; with the peak of the process's own memory."""
    with embedstore.open(folder) as store:
        collection = store.collection("points")
        file = next((folder / "cache").rglob("exact-*.f32"))
        dim = collection.space().dim
        array = np.memmap(file, np.float32, "r", shape=(len(collection), dim))
        odd = np.arange(len(collection)) % 2
        times: dict[str, list[float]] = {"store": [], "numpy": []}
        with watched() as peak:
            by_store(collection, what)
        for _ in range(rounds):
            started = time.perf_counter()
            by_store(collection, what)
            times["store"].append(time.perf_counter() - started)
            started = time.perf_counter()
            by_numpy(array, odd, what)
            times["numpy"].append(time.perf_counter() - started)
    return {**{name: statistics.median(found) for name, found in times.items()}, "peak_mb": peak[0] >> 10}


def main() -> None:
    """Measure and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(Path(options.one[0]), options.one[1], options.rounds)))
        return
    figures: dict = {"vectors": options.n, "dim": options.dim, "array_mb": options.n * options.dim * 4 >> 20}
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), options.n, options.dim)
        for what in ("mean", "direction", "PCA-64"):
            command = [sys.executable, __file__, "--one", folder, what, "--rounds", str(options.rounds)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            figures[what] = {
                "store_seconds": round(found["store"], 3), "numpy_seconds": round(found["numpy"], 3),
                "ratio": round(found["store"] / found["numpy"], 3), "own_memory_mb": found["peak_mb"],
            }  # fmt: skip
            print(what, figures[what], flush=True)
    save("latent_million", figures)


if __name__ == "__main__":
    main()
