"""An exact search by the copy of a space in bytes: what it cannot rule out is compared in full."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from embedstore.indexing.byte_copy import Candidates
from embedstore.indexing.kernels import loaded_faiss
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import SpaceView
from embedstore.model import BoolVector, FloatVector, IntVector

SCANNED = 0.35
"""What a scan of the bytes takes beside one of the vectors (measured for 64 to 1,024 numbers each: 0.3 to 0.55)."""
_SPARE = 44
_WIDENED = 8
_MOST = 2_048
"""FAISS keeps the best in a heap, which takes longer than the scan for many more."""


class Scanned(NamedTuple):
    """Rows of a view, best first, with their exact scores, and how many were compared in full."""

    rows: IntVector
    scores: FloatVector
    n_compared: int


def scan_bytes(view: SpaceView, query: FloatVector, k: int, selection: Selection | None) -> Scanned | None:
    """The ``k`` nearest rows of a selection (None: of all) to a prepared query, just as a scan of them all finds them.

    k: at most the number of rows of the selection. None where there is no copy, or the bytes do not tell enough.
    """
    copy = view.byte_copy
    n_base = view.base.shape[0]
    if copy is None or copy.is_doubtful:
        return None
    fraction = 1.0 if selection is None else selection.n / view.n_rows
    n_wanted = math.ceil((2 * k + _SPARE) / fraction)
    if n_wanted > _MOST:
        return None
    faiss = loaded_faiss()
    if faiss is None:
        return None
    others = copy.far if n_base == view.n_rows else np.concatenate([copy.far, np.arange(n_base, view.n_rows)])
    if selection is not None and others.size:
        others = others[selection.usable[others]]
    while n_wanted <= _MOST:
        found = copy.candidates(faiss, query, n_wanted)
        if found is None:
            return None
        rows = _possible(found, k, copy.is_near, selection)
        if others.size:
            rows = np.concatenate([rows, others])
        rows.sort()
        best, scores = view.scan_rows(query, k, rows)
        if best.size == k and float(scores[-1]) > found.bound:
            copy.note(told=True)
            return Scanned(best, scores, rows.size)
        n_wanted *= _WIDENED
    copy.note(told=False)
    return None


def _possible(found: Candidates, k: int, is_near: BoolVector | None, selection: Selection | None) -> IntVector:
    """Those of the rows found that may be among the ``k`` nearest of a selection, but for those that lie far out."""
    rows, scores = found.rows, found.scores
    kept = is_near[rows] if is_near is not None else None
    if selection is not None:
        kept = selection.usable[rows] if kept is None else kept & selection.usable[rows]
    if kept is not None:
        rows, scores = rows[kept], scores[kept]
    if rows.size > k:
        rows = rows[: np.searchsorted(-scores, 2 * found.within - scores[k - 1], side="right")]
    return rows
