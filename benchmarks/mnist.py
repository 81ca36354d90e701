"""The handwritten digits of MNIST as the benchmarks use them: the last 10,000 of the 60,000 are held out."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np

N_HELD_OUT = 10_000


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The pictures, uint8 (60000, 28, 28), and their digits, uint8 (60000,)."""
    data = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    folder = data / "mnist"
    return _read(folder / "train-images-idx3-ubyte.gz"), _read(folder / "train-labels-idx1-ubyte.gz")


def _read(path: Path) -> np.ndarray:
    """An array of the IDX format: two zero bytes, a type, the number of dimensions, their sizes, the numbers."""
    body = gzip.decompress(path.read_bytes())
    shape = [int.from_bytes(body[4 + 4 * place : 8 + 4 * place], "big") for place in range(body[3])]
    return np.frombuffer(body, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
