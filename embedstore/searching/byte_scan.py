"""An exact search by the copy of a space in bytes: what it cannot rule out is compared in full."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np

from embedstore.indexing.byte_copy import ByteCopy, Candidates, Part
from embedstore.indexing.cachefile import DamagedCache
from embedstore.indexing.costs import ScanCosts
from embedstore.indexing.kernels import loaded_faiss
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import SpaceView
from embedstore.indexing.steps import width_of
from embedstore.model import BoolVector, FloatVector, IntVector

_LOG = logging.getLogger("embedstore")
_SPARE = 44
_MOST = 2_048
_HEAP_NANOSECONDS = 8.0
"""For each step down the heap that FAISS keeps the best in."""
NEVER = math.inf


class Scanned(NamedTuple):
    """Rows of a view, best first, with their exact scores, and how many were compared in full."""

    rows: IntVector
    scores: FloatVector
    n_compared: int


def bytes_cost(view: SpaceView, costs: ScanCosts, k: int, selection: Selection | None) -> float:
    """Nanoseconds of a search by the bytes; NEVER where there are none, or they would not tell enough.

    The terms were fitted to timings of 64 to 1,024 numbers a vector, and of up to 2,048 wanted.
    """
    copy = view.byte_copy
    if copy is None:
        return NEVER
    part = copy.kept_part(selection)
    n_wanted = _n_wanted(view, k, selection, part)
    if n_wanted > _MOST or loaded_faiss() is None or not copy.is_promising(n_wanted):
        return NEVER
    n_base = view.base.shape[0]
    n = max(n_base if part is None else part.rows.size, 1)
    share = (4 + 0.04 * width_of(view.dim)) / (4 + 0.145 * view.dim)  # of what a scan of the vectors takes
    kept = n_wanted * (1 + math.log(max(n / n_wanted, 1))) * math.log2(n_wanted)
    compared = 3 * k + copy.steps.n_far + view.n_rows - n_base
    total: float = n * share * costs.scan_row + kept * _HEAP_NANOSECONDS + compared * costs.gather_row
    return total


def scan_bytes(view: SpaceView, query: FloatVector, k: int, selection: Selection | None) -> Scanned | None:
    """The ``k`` nearest rows of a selection (None: of all) to a prepared query, just as a scan of them all finds them.

    k: at most the number of rows of the selection. None where the bytes do not tell enough, or are damaged.
    """
    copy = view.byte_copy
    assert copy is not None
    try:
        return _scanned(view, copy, query, k, selection)
    except DamagedCache as error:
        if not copy.is_damaged:
            raise  # of the vectors
        _LOG.warning("every vector is compared until the cache is written anew: %s", error)
        return None


def _scanned(
    view: SpaceView, copy: ByteCopy, query: FloatVector, k: int, selection: Selection | None
) -> Scanned | None:
    others = np.concatenate([copy.far, np.arange(view.base.shape[0], view.n_rows)])
    if selection is not None and others.size:
        others = others[selection.usable[others]]
    part = copy.part(selection)
    n_wanted = first = _n_wanted(view, k, selection, part)
    while True:
        found = copy.candidates(query, n_wanted, part)
        if found is None:
            return None
        rows = _possible(found, k, copy.is_near, selection)
        if others.size:
            rows = np.concatenate([rows, others])
        rows.sort()
        best, scores = view.scan_rows(query, k, rows)
        if best.size == k and float(scores[-1]) > found.bound:
            copy.note(first, told=True)
            return Scanned(best, scores, rows.size)
        if 2 * n_wanted > _MOST:
            copy.note(first, told=False)
            return None
        n_wanted = _MOST


def _n_wanted(view: SpaceView, k: int, selection: Selection | None, part: Part | None) -> int:
    fraction = 1.0 if selection is None or part is not None else max(selection.n, 1) / view.n_rows
    return math.ceil((2 * k + _SPARE) / fraction)


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
