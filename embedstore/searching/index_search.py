"""A search of a view by its FAISS index, planned once for a number of hits and a selection, then run for each query."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from embedstore.indexing.exact import best_of_candidates
from embedstore.indexing.faiss_index import Settings
from embedstore.indexing.one_query import SPARE, OneQuery
from embedstore.indexing.recipes import Family
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import FloatMatrix, FloatVector, IntVector
from embedstore.wording import counted

_ATTEMPTS = 3
_WIDENED = 4
_NO_ROWS = np.empty(0, np.int64)


class Found(NamedTuple):
    """Rows of a view, best first, with their scores, and how they were found."""

    rows: IntVector
    scores: FloatVector
    exact: bool
    plan: str
    details: dict[str, Any]


class FoundBatch(NamedTuple):
    """Rows of a view for many queries, int64 (n, k), -1 where there are fewer, with their scores, float32 (n, k).

    ``apart`` holds what was found for queries that had to be asked by themselves.
    """

    rows: np.ndarray
    scores: FloatMatrix
    exact: bool
    plan: str
    details: dict[str, Any]
    apart: dict[int, Found]

    def with_apart(self, apart: dict[int, Found]) -> FoundBatch:
        """The same where some queries were asked by themselves."""
        for line, found in apart.items():
            n = found.rows.size
            self.rows[line, :n], self.scores[line, :n] = found.rows, found.scores
        if not apart or len(apart) < len(self.rows):
            return self._replace(apart=apart)
        exact = all(one.exact for one in apart.values())
        return self._replace(exact=exact, plan=next(iter(apart.values())).plan, apart=apart)

    def one(self, line: int) -> Found:
        """What was found for one query."""
        apart = self.apart.get(line)
        if apart is not None:
            return apart
        there = self.rows[line] >= 0
        return Found(self.rows[line][there], self.scores[line][there], self.exact, self.plan, self.details)


class IndexSearch:
    """Finds the ``k`` nearest rows of a selection by the index of a view, which keeps it. Threads may share it."""

    def __init__(
        self, view: SpaceView, k: int, selection: Selection | None, knob: int, n_candidates: int, cost: float = 0.0
    ) -> None:
        """knob: the value of the recipe's knob, 0 where it has none; n_candidates: how many the index is to find.

        cost: nanoseconds that it is expected to take.
        """
        self.cost = cost
        approximate = view.approximate
        assert approximate is not None
        self._approximate = approximate  # and not the view, which would then keep itself
        self._n_alive, self._n_after = view.n_alive, view.n_rows - approximate.first_row_after
        self._k = k
        self._n_candidates = n_candidates
        self._at = _positions(approximate, selection)
        self._late = _late_rows(view, approximate, selection)
        self._rescored = self._late.size > 0 or bool(approximate.recipe.rescore)
        self._by_faiss = approximate.refined is not None and not self._late.size
        self._n_expected = min(k, approximate.index.n_vectors if self._at is None else self._at.n)
        self._allowed = "" if selection is None else f", {selection.n:,} allowed"
        self._n_usable = view.n_rows if selection is None else selection.n
        self._knob = knob
        self._settings = self._settings_of(knob)
        self._kept = threading.local()  # holds a OneQuery
        self.words, self.details = self._told(knob)

    def run(self, view: SpaceView, query: FloatVector) -> Found | None:
        """The nearest rows to a prepared query (dim,); None where the index found fewer than there are.

        view: the one that the search was planned for.
        """
        approximate = self._approximate
        words, details, knob = self.words, self.details, self._knob
        asked = getattr(self._kept, "asked", None)
        if asked is None:
            asked = self._kept.asked = self._asked(self._settings)
        for attempt in range(1, _ATTEMPTS + 1):
            found, scores = asked.nearest(query)
            if found.size >= self._n_expected:
                break
            wider = knob * _WIDENED
            if approximate.recipe.family is Family.LISTS:
                wider = min(wider, approximate.index.n_lists)
            if wider <= knob or attempt == _ATTEMPTS:
                return None
            knob = wider
            asked = self._asked(self._settings_of(knob))
            words, details = self._told(knob)
        rows = found if approximate.row_of is None else approximate.row_of[found]
        if self._rescored and not self._by_faiss:
            rows.sort()
            rows, scores = view.scan_rows(
                query, self._k, np.concatenate([rows, self._late]) if self._late.size else rows
            )
        else:
            rows, scores = rows[: self._k].copy(), scores[: self._k].copy()  # what the index will write over
        return Found(rows, scores, False, words, details)

    def run_batch(self, view: SpaceView, queries: FloatMatrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows and scores (n, k) for many prepared queries (n, dim), and which of them are to be asked alone (n,)."""
        approximate = self._approximate
        n_asked = self._n_candidates if self._rescored else min(self._k + SPARE, approximate.index.n_vectors)
        positions, scores = approximate.index.search(queries, n_asked, selection=self._at, settings=self._settings)
        short = (positions >= 0).sum(axis=1) < self._n_expected
        rows = positions
        if approximate.row_of is not None:
            rows = np.where(positions >= 0, approximate.row_of[np.maximum(positions, 0)], -1)
        if self._rescored:
            if self._late.size:
                rows = np.concatenate([rows, np.broadcast_to(self._late, (len(queries), self._late.size))], axis=1)
            rows, scores = view.rescore_batch(queries, np.ascontiguousarray(rows), self._k)
        else:
            if n_asked > self._k:  # as near as the last one may be others that did not come back
                short |= (scores[:, self._k - 1] == scores[:, -1]) & (positions[:, -1] >= 0)
            rows, scores = best_of_candidates(rows, np.where(rows >= 0, scores, -np.inf), self._k)
        return rows[:, : self._k], scores[:, : self._k], short

    def _asked(self, settings: Settings) -> OneQuery:
        """How this thread asks the index for one query."""
        approximate = self._approximate
        if approximate.refined is None:
            return OneQuery(approximate.index, self._n_candidates, settings, self._at)
        k = min(self._k, self._n_candidates)
        return OneQuery(approximate.index, k, settings, self._at, approximate.refined, self._n_candidates)

    def _settings_of(self, knob: int) -> Settings:
        name = self._approximate.recipe.knob
        return self._approximate.settings if name is None else {**self._approximate.settings, name: knob}

    def _told(self, knob: int) -> tuple[str, dict[str, Any]]:
        """What the search says of itself, in words and as a mapping."""
        index, recipe = self._approximate.index, self._approximate.recipe
        details: dict[str, Any] = {
            "n_vectors": self._n_alive, "n_allowed": self._n_usable, "n_candidates": self._n_candidates,
            "n_after_index": self._n_after,
        }  # fmt: skip
        words = f"{recipe.name} over {index.n_vectors:,} vectors"
        if recipe.knob is not None:
            words += f", {recipe.knob} {knob}"
            details[recipe.knob] = knob
        if recipe.rescore:
            words += f", {self._n_candidates:,} candidates compared exactly"
        words += self._allowed
        if self._late.size:
            words += f"; exact scan of {counted(self._late.size, 'newer vector')}"
        return words, details


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
