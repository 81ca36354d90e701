"""Checks what a file says of itself before FAISS reads it: FAISS allocates whatever a header claims.

Only indexes that a recipe can have made are let through: an HNSW graph over plain vectors, with every length as the
number of vectors demands, and nothing behind. What the graph holds is checked by FAISS as it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from embedstore.model import Metric

_HNSW, _FLAT = b"IHNf", {Metric.EUCLIDEAN: b"IxF2", Metric.COSINE: b"IxFI", Metric.DOT: b"IxFI"}
_METRIC = {Metric.EUCLIDEAN: 1, Metric.COSINE: 0, Metric.DOT: 0}
_HEADER = struct.Struct("<4siqqqBi")
_LENGTH = struct.Struct("<Q")
_MOST_LEVELS = 64
_GRAPH_NUMBERS = 5
"""Behind the arrays of a graph: its entry point, highest level, two efforts, and one number no longer in use."""


def layout_fault(content: npt.NDArray[np.uint8], metric: Metric, dim: int, n_vectors: int) -> str | None:
    """What keeps a file's bytes from being an HNSW index of ``n_vectors`` times ``dim`` numbers; None if nothing."""
    try:
        for fault in _faults(content.data, metric, dim, n_vectors):
            return fault
    except struct.error:
        return "it ends too early"
    return None


def _faults(content: memoryview, metric: Metric, dim: int, n_vectors: int) -> Iterator[str]:
    yield from _header_faults(content, 0, _HNSW, metric, dim, n_vectors)
    offset = _HEADER.size
    lengths = []
    for n_bytes in (8, 4, 4, 8, 4):  # chances of levels, neighbours up to each level, levels, offsets, neighbours
        (length,) = _LENGTH.unpack_from(content, offset)
        lengths.append(length)
        offset += _LENGTH.size + length * n_bytes
        if offset > len(content):
            yield f"an array of {length:,} entries is longer than the file"
    n_chances, n_sums, n_levels, n_offsets, _ = lengths
    if max(n_chances, n_sums) > _MOST_LEVELS or n_levels != n_vectors or n_offsets != n_vectors + 1:
        yield "its graph is not one of so many vectors"
    offset += 4 * _GRAPH_NUMBERS
    yield from _header_faults(content, offset, _FLAT[metric], metric, dim, n_vectors)
    (length,) = _LENGTH.unpack_from(content, offset + _HEADER.size)
    n_numbers = (len(content) - offset - _HEADER.size - _LENGTH.size) / 4
    if not length == n_numbers == n_vectors * dim:
        yield f"it holds {n_numbers:,.0f} numbers, not {n_vectors:,} times {dim}"


def _header_faults(
    content: memoryview, offset: int, code: bytes, metric: Metric, dim: int, n_vectors: int
) -> Iterator[str]:
    found, found_dim, found_vectors, _, _, is_trained, found_metric = _HEADER.unpack_from(content, offset)
    if found != code:
        yield f"it is an index of another kind ({found!r}, not {code!r})"
    if (found_dim, found_vectors) != (dim, n_vectors):
        yield f"it is of {found_vectors:,} vectors of {found_dim:,} numbers, not {n_vectors:,} of {dim:,}"
    if found_metric != _METRIC[metric] or is_trained != 1:
        yield "it compares by another metric"
