"""What several test modules use."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path | None:
    """The folder of real data sets, or None."""
    folder = Path(os.environ.get("EMBEDSTORE_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def brute_force(matrix: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """The score of every row against a query, in float64, by the definition of the metric."""
    rows, one = matrix.astype(np.float64), query.astype(np.float64)
    if metric == "cosine":
        return rows @ one / (np.linalg.norm(rows, axis=1) * np.linalg.norm(one))
    if metric == "dot":
        return rows @ one
    return -np.linalg.norm(rows - one, axis=1)


def needs_gpu(recipe) -> bool:
    """Whether an index of a recipe can only be built on a GPU, and FAISS finds none."""
    from embedstore.indexing.gpus import n_gpus
    from embedstore.indexing.recipes import Placement
    from embedstore.optional import load_faiss

    return recipe.placement is Placement.GPU and not recipe.exact and not n_gpus(load_faiss())
