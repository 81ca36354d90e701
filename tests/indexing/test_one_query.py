"""One query after another by one thread: what FAISS compares exactly by itself is what is compared without it."""

from dataclasses import replace

import numpy as np
import pytest
from shared import needs_gpu

from embedstore.indexing import one_query
from embedstore.indexing.cachefile import Pages, page_sums
from embedstore.indexing.costs import IndexCosts, ScanCosts
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_index import FaissIndex, build_index
from embedstore.indexing.recipes import Family, all_recipes
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import Metric
from embedstore.searching.index_search import IndexSearch

N, DIM, COPIES = 1200, 16, 24
REFINED = [
    pytest.param(recipe, metric, id=f"{recipe.name}-{metric.value}")
    for recipe in all_recipes().values() for metric in recipe.metrics
    if recipe.rescore and recipe.family in (Family.LISTS, Family.GRAPH, Family.CODES) and not needs_gpu(recipe)
]  # fmt: skip


def searched(recipe, metric):
    """A view of clustered vectors, of which two hundred are there many times, with an index by a recipe."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((30, DIM))
    matrix = centres[random.integers(0, 30, N)] + 0.4 * random.standard_normal((N, DIM))
    matrix[: 8 * COPIES] = np.repeat(matrix[:8], COPIES, axis=0)
    matrix = prepared(matrix[random.permutation(N)].astype(np.float32), metric)
    built, shape = build_index(matrix, recipe, metric)
    costs = IndexCosts(0.0, 0.0, 1.0, ScanCosts.guessed(DIM))
    approximate = Approximate.of_rows(FaissIndex(built, shape), matrix, dict(recipe.search), costs)
    numbers = np.arange(N)
    return SpaceView(
        space_id=1, metric=metric, dim=DIM, change=1, last_seq=N, base=matrix, delta=np.empty((0, DIM), np.float32),
        seqs=numbers + 1, record_ids=numbers, alive=None, n_alive=N, approximate=approximate,
    )  # fmt: skip


@pytest.mark.parametrize("paged", [False, True], ids=["at once", "page by page"])
@pytest.mark.parametrize(("recipe", "metric"), REFINED)
def test_what_faiss_compares_exactly_by_itself_is_what_is_compared_afterwards(recipe, metric, paged):
    view = searched(recipe, metric)
    if paged:  # as of vectors that stay on the disk, whose pages are checked before they are read
        content = view.base.reshape(-1).view(np.uint8)
        pages = Pages("file", content, page_sums(content))
        refined = one_query.refined_by(view.approximate.index, view.base, pages)
        view = replace(view, approximate=replace(view.approximate, refined=refined), pages=pages)
    assert view.approximate.refined is not None
    assert (view.approximate.refined.searched is None) is paged
    apart = replace(view, approximate=replace(view.approximate, refined=None))
    half = Selection(np.random.default_rng(1).random(N) < 0.5)
    knob = 0 if recipe.knob is None else 4 * recipe.search[recipe.knob]
    for selection in (None, half):
        for k in (1, 10, 40):
            n_candidates = recipe.n_candidates(k)
            by_faiss = IndexSearch(view, k, selection, knob, n_candidates)
            afterwards = IndexSearch(apart, k, selection, knob, n_candidates)
            for query in (*view.base[:60], *view.base[:60] + np.float32(0.05)):
                ours, theirs = by_faiss.run(view, query), afterwards.run(apart, query)
                assert ours.rows.tolist() == theirs.rows.tolist()
                np.testing.assert_array_equal(ours.scores, theirs.scores)


def test_vectors_as_near_as_the_last_hit_are_ranked_by_their_row_however_many_there_are(monkeypatch):
    recipe = all_recipes()["hnsw-sq8"]
    view = searched(recipe, Metric.COSINE)
    wider = []
    asked_wider = one_query.OneQuery._wider
    monkeypatch.setattr(one_query.OneQuery, "_wider", lambda self: wider.append(1) or asked_wider(self))
    for query in view.base[:200]:
        copies = np.flatnonzero((view.base == query).all(axis=1))
        found = IndexSearch(view, 10, None, 512, 60).run(view, query)
        if copies.size == COPIES:
            assert found.rows.tolist() == copies[:10].tolist()
    assert wider


def test_without_vectors_that_are_not_its_own_faiss_leaves_the_comparison_to_the_store(monkeypatch):
    recipe = all_recipes()["ivf-sq8"]
    view = searched(recipe, Metric.COSINE)
    faiss = view.approximate.index.faiss
    monkeypatch.delattr(faiss, "MaybeOwnedVectorUInt8")
    assert one_query.refined_by(view.approximate.index, view.base) is None


def test_the_rows_of_a_run_cost_less_than_as_many_that_lie_apart():
    costs = ScanCosts(scan_row=50.0, gather_row=200.0)
    n = 10_000
    runs = Selection(np.arange(n) % 1000 < 500)
    apart = Selection(np.arange(n) % 2 == 0)
    few = Selection(np.arange(n) % 100 == 0)
    assert (runs.n_runs, apart.n_runs, few.n_runs) == (10, 5000, 100)
    assert Selection(np.array([True, True, False, True])).n_runs == 2
    assert Selection(np.empty(0, np.bool_)).n_runs == 0
    assert costs.of_rows(runs) == 5000 * 50 + 40 * 150
    assert costs.of_rows(apart) == 5000 * 200
    assert costs.of_rows(few) == 100 * 200
