"""FAISS indexes of a space: built from its exact vectors, written to a cache file, opened, searched with a filter.

Positions in the index are rows of the matrix it was built from. An index is never changed once it is built.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import StorageFull
from embedstore.indexing.cachefile import CacheFile, CacheWriter, DamagedCache, open_checked
from embedstore.indexing.faiss_file import layout_fault
from embedstore.indexing.recipes import Recipe
from embedstore.model import BoolVector, FloatMatrix, FloatVector, IntVector, Metric
from embedstore.optional import load_faiss

_LOOP_LIMIT = 1 << 31
_SPARE_BYTES = 4096
_READING = threading.Lock()
"""FAISS keeps the limits for reading a file in global variables."""


class FaissIndex:
    """A built FAISS index, for reading only."""

    def __init__(self, index: Any, recipe: Recipe, metric: Metric) -> None:
        self._faiss = load_faiss()
        self._index = index
        self._recipe = recipe
        self._metric = metric
        self.n_vectors = int(index.ntotal)

    def search(
        self, query: FloatVector, k: int, *, allowed: BoolVector | None, effort: int
    ) -> tuple[IntVector, FloatVector]:
        """The best ``k`` positions for a prepared query (dim,), and their scores; only where ``allowed`` is True.

        ``effort`` is HNSW's efSearch. May find fewer than ``k``; positions that are not allowed never come back.
        """
        faiss = self._faiss
        # A parameter object of one's own for each call: sharing one between threads crashes FAISS.
        parameters = faiss.SearchParametersHNSW(efSearch=max(effort, k))
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bits)
            parameters.sel = selector
        distances, positions = self._index.search(query[None, :], k, params=parameters)
        found = positions[0] >= 0
        if allowed is not None:
            found &= allowed[np.maximum(positions[0], 0)]
        scores = distances[0][found]
        if self._metric is Metric.EUCLIDEAN:
            scores = -np.sqrt(np.maximum(scores, 0))
        return positions[0][found], scores

    @property
    def base_effort(self) -> int:
        """The recipe's own efSearch."""
        return self._recipe.search.get("efSearch", 64)


def build_index(matrix: FloatMatrix, recipe: Recipe, metric: Metric) -> Any:
    """A FAISS index over the prepared rows of ``matrix`` (n, dim), positions 0 to n - 1."""
    faiss = load_faiss()
    kind = faiss.METRIC_L2 if metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(matrix.shape[1], recipe.factory, kind)
    if "efConstruction" in recipe.build:
        index.hnsw.efConstruction = recipe.build["efConstruction"]
    index.add(np.ascontiguousarray(matrix))
    return index


def write_faiss(index: Any, folder: Path, recipe: Recipe) -> CacheFile:
    """Write an index through our own descriptor: FAISS's own file writing reports success on a full disk."""
    faiss = load_faiss()
    failures: list[OSError] = []

    with CacheWriter(folder, recipe.name, ".faiss") as writer:

        def put(chunk: bytes) -> int:
            try:
                return writer.write(chunk)
            except OSError as error:
                failures.append(error)
                return 0

        try:
            faiss.write_index(index, faiss.PyCallbackIOWriter(put, 1 << 20))
        except RuntimeError as error:
            if failures:
                raise StorageFull(f"{folder} has no room for the index: {failures[0].strerror}") from error
            raise
    assert writer.written is not None
    return writer.written


def open_faiss(folder: Path, file: CacheFile, recipe: Recipe, metric: Metric, dim: int, n_vectors: int) -> FaissIndex:
    """Map an index written by ``write_faiss``; DamagedCache where it is not what was written."""
    faiss = load_faiss()
    fault = layout_fault(open_checked(folder, file), metric, dim, n_vectors)
    if fault is not None:
        raise DamagedCache(f"{folder / file.name} is not the index that was written: {fault}")
    with _READING:
        # FAISS refuses arrays of a fourth of this; none can be larger than the file.
        faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
        faiss.set_deserialization_vector_byte_limit(4 * file.n_bytes + _SPARE_BYTES)
        try:
            index = faiss.read_index(os.fspath(folder / file.name), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise DamagedCache(f"{folder / file.name} cannot be read by FAISS: {str(error).splitlines()[0]}") from error
    return FaissIndex(index, recipe, metric)
