"""An exact search by the copy of a space in bytes: what it cannot rule out is compared in full."""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np

from embedstore.indexing.byte_copy import WIDENED, ByteCopy, Candidates
from embedstore.indexing.cachefile import DamagedCache
from embedstore.indexing.costs import ScanCosts
from embedstore.indexing.kernels import loaded_faiss
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import SpaceView
from embedstore.indexing.steps import width_of
from embedstore.model import BoolVector, FloatVector, IntVector

_LOG = logging.getLogger("embedstore")
_SPARE, _MOST = 44, 2_048
"""How many more rows are asked for than twice the hits, so that the bounds tell; and how many at most."""
_HEAP_NANOSECONDS = 8.0
"""For each step down the heap that FAISS keeps the best in."""


class Asked(NamedTuple):
    """How the bytes are asked: for how many, where ``fewest`` would do if they told most; and what that costs."""

    n_wanted: int
    fewest: int
    cost: float


class Scanned(NamedTuple):
    """Rows of a view, best first, with their exact scores, and how many were compared in full."""

    rows: IntVector
    scores: FloatVector
    n_compared: int


def asked_of_bytes(
    view: SpaceView, costs: ScanCosts, k: int, selection: Selection | None, *, counted: bool = True
) -> Asked | None:
    """How the bytes would be asked, with the nanoseconds that takes; None where they cannot be, or tell too little.

    counted: whether this is for a search, after some of which what did not help is tried again.

    The terms were fitted to timings of 64 to 1,024 numbers a vector, and of up to 2,048 wanted.
    """
    copy = view.byte_copy
    if copy is None or loaded_faiss() is None or not copy.is_usable:
        return None
    part = copy.kept_part(selection)
    fraction = 1.0 if selection is None or part is not None else max(selection.n, 1) / view.n_rows
    fewest = math.ceil((2 * k + _SPARE) / fraction)
    n_wanted = copy.n_wanted(fewest, counted=counted) if fewest <= _MOST else fewest
    if n_wanted is None or n_wanted > _MOST:
        return None
    n_base = view.base.shape[0]
    n = max(n_base if part is None else part.rows.size, 1)
    share = (4 + 0.04 * width_of(view.dim)) / (4 + 0.145 * view.dim)  # of what a scan of the vectors takes
    kept = n_wanted * (1 + math.log(max(n / n_wanted, 1))) * math.log2(n_wanted)
    compared = 3 * k + copy.steps.n_far + view.n_rows - n_base
    cost = n * share * costs.scan_row + kept * _HEAP_NANOSECONDS + compared * costs.gather_row
    return Asked(n_wanted, fewest, cost)


def scan_bytes(
    view: SpaceView, query: FloatVector, k: int, selection: Selection | None, asked: Asked
) -> Scanned | None:
    """The ``k`` nearest rows of a selection (None: of all) to a prepared query, just as a scan of them all finds them.

    k: at most the number of rows of the selection. None where the bytes do not tell enough, or are damaged.
    """
    copy = view.byte_copy
    assert copy is not None
    try:
        return _scanned(view, copy, query, k, selection, asked)
    except DamagedCache as error:
        if not copy.is_damaged:
            raise  # of the vectors
        _LOG.warning("every vector is compared until the cache is written anew: %s", error)
        return None


def _scanned(
    view: SpaceView, copy: ByteCopy, query: FloatVector, k: int, selection: Selection | None, asked: Asked
) -> Scanned | None:
    others = np.concatenate([copy.far, np.arange(view.base.shape[0], view.n_rows)])
    if selection is not None and others.size:
        others = others[selection.usable[others]]
    part = copy.part(selection)
    for n_wanted in (asked.n_wanted, asked.n_wanted * WIDENED):
        if n_wanted > _MOST:
            break
        found = copy.candidates(query, n_wanted, part)
        if found is None:
            return None
        rows = _possible(found, k, copy.is_near, selection)
        if others.size:
            rows = np.concatenate([rows, others])
        rows.sort()
        best, scores = view.scan_rows(query, k, rows)
        if best.size == k and float(scores[-1]) > found.bound:
            copy.note(asked.fewest, told=True, level=_level(n_wanted, asked) if n_wanted > asked.n_wanted else None)
            return Scanned(best, scores, rows.size)
    copy.note(asked.fewest, told=False)
    return None


def _level(n_wanted: int, asked: Asked) -> int:
    return round(math.log(n_wanted / asked.fewest, WIDENED))


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
