"""Finds the fastest recipe and setting that reach a wanted recall, by measuring them on a space's own vectors.

Vectors drawn at random are held out: the candidates are built without them and asked for their neighbours, as a new
query would ask. A setting counts only if its recall is reached with a margin of three standard errors.
"""

from __future__ import annotations

import datetime
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.indexing.costs import IndexCosts, ScanCosts
from embedstore.indexing.faiss_index import FaissIndex, Settings, build_index
from embedstore.indexing.gpus import n_gpus
from embedstore.indexing.recipes import Placement, Recipe, all_recipes
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import FloatMatrix, Metric
from embedstore.optional import load_faiss
from embedstore.searching.index_search import IndexSearch

MAX_ROWS = 500_000
_N_QUERIES = 1_000
_N_TIMED = 100
_MARGIN = 3.0
"""Standard errors between the measured recall and the one that is promised."""
_GROWTH = 1.5
_SHIFT = 0.2
_FEWEST = 500
_SAMPLED = 2_000

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One measured setting: recall@k with its lower bound, and the median time of a search."""

    recipe: str
    settings: dict[str, int]
    recall: float
    recall_at_least: float
    search_microseconds: float


@dataclass(frozen=True, slots=True, repr=False)
class TuningReport:
    """What was asked, what was measured, and what was chosen of it."""

    recipe: str
    settings: dict[str, int]
    wanted_recall: float
    recall: float
    recall_at_least: float
    search_microseconds: float
    k: int
    n_queries: int
    n_vectors: int
    n_measured: int
    seed: int
    seconds: float
    measured_at: str
    curve: list[Point]
    mean: list[float]
    scatter: float

    def __repr__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return (
            f"{self.recipe}{settings and f' with {settings}'}: recall@{self.k} {self.recall:.4f}, at least"
            f" {self.recall_at_least:.4f} ({self.wanted_recall} asked for), {self.search_microseconds:,.0f} µs"
        )

    def to_json(self) -> dict[str, Any]:
        """As the store keeps it."""
        return asdict(self)


def candidates(metric: Metric, names: Sequence[str] | None, n_vectors: int) -> list[Recipe]:
    """The recipes worth measuring: those named, or all that serve the metric and can be built here."""
    has_gpu = bool(n_gpus(load_faiss()))
    chosen = []
    for recipe in all_recipes().values():
        if names is not None and recipe.name not in names:
            continue
        serves = metric in recipe.metrics and (recipe.placement is Placement.CPU or has_gpu)
        if serves and recipe.min_vectors <= n_vectors and (names is not None or not recipe.mapped):
            chosen.append(recipe)
    return chosen


def tune(
    view: SpaceView,
    *,
    recall: float,
    k: int = 10,
    names: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress = lambda line: None,
) -> TuningReport:
    """Measure the candidates on the live vectors of a view, and choose. Raises InvalidInput where there are too few."""
    if view.n_alive < _FEWEST:
        raise InvalidInput(
            f"the space holds {view.n_alive:,} vectors; tuning measures on {_FEWEST:,} or more. With so few, 'flat' is"
            " fastest and exact"
        )
    started = time.perf_counter()
    random = np.random.default_rng(seed)
    matrix, queries = _split(view, random)
    if k >= len(matrix):
        raise InvalidInput(f"k is {k}; it must be less than the {len(matrix):,} vectors that are measured")
    truth = _truth(matrix, queries, view.metric, k)
    points = [_exact_point(matrix, queries, view.metric, k)]
    progress(f"flat: {points[0].search_microseconds:,.0f} µs")
    for recipe in candidates(view.metric, names, len(matrix)):
        if recipe.exact:
            continue
        for point in _measured(recipe, matrix, queries, truth, view.metric, k, recall):
            points.append(point)
            progress(_line(point))
    best = min(
        (point for point in points if point.recall_at_least >= recall), key=lambda point: point.search_microseconds
    )
    mean, scatter = _spread(matrix)
    return TuningReport(
        recipe=best.recipe, settings=best.settings, wanted_recall=recall, recall=best.recall,
        recall_at_least=best.recall_at_least, search_microseconds=best.search_microseconds, k=k, n_queries=len(queries),
        n_vectors=view.n_alive, n_measured=len(matrix), seed=seed, seconds=round(time.perf_counter() - started, 1),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), curve=points,
        mean=[float(np.float32(number)) for number in mean], scatter=scatter,
    )  # fmt: skip


def _line(point: Point) -> str:
    settings = ", ".join(f"{name} {value}" for name, value in point.settings.items())
    return f"{point.recipe} ({settings}): recall {point.recall:.4f}, {point.search_microseconds:,.0f} µs"


def n_held_out(n_vectors: int) -> int:
    """How many of so many vectors are asked for rather than built on."""
    return min(_N_QUERIES, min(n_vectors, MAX_ROWS) // 5)


def _split(view: SpaceView, random: np.random.Generator) -> tuple[FloatMatrix, FloatMatrix]:
    """The rows to build on, and those held out to ask for, both prepared."""
    rows = np.arange(view.n_rows) if view.alive is None else np.flatnonzero(view.alive)
    if rows.size > MAX_ROWS:
        rows = np.sort(random.choice(rows, MAX_ROWS, replace=False))
    n_held = n_held_out(rows.size)
    held = random.choice(rows.size, n_held, replace=False)
    kept = np.ones(rows.size, np.bool_)
    kept[held] = False
    return view.gather(rows[kept]), view.gather(rows[np.sort(held)])


def _truth(matrix: FloatMatrix, queries: FloatMatrix, metric: Metric, k: int) -> np.ndarray:
    """The scores of the true k-th neighbours, (n_queries,): whatever scores as much is as near."""
    _, scores = SpaceView.of_matrix(matrix, metric).scan_batch(queries, k, None)
    return scores[:, -1]


def _recalls(scores: np.ndarray, kth: np.ndarray, k: int) -> np.ndarray:
    """The recall of each query: how many of its hits (n, k) score as much as its true k-th neighbour."""
    slack = 1e-5 * np.abs(kth)
    recalls: np.ndarray = (scores[:, :k] >= (kth - slack)[:, None]).sum(axis=1) / k
    return recalls


def _exact_point(matrix: FloatMatrix, queries: FloatMatrix, metric: Metric, k: int) -> Point:
    view = SpaceView.of_matrix(matrix, metric)
    return Point("flat", {}, 1.0, 1.0, _median_us(lambda query: view.scan(query, k, None), queries))


def _measured(
    recipe: Recipe,
    matrix: FloatMatrix,
    queries: FloatMatrix,
    kth: np.ndarray,
    metric: Metric,
    k: int,
    wanted: float,
) -> Iterator[Point]:
    """The settings of a recipe from the fastest on, until one has more than enough recall."""
    built, shape = build_index(matrix, recipe, metric)
    index = FaissIndex(built, shape)
    costs = IndexCosts(0.0, 0.0, 1.0, ScanCosts.guessed(matrix.shape[1]))
    approximate = Approximate.of_rows(index, matrix, dict(recipe.search), costs)
    view = replace(SpaceView.of_matrix(matrix, metric), approximate=approximate)
    for settings in _grid(recipe, index.n_lists, k):
        knob = 0 if recipe.knob is None else settings[recipe.knob]
        search = IndexSearch(view, k, None, knob, recipe.n_candidates(k))

        def ask(query: np.ndarray, search: IndexSearch = search) -> np.ndarray:
            found = search.run(view, query)
            scores = np.full(k, -np.inf, np.float32)
            if found is not None:
                scores[: found.scores.size] = found.scores
            return scores

        recalls = _recalls(np.stack([ask(query) for query in queries]), kth, k)
        error = recalls.std(ddof=1) / math.sqrt(len(recalls))
        at_least = float(recalls.mean() - _MARGIN * max(error, 1 / (k * len(recalls))))
        chosen = {} if recipe.knob is None else {recipe.knob: knob}
        microseconds = _median_us(ask, queries[:_N_TIMED])
        yield Point(recipe.name, chosen, round(float(recalls.mean()), 5), round(at_least, 5), round(microseconds, 1))
        if at_least >= max(wanted, 0.995):
            return


def _grid(recipe: Recipe, n_lists: int, k: int) -> Iterator[Settings]:
    """The settings worth trying, from the least effort on."""
    if recipe.knob is None:
        yield dict(recipe.search)
        return
    values = recipe.useful.get(recipe.knob, (recipe.search[recipe.knob],))
    if recipe.knob == "efSearch":  # at least as many are looked at as are wanted
        values = tuple(value for value in values if value >= recipe.n_candidates(k)) or (recipe.n_candidates(k),)
    for value in values:
        if recipe.knob == "nprobe" and value > n_lists:
            return
        yield {**recipe.search, recipe.knob: value}


def _median_us(call: Callable[[np.ndarray], object], queries: FloatMatrix) -> float:
    samples = []
    for query in queries[:_N_TIMED]:
        started = time.perf_counter_ns()
        call(query)
        samples.append(time.perf_counter_ns() - started)
    return statistics.median(samples) / 1000


def _spread(matrix: FloatMatrix) -> tuple[np.ndarray, float]:
    """The mean of rows (dim,), and the mean squared distance to it, from some rows spread over all."""
    some = matrix[:: max(1, len(matrix) // _SAMPLED)].astype(np.float64)
    mean = some.mean(axis=0)
    return mean, float(np.square(some - mean).sum(axis=1).mean())


def why_tune_again(report: dict[str, Any], view: SpaceView) -> str | None:
    """What has changed so much since a space was tuned that its recall should be measured anew; None if nothing has."""
    then, now = report["n_vectors"], view.n_alive
    if now > _GROWTH * then or now < then / _GROWTH:
        return f"it had {then:,} vectors when it was tuned, and has {now:,} now"
    rows = np.arange(view.n_rows) if view.alive is None else np.flatnonzero(view.alive)
    some = view.gather(rows[:: max(1, rows.size // _SAMPLED)]).astype(np.float64)
    mean = np.array(report["mean"])
    shift = float(np.linalg.norm(some.mean(axis=0) - mean))
    # Where all vectors are nearly the same, their mean is known no better than float32 tells it.
    spread = math.sqrt(max(report["scatter"], 1e-8 * float(np.dot(mean, mean)), 1e-300))
    if shift > _SHIFT * spread:
        return f"its vectors have drifted since it was tuned: their mean by {shift / spread:.2f} of their spread"
    return None
