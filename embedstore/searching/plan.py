"""Chooses how the nearest vectors are found: an exact scan, a scan of the allowed rows, or a FAISS index.

A filter never makes the answer shorter: where the index finds fewer than there are, the search widens and in the end
compares every allowed row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.indexing.costs import ScanCosts, raised
from embedstore.indexing.faiss_index import Settings
from embedstore.indexing.kernels import can_batch
from embedstore.indexing.recipes import Family
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import FloatMatrix, FloatVector, IntVector

MAX_EFFORT = 4_096
_FEWEST_CANDIDATES = 32
_ATTEMPTS = 3
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of a view, best first, with their scores, and how they were found."""

    rows: IntVector
    scores: FloatVector
    exact: bool
    plan: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """A search by an index: the knob's value (0 where there is none) and how many candidates it is to find."""

    knob: int
    n_candidates: int


def nearest(view: SpaceView, query: FloatVector, k: int, selection: Selection | None) -> Found:
    """The ``k`` nearest rows of a selection (None: of all) to a prepared query; all of them where fewer are there."""
    n_usable = view.n_rows if selection is None else selection.n
    k = min(k, n_usable)
    details: dict[str, Any] = {"n_vectors": view.n_alive, "n_allowed": n_usable}
    if k == 0:
        return Found(np.empty(0, np.int64), np.empty(0, np.float32), True, "nothing to search", details)
    if view.gpu is not None and selection is None and _gpu_candidates(k) <= view.gpu.most_hits:
        by_gpu = _on_gpu(view, query[None, :], k, details)[0]
        if by_gpu is not None:
            return by_gpu
    by_index = _index_plan(view, k, selection)
    if by_index is not None:
        found = search_index(view, query, k, selection, by_index)
        if found is not None:
            found.details.update(details)
            return found
        details["widened"] = "to an exact scan"
    if selection is not None and _gathering_pays(view, selection):
        rows, scores = view.scan_rows(query, k, selection.rows)
        return Found(rows, scores, True, f"exact scan of {n_usable:,} allowed vectors", details)
    rows, scores = view.scan(query, k, selection)
    return Found(rows, scores, True, _scan_plan(view, selection), details)


def nearest_batch(view: SpaceView, queries: FloatMatrix, k: int, selection: Selection | None) -> list[Found]:
    """As ``nearest`` for each prepared query (n, dim), together where FAISS can."""
    n_usable = view.n_rows if selection is None else selection.n
    wanted = min(k, n_usable)
    if not len(queries) or wanted == 0 or not can_batch():
        return [nearest(view, query, k, selection) for query in queries]
    details: dict[str, Any] = {"n_vectors": view.n_alive, "n_allowed": n_usable}
    if view.gpu is not None and selection is None and _gpu_candidates(wanted) <= view.gpu.most_hits:
        by_gpu = _on_gpu(view, queries, wanted, details)
        if all(one is not None for one in by_gpu):
            return [one for one in by_gpu if one is not None]
    by_index = _index_plan(view, wanted, selection)
    if by_index is None or view.approximate is None:
        rows, scores = view.scan_batch(queries, wanted, selection)
        plan = f"{_scan_plan(view, selection)}, {len(queries):,} queries at once"
        return [Found(one, score, True, plan, details) for one, score in zip(rows, scores, strict=True)]
    rows, scores, short = _by_index_batch(view, view.approximate, queries, wanted, selection, by_index)
    plan = f"{_index_words(view, view.approximate, by_index, selection)}, {len(queries):,} queries at once"
    details |= _index_details(view, view.approximate, by_index)
    return [
        nearest(view, query, k, selection) if too_few else Found(one, score, False, plan, details)
        for query, one, score, too_few in zip(queries, rows, scores, short.tolist(), strict=True)
    ]


def _gpu_candidates(k: int) -> int:
    return max(2 * k, _FEWEST_CANDIDATES)


def _on_gpu(view: SpaceView, queries: FloatMatrix, k: int, details: dict[str, Any]) -> list[Found | None]:
    """The cached rows by a GPU in half precision, the best of them and the newer rows compared exactly.

    None for a query to which the GPU found too few.
    """
    assert view.gpu is not None
    n_candidates = _gpu_candidates(k)
    rows = view.gpu.candidates(queries, n_candidates)
    late = np.arange(view.base.shape[0], view.n_rows)
    rows = np.concatenate([rows, np.broadcast_to(late, (len(queries), late.size))], axis=1)
    best, scores = view.rescore_batch(queries, np.ascontiguousarray(rows), k)
    plan = f"GPU scan of {view.base.shape[0]:,} vectors in half precision, {n_candidates:,} candidates compared exactly"
    return [
        None if (one < 0).any() else Found(one, score, False, plan, details)
        for one, score in zip(best, scores, strict=True)
    ]


def _scan_plan(view: SpaceView, selection: Selection | None) -> str:
    note = "" if selection is None or selection.n == view.n_alive else f", {selection.n:,} allowed"
    return f"exact scan of {view.n_rows:,} vectors{note}"


def _scan_costs(view: SpaceView) -> ScanCosts:
    return ScanCosts.guessed(view.dim) if view.approximate is None else view.approximate.costs.scans


def _gathering_pays(view: SpaceView, selection: Selection) -> bool:
    costs = _scan_costs(view)
    return selection.n * costs.gather_row < view.n_rows * costs.scan_row


