"""Chooses how the nearest vectors are found: an exact scan, a scan of the allowed rows, or a FAISS index.

A filter never makes the answer shorter: where the index finds fewer than there are, the search widens and in the end
compares every allowed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.indexing.exact import top_k
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import BoolVector, FloatVector, IntVector

_MAX_EFFORT = 4_096


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of a view, best first, with their scores, and how they were found."""

    rows: IntVector
    scores: FloatVector
    exact: bool
    plan: str
    details: dict[str, Any]


def nearest(view: SpaceView, query: FloatVector, k: int, allowed: BoolVector | None) -> Found:
    """The ``k`` nearest usable rows to a prepared query; all of them where fewer are usable."""
    usable = view.usable(allowed)
    n_usable = view.n_rows if usable is None else int(np.count_nonzero(usable))
    k = min(k, n_usable)
    details: dict[str, Any] = {"n_vectors": view.n_alive, "n_allowed": n_usable}
    if k == 0:
        return Found(np.empty(0, np.int64), np.empty(0, np.float32), True, "nothing to search", details)
    scan_cost = view.n_rows * scan_row_cost(view.dim)
    gather_cost = n_usable * gather_row_cost(view.dim) if usable is not None else scan_cost
    if view.approximate is not None:
        effort = _effort(view.approximate, k, n_usable / view.n_rows)
        n_after = view.n_rows - view.approximate.first_row_after
        index_cost = effort * effort_cost(view.dim) + n_after * gather_row_cost(view.dim)
        if effort <= _MAX_EFFORT and index_cost < min(scan_cost, gather_cost):
            found = _by_index(view, view.approximate, query, k, usable, effort, details)
            if found is not None:
                return found
            details["widened"] = "to an exact scan"
    if usable is not None and gather_cost < scan_cost:
        rows, scores = view.scan_rows(query, k, np.flatnonzero(usable))
        return Found(rows, scores, True, f"exact scan of {n_usable:,} allowed vectors", details)
    rows, scores = view.scan(query, k, allowed)
    note = "" if allowed is None else f", {n_usable:,} allowed"
    return Found(rows, scores, True, f"exact scan of {view.n_rows:,} vectors{note}", details)


# Nanoseconds of one core, set by hand from the timings in docs/decisions/0005 (60,000 x 384); only ratios decide.


def scan_row_cost(dim: int) -> float:
    """What a row costs in a scan of all rows, one after the other."""
    return 5 + 0.15 * dim


def gather_row_cost(dim: int) -> float:
    """What a row costs where only some rows are looked at."""
    return 20 + 0.45 * dim


def effort_cost(dim: int) -> float:
    """What one unit of HNSW's efSearch costs: some thirty vectors looked at in no order."""
    return 30 * (40 + 0.35 * dim)


def _effort(approximate: Approximate, k: int, fraction: float) -> int:
    """HNSW's efSearch for a share of usable rows: what is not usable is walked over, but not counted."""
    return int(max(approximate.index.base_effort, 2 * k) / max(fraction, 1e-9))


def _by_index(
    view: SpaceView,
    approximate: Approximate,
    query: FloatVector,
    k: int,
    usable: BoolVector | None,
    effort: int,
    details: dict[str, Any],
) -> Found | None:
    """Search the index, and scan the rows that came after it; None where too few were found."""
    after = approximate.first_row_after
    positions_allowed, n_reachable = _allowed_positions(approximate, usable)
    wanted = min(k, n_reachable)
    for attempt in range(3):
        spent = min(effort * 4**attempt, _MAX_EFFORT)
        positions, scores = approximate.index.search(
            query, min(k, approximate.index.n_vectors), allowed=positions_allowed, effort=spent
        )
        if positions.size >= wanted:
            break
    else:
        return None
    details.update(effort=spent, n_after_index=view.n_rows - after)
    rows = positions if approximate.row_of is None else approximate.row_of[positions]
    plan = f"{approximate.recipe} over {approximate.index.n_vectors:,} vectors, efSearch {spent}"
    if usable is not None:
        plan += f", {details['n_allowed']:,} allowed"
    if after < view.n_rows:
        late = np.arange(after, view.n_rows)
        late = late if usable is None else late[usable[after:]]
        late_rows, late_scores = view.scan_rows(query, k, late)
        rows, scores = np.concatenate([rows, late_rows]), np.concatenate([scores, late_scores])
        order = top_k(scores, k)
        rows, scores = rows[order], scores[order]
        plan += f"; exact scan of {late.size:,} newer vectors"
    return Found(rows[:k].astype(np.int64), scores[:k], False, plan, details)


def _allowed_positions(approximate: Approximate, usable: BoolVector | None) -> tuple[BoolVector | None, int]:
    """Which positions of the index may be returned (None: all), and how many they are."""
    n_positions = approximate.index.n_vectors
    if approximate.row_of is None:
        if usable is None:
            return None, n_positions
        mask = usable[:n_positions]
    else:
        gone = approximate.row_of < 0
        mask = ~gone if usable is None else usable[approximate.row_of] & ~gone
        if mask.all():
            return None, n_positions
    return mask, int(np.count_nonzero(mask))
