"""Inner products and squared distances of one query with many rows: NumPy's at first, FAISS's once it pays.

FAISS's loops are a third faster than NumPy's on one query and need no copy of the rows asked for, but importing FAISS
costs more than a search. So a process's first scan is done by NumPy, and later ones by FAISS where it is installed.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

from embedstore.errors import MissingDependency
from embedstore.indexing.threads import ManyThreads, OneThread
from embedstore.model import FloatMatrix, FloatVector, IntVector

_WORTHWHILE = 1 << 20
"""Numbers in a scan from which on FAISS's loops are worth their import."""

_UNEVEN = frozenset({2, 4, 8, 12})
"""Dimensions for which FAISS's loops over all rows add up in another order than those over some, or at the end."""

_n_large_scans = 0


def inner_products(matrix: FloatMatrix, query: FloatVector) -> FloatVector:
    """The inner product of every row with the query, float32 (n,). matrix: C-contiguous float32 (n, dim)."""
    faiss = _faiss(matrix.size)
    if faiss is None:
        return _sums(matrix, query)
    n, dim = matrix.shape
    if dim in _UNEVEN:
        return inner_products_at(matrix, np.arange(n), query)
    products = np.empty(n, np.float32)
    with OneThread(faiss):
        faiss.fvec_inner_products_ny(*pointers(faiss, products, query, matrix), dim, n)
    return products


def inner_products_at(matrix: FloatMatrix, rows: IntVector, query: FloatVector) -> FloatVector:
    """The inner products of some rows with the query, float32 (len(rows),), without copying the rows."""
    faiss = _faiss(rows.size * matrix.shape[1])
    if faiss is None:
        return _sums(matrix[rows], query)
    products = np.empty(rows.size, np.float32)
    with OneThread(faiss):
        faiss.fvec_inner_products_by_idx(
            *pointers(faiss, products, query, matrix, rows), matrix.shape[1], 1, rows.size
        )
    return products


def inner_products_at_many(matrix: FloatMatrix, rows: np.ndarray, queries: FloatMatrix) -> FloatMatrix:
    """The inner products of each query (n, dim) with its own rows (n, m); -inf where a row is -1. Needs FAISS."""
    faiss = import_faiss()
    assert faiss is not None
    n, m = rows.shape
    products: FloatMatrix = np.empty((n, m), np.float32)
    with ManyThreads(faiss):
        faiss.fvec_inner_products_by_idx(*pointers(faiss, products, queries, matrix, rows), matrix.shape[1], n, m)
    products[rows < 0] = -np.inf
    return products


def squared_distances_at_many(matrix: FloatMatrix, rows: np.ndarray, queries: FloatMatrix) -> FloatMatrix:
    """The squared distances of each query (n, dim) to its own rows (n, m); inf where a row is -1. Needs FAISS."""
    faiss = import_faiss()
    assert faiss is not None
    n, m = rows.shape
    squared: FloatMatrix = np.empty((n, m), np.float32)
    with ManyThreads(faiss):
        faiss.fvec_L2sqr_by_idx(*pointers(faiss, squared, queries, matrix, rows), matrix.shape[1], n, m)
    squared[rows < 0] = np.inf
    return squared


def squared_distances(matrix: FloatMatrix, query: FloatVector) -> FloatVector:
    """The squared Euclidean distance of every row to the query, float32 (n,), from the differences."""
    faiss = _faiss(matrix.size)
    n, dim = matrix.shape
    if faiss is not None and dim in _UNEVEN:
        return squared_distances_at(matrix, np.arange(n), query)
    squared = np.empty(n, np.float32)
    if faiss is not None:
        with OneThread(faiss):
            faiss.fvec_L2sqr_ny(*pointers(faiss, squared, query, matrix), dim, n)
        return squared
    for start in range(0, n, 8192):
        differences = matrix[start : start + 8192] - query
        np.einsum("ij,ij->i", differences, differences, out=squared[start : start + 8192])
    return squared


def squared_distances_at(matrix: FloatMatrix, rows: IntVector, query: FloatVector) -> FloatVector:
    """The squared Euclidean distances of some rows to the query, float32 (len(rows),)."""
    faiss = _faiss(rows.size * matrix.shape[1])
    if faiss is None:
        return squared_distances(matrix[rows], query)
    squared = np.empty(rows.size, np.float32)
    with OneThread(faiss):
        faiss.fvec_L2sqr_by_idx(*pointers(faiss, squared, query, matrix, rows), matrix.shape[1], 1, rows.size)
    return squared


def _sums(matrix: FloatMatrix, query: FloatVector) -> FloatVector:
    """Inner products that do not depend on where a row lies, as those of a product of matrices do."""
    return np.einsum("ij,j->i", matrix, query)  # type: ignore[no-any-return]


def can_batch() -> bool:
    """Whether FAISS is there to search for many queries at once."""
    return import_faiss() is not None


def pointers(faiss: Any, *arrays: np.ndarray) -> list[Any]:
    """Addresses of arrays as FAISS takes them."""
    return [faiss.swig_ptr(array) for array in arrays]


def loaded_faiss() -> Any:
    """FAISS, where it was imported already; else None."""
    module = sys.modules.get("faiss")
    return module if module is not None and hasattr(module, "fvec_L2sqr_by_idx") else None


def _faiss(n_numbers: int) -> Any | None:
    """FAISS, where it is loaded already or this is not the first large scan of the process."""
    global _n_large_scans
    module = loaded_faiss()
    if module is not None:
        return module
    if n_numbers < _WORTHWHILE:
        return None
    _n_large_scans += 1
    return import_faiss() if _n_large_scans > 1 else None


@functools.cache
def import_faiss() -> Any | None:
    """FAISS, imported now where it was not; None where it is not installed."""
    from embedstore.optional import load_faiss

    try:
        return load_faiss()
    except MissingDependency:
        return None