def _index_plan(view: SpaceView, k: int, selection: Selection | None) -> IndexPlan | None:
    """How the index would be asked, where that is cheaper than comparing rows; None where it is not."""
    approximate = view.approximate
    if approximate is None:
        return None
    n_usable = view.n_rows if selection is None else selection.n
    costs = _scan_costs(view)
    exact_cost = view.n_rows * costs.scan_row
    if selection is not None:
        exact_cost = min(exact_cost, n_usable * costs.gather_row)
    recipe = approximate.recipe
    n_candidates = max(k * recipe.rescore, _FEWEST_CANDIDATES) if recipe.rescore else k
    n_candidates = min(n_candidates, approximate.index.n_vectors)
    knob = 0
    if recipe.knob is not None:
        fraction = n_usable / view.n_rows
        knob = max(approximate.settings[recipe.knob], k) if recipe.family is Family.GRAPH else 0
        knob = max(knob, raised(approximate.settings, recipe.family, fraction, k))
        if recipe.family is Family.LISTS:
            knob = min(knob, approximate.index.n_lists)
        elif knob > MAX_EFFORT:
            return None
    plan = IndexPlan(knob, n_candidates)
    return plan if index_cost(view, approximate, plan, filtered=selection is not None) < exact_cost else None


def index_cost(view: SpaceView, approximate: Approximate, plan: IndexPlan, *, filtered: bool) -> float:
    """Nanoseconds of a search by the index, and of what is compared exactly afterwards."""
    n_compared = plan.n_candidates * bool(approximate.recipe.rescore) + view.n_rows - approximate.first_row_after
    return approximate.costs.of(plan.knob, filtered=filtered) + n_compared * approximate.costs.scans.gather_row


def _settings(approximate: Approximate, knob: int) -> Settings:
    name = approximate.recipe.knob
    return approximate.settings if name is None else {**approximate.settings, name: knob}


def search_index(
    view: SpaceView, query: FloatVector, k: int, selection: Selection | None, plan: IndexPlan
) -> Found | None:
    """Search the index of a view, and scan the rows that came after it; None where too few were found."""
    approximate = view.approximate
    assert approximate is not None
    at_positions = _positions(approximate, selection)
    n_reachable = approximate.index.n_vectors if at_positions is None else at_positions.n
    wanted = min(k, n_reachable)
    for attempt in range(_ATTEMPTS):
        spent = plan.knob * 4**attempt
        positions, scores = approximate.index.search(
            query[None, :], plan.n_candidates, selection=at_positions, settings=_settings(approximate, spent)
        )
        found = positions[0][positions[0] >= 0]
        if found.size >= wanted:
            break
        if plan.knob == 0:
            return None
    else:
        return None
    plan = IndexPlan(spent, plan.n_candidates)
    rows = found if approximate.row_of is None else approximate.row_of[found]
    late = _late_rows(view, approximate, selection)
    if approximate.recipe.rescore or late.size:
        rows = np.sort(rows)
        rows, best = view.scan_rows(query, k, np.concatenate([rows, late]) if late.size else rows)
    else:
        best = scores[0][positions[0] >= 0][:k]
        rows = rows[:k]
    words = _index_words(view, approximate, plan, selection)
    details = _index_details(view, approximate, plan)
    return Found(rows.astype(np.int64, copy=False), best, False, words, details)


def _by_index_batch(
    view: SpaceView,
    approximate: Approximate,
    queries: FloatMatrix,
    k: int,
    selection: Selection | None,
    plan: IndexPlan,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and scores (n, k) for many queries, and for which of them too few were found (n,)."""
    at_positions = _positions(approximate, selection)
    n_reachable = approximate.index.n_vectors if at_positions is None else at_positions.n
    positions, scores = approximate.index.search(
        queries, plan.n_candidates, selection=at_positions, settings=_settings(approximate, plan.knob)
    )
    short = (positions >= 0).sum(axis=1) < min(k, n_reachable)
    rows = positions
    if approximate.row_of is not None:
        rows = np.where(positions >= 0, approximate.row_of[np.maximum(positions, 0)], -1)
    late = _late_rows(view, approximate, selection)
    if approximate.recipe.rescore or late.size:
        rows = np.concatenate([rows, np.broadcast_to(late, (len(queries), late.size))], axis=1)
        rows, scores = view.rescore_batch(queries, np.ascontiguousarray(rows), k)
    return rows[:, :k], scores[:, :k], short


def _late_rows(view: SpaceView, approximate: Approximate, selection: Selection | None) -> IntVector:
    """The rows that came after the index, and may be returned."""
    after = approximate.first_row_after
    if after >= view.n_rows:
        return _NO_ROWS
    if selection is None:
        return np.arange(after, view.n_rows)
    return selection.rows[np.searchsorted(selection.rows, after) :]


def _positions(approximate: Approximate, selection: Selection | None) -> Selection | None:
    """Which positions of the index may be returned; None where all may."""
    if approximate.row_of is None:
        return None if selection is None else selection.first(approximate.index.n_vectors)
    if selection is not None:
        return selection.at(approximate.row_of)
    return approximate.present


def _index_words(
    view: SpaceView, approximate: Approximate, plan: IndexPlan, selection: Selection | None
) -> str:
    recipe = approximate.recipe
    words = f"{recipe.name} over {approximate.index.n_vectors:,} vectors"
    if recipe.knob is not None:
        words += f", {recipe.knob} {plan.knob}"
    if recipe.rescore:
        words += f", {plan.n_candidates:,} candidates compared exactly"
    if selection is not None:
        words += f", {selection.n:,} allowed"
    n_late = _late_rows(view, approximate, selection).size
    return words + (f"; exact scan of {n_late:,} newer vectors" if n_late else "")


def _index_details(view: SpaceView, approximate: Approximate, plan: IndexPlan) -> dict[str, Any]:
    n_after = view.n_rows - approximate.first_row_after
    details: dict[str, Any] = {"n_candidates": plan.n_candidates, "n_after_index": n_after}
    if approximate.recipe.knob is not None:
        details[approximate.recipe.knob] = plan.knob
    return details

