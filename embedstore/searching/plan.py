"""Chooses how the nearest vectors are found: an exact scan, a scan of the allowed rows, or a FAISS index.

A filter never makes the answer shorter: where the index finds fewer than there are, the search widens and in the end
compares every allowed row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embedstore.cores import usable_cores
from embedstore.errors import DeviceUnavailable
from embedstore.indexing.costs import ScanCosts, lists_for_hits, margin, raised
from embedstore.indexing.exact import best_of_candidates
from embedstore.indexing.kernels import can_batch
from embedstore.indexing.recipes import Family
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import FloatMatrix, FloatVector
from embedstore.searching.byte_scan import asked_of_bytes, scan_bytes
from embedstore.searching.index_search import Found, FoundBatch, IndexSearch
from embedstore.wording import counted

MAX_EFFORT = 4_096
_MOST_KEPT = 64
_MOST_ALONE, _PRODUCT_SCANS = 16, 8
"""How many queries at most may pay alone; as how many scans of one query a product of few takes on one core."""


def nearest(view: SpaceView, query: FloatVector, k: int, selection: Selection | None) -> Found:
    """The ``k`` nearest rows of a selection (None: of all) to a prepared query; all of them where fewer are there."""
    n_usable = view.n_rows if selection is None else selection.n
    k = min(k, n_usable)
    by_gpu = None if view.gpu is None or k == 0 else _by_gpu(view, query[None, :], k, selection)
    by_index = None if by_gpu is not None or k == 0 else _index_search(view, k, selection)
    if view.byte_copy is not None and by_gpu is None and k:
        by_bytes = _by_bytes(view, query, k, selection, by_index)
        if by_bytes is not None:
            return by_bytes
    if by_index is not None:
        found = by_index.run(view, query)
        if found is not None:
            return found
    details: dict[str, Any] = {"n_vectors": view.n_alive, "n_allowed": n_usable}
    if k == 0:
        return Found(np.empty(0, np.int64), np.empty(0, np.float32), True, "nothing to search", details)
    if by_gpu is not None:
        return Found(by_gpu[0][0], by_gpu[1][0], False, by_gpu[2], details)
    if by_index is not None:
        details["widened"] = "to an exact scan"
    if selection is not None and _gathering_pays(view, selection):
        rows, scores = view.scan_rows(query, k, selection.rows)
        words = "vector" if n_usable == view.n_alive else "allowed vector"
        return Found(rows, scores, True, f"exact scan of {counted(n_usable, words)}", details)
    rows, scores = view.scan(query, k, selection)
    return Found(rows, scores, True, _scan_plan(view, selection), details)


def nearest_batch(view: SpaceView, queries: FloatMatrix, k: int, selection: Selection | None) -> FoundBatch:
    """As ``nearest`` for each prepared query (n, dim), together where FAISS can."""
    n_usable = view.n_rows if selection is None else selection.n
    k = min(k, n_usable)
    details: dict[str, Any] = {"n_vectors": view.n_alive, "n_allowed": n_usable}
    if not k or not can_batch():
        return _each_alone(view, queries, k, selection, details)
    by_gpu = None if view.gpu is None else _by_gpu(view, queries, k, selection)
    if by_gpu is not None:
        rows, scores, words = by_gpu
        return FoundBatch(rows, scores, False, f"{words}, {len(queries):,} queries at once", details, {})
    by_index = _index_search(view, k, selection)
    if by_index is None:
        if _pays_alone(view, len(queries), k, selection):
            return _each_alone(view, queries, k, selection, details)
        rows, scores = view.scan_batch(queries, k, selection)
        plan = f"{_scan_plan(view, selection)}, {len(queries):,} queries at once"
        return FoundBatch(rows, scores, True, plan, details, {})
    rows, scores, short = by_index.run_batch(view, queries)
    plan = f"{by_index.words}, {len(queries):,} queries at once"
    apart = {line: nearest(view, queries[line], k, selection) for line in np.flatnonzero(short).tolist()}
    return FoundBatch(rows, scores, False, plan, by_index.details, {}).with_apart(apart)


def _each_alone(
    view: SpaceView, queries: FloatMatrix, k: int, selection: Selection | None, details: dict[str, Any]
) -> FoundBatch:
    apart = {line: nearest(view, query, k, selection) for line, query in enumerate(queries)}
    rows, scores = np.full((len(queries), k), -1), np.full((len(queries), k), -np.inf, np.float32)
    return FoundBatch(rows, scores, True, _scan_plan(view, selection), details, {}).with_apart(apart)


def _pays_alone(view: SpaceView, n_queries: int, k: int, selection: Selection | None) -> bool:
    """Whether queries are compared sooner by a byte a number, one after another, than by a product of all with all."""
    if view.byte_copy is None or n_queries > _MOST_ALONE:
        return False
    costs = _scan_costs(view)
    asked = asked_of_bytes(view, costs, k, selection, counted=False)
    product = _exact_cost(view, costs, selection) * max(_PRODUCT_SCANS / usable_cores(), 1)
    return asked is not None and n_queries * asked.cost < product


def _by_gpu(
    view: SpaceView, queries: FloatMatrix, k: int, selection: Selection | None
) -> tuple[np.ndarray, FloatMatrix, str] | None:
    """What a GPU finds for queries (n, dim), compared exactly and joined by the newer rows; and how, in words.

    Gives rows and scores, both (n, k). None where the CPU is to answer: under every filter, where few are asked and the
    GPU is worth it for many alone, for more hits than it gives, where it found too few, or failed and the CPU may.
    """
    gpu, approximate = view.gpu, view.approximate
    assert gpu is not None
    n_candidates = gpu.n_candidates(k)
    if selection is not None or gpu.given_up or len(queries) < gpu.fewest_queries or n_candidates > gpu.most_hits:
        return None
    settings = {} if approximate is None else dict(approximate.settings)
    if approximate is not None and approximate.recipe.family is Family.LISTS:
        settings["nprobe"] = lists_for_hits(settings["nprobe"], k, approximate.for_k)
    try:
        rows = gpu.candidates(queries, n_candidates, settings)
    except DeviceUnavailable as error:
        if gpu.required:
            raise
        gpu.give_up(error)
        return None
    n_held = view.base.shape[0] if approximate is None else approximate.first_row_after
    if approximate is not None and approximate.row_of is not None:
        rows = np.where(rows >= 0, approximate.row_of[np.maximum(rows, 0)], -1)
    found, scores = view.rescore_batch(queries, np.ascontiguousarray(rows), k)
    if n_held < view.n_rows:
        late, of_late = view.scan_batch(queries, k, None, first=n_held)
        found, scores = best_of_candidates(
            np.concatenate([found, late], axis=1),
            np.concatenate([np.where(found >= 0, scores, -np.inf), np.where(late >= 0, of_late, -np.inf)], axis=1), k,
        )  # fmt: skip
    return None if (found < 0).any() else (found, scores, gpu.plan(n_held, n_candidates))


def _scan_plan(view: SpaceView, selection: Selection | None) -> str:
    note = "" if selection is None or selection.n == view.n_alive else f", {selection.n:,} allowed"
    return f"exact scan of {counted(view.n_alive, 'vector')}{note}"


def _scan_costs(view: SpaceView) -> ScanCosts:
    return ScanCosts.guessed(view.dim) if view.approximate is None else view.approximate.costs.scans


def _gathering_pays(view: SpaceView, selection: Selection) -> bool:
    costs = _scan_costs(view)
    return costs.of_rows(selection) < view.n_rows * costs.scan_row


def _exact_cost(view: SpaceView, costs: ScanCosts, selection: Selection | None) -> float:
    """Nanoseconds of comparing every row, or every allowed one."""
    cost = view.n_rows * costs.scan_row
    return cost if selection is None else min(cost, costs.of_rows(selection))


def _by_bytes(
    view: SpaceView, query: FloatVector, k: int, selection: Selection | None, by_index: IndexSearch | None
) -> Found | None:
    """What is found by the copy in bytes; None where another way is cheaper, or it does not tell enough."""
    costs = _scan_costs(view)
    otherwise = _exact_cost(view, costs, selection) if by_index is None else by_index.cost
    asked = asked_of_bytes(view, costs, k, selection)
    if asked is None or asked.cost >= otherwise:
        return None
    found = scan_bytes(view, query, k, selection, asked)
    if found is None:
        return None
    n_usable = view.n_rows if selection is None else selection.n
    details = {"n_vectors": view.n_alive, "n_allowed": n_usable, "n_candidates": found.n_compared}
    return Found(found.rows, found.scores, True, f"{_scan_plan(view, selection)} by a byte a number", details)


def _index_search(view: SpaceView, k: int, selection: Selection | None) -> IndexSearch | None:
    """How the index is searched, where that is cheaper than comparing rows; None where it is not."""
    if view.approximate is None:
        return None
    if selection is not None and not selection.lasting:
        return _planned(view, view.approximate, k, selection)
    try:
        return view.searches[k, selection]  # type: ignore[no-any-return]
    except KeyError:
        if len(view.searches) >= _MOST_KEPT:
            view.searches.clear()
        made = view.searches[k, selection] = _planned(view, view.approximate, k, selection)
        return made


def _planned(view: SpaceView, approximate: Approximate, k: int, selection: Selection | None) -> IndexSearch | None:
    n_usable = view.n_rows if selection is None else selection.n
    exact_cost = _exact_cost(view, _scan_costs(view), selection)
    recipe = approximate.recipe
    fraction = n_usable / view.n_rows
    n_candidates = recipe.n_candidates(k)
    knob = 0
    if recipe.knob is None and recipe.rescore:
        n_candidates = int(n_candidates * margin(fraction))
    elif recipe.knob is not None:
        knob = approximate.settings[recipe.knob]
        if selection is not None:
            knob = raised(approximate.settings, recipe.family, fraction, k)
        if recipe.family is Family.LISTS:
            knob = min(lists_for_hits(knob, k, approximate.for_k), approximate.index.n_lists)
        elif (knob := max(knob, k)) > MAX_EFFORT:
            return None
    n_candidates = min(n_candidates, approximate.index.n_vectors)
    cost = index_cost(view, approximate, knob, n_candidates, filtered=selection is not None)
    return IndexSearch(view, k, selection, knob, n_candidates, cost) if cost < exact_cost else None


def index_cost(
    view: SpaceView, approximate: Approximate, knob: int, n_candidates: int, *, filtered: bool
) -> float:
    """Nanoseconds of a search by the index, and of what is compared exactly afterwards."""
    n_compared = n_candidates * bool(approximate.recipe.rescore) + view.n_rows - approximate.first_row_after
    return approximate.costs.of(knob, filtered=filtered) + n_compared * approximate.costs.scans.gather_row
