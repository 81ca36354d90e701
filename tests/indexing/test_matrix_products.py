"""Claims about products of matrices: the best rows of many queries, and how far their scores may be off."""

import numpy as np
import pytest

from embedstore.indexing import products
from embedstore.indexing.products import best_of_all, extent_of, rounding
from embedstore.indexing.space_view import SpaceView
from embedstore.model import Metric

pytest.importorskip("faiss")


def exact(matrix, queries, metric):
    """Inner products, or minus squared distances, in double precision (n, m)."""
    wide, asked = matrix.astype(np.float64), queries.astype(np.float64)
    if metric is Metric.EUCLIDEAN:
        return -np.square(asked[:, None, :] - wide).sum(axis=2)
    return asked @ wide.T


def rows(n, dim, seed=0, *, offset=0.0, apart=1.0):
    random = np.random.default_rng(seed)
    return (offset + apart * random.standard_normal((n, dim))).astype(np.float32)


@pytest.fixture(params=["numpy", "faiss"])
def by(request, monkeypatch):
    monkeypatch.setattr(products, "_FEWEST", 10**9 if request.param == "faiss" else 1)
    monkeypatch.setattr(products, "_LEAST_WORK", 0)
    monkeypatch.setattr(products, "_HITS_A_NUMBER", 10**9)
    return request.param


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize(("n", "dim", "n_queries", "k"), [
    (1, 3, 1, 1), (5, 8, 7, 9), (30_000, 4, 3, 9_000),
    (1_024, 16, 3, 20), (1_025, 16, 3, 1_024), (9_300, 12, 40, 30), (9_217, 2, 700, 5),
])  # fmt: skip
def test_the_best_rows_come_best_first(by, metric, n, dim, n_queries, k):
    matrix, queries = rows(n, dim), rows(n_queries, dim, 1)
    if metric is Metric.COSINE:
        matrix, queries = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (matrix, queries))
    scores, found = best_of_all(matrix, queries, k, metric, extent_of([matrix], metric))
    truth = exact(matrix, queries, metric)
    width = min(k, n)
    assert found.shape == scores.shape == (n_queries, width) and found.dtype == np.int64
    assert scores.dtype == np.float32
    best = -np.sort(-truth, axis=1)[:, :width]
    off = rounding(queries, extent_of([matrix], metric), metric)[:, None]
    assert (np.abs(scores - best) <= off).all()
    assert (np.abs(np.take_along_axis(truth, found, 1) - scores) <= off).all()
    assert all(len(set(line)) == width for line in found.tolist())
    assert (np.diff(scores, axis=1) <= 0).all()


def one_after_another(n, dim):
    """Queries and rows of which a product leaves out all but the first number, where it adds one after the other."""
    small = np.sqrt(0.99 * 2.0**-24)
    line = np.full(dim, small, np.float32)
    line[0] = 1
    return np.tile(line, (n, 1))


@pytest.mark.parametrize("n_queries", [20, 400])
@pytest.mark.parametrize("dim", [16, 64, 384, 1000])
@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
def test_the_bound_holds_where_every_step_is_rounded_the_same_way(by, metric, n_queries, dim):
    matrix, queries = one_after_another(2_000, dim), one_after_another(n_queries, dim)
    if metric is Metric.EUCLIDEAN:
        matrix *= -1
    extent = extent_of([matrix], Metric.DOT)
    scores, _ = best_of_all(matrix, queries, 5, metric, extent)
    assert (np.abs(scores - exact(matrix[:1], queries, metric)) <= rounding(queries, extent, metric)[:, None]).all()


def test_a_batch_finds_what_a_product_would_lose():
    """The best row is a little better by very many small numbers, of which single precision keeps none."""
    matrix = one_after_another(2_000, 384)
    matrix[:, 1:] = 0
    matrix[:, 0] += np.float32(2e-5)
    matrix[1_500] = one_after_another(1, 384)[0]
    matrix[1_500, 1:] *= 2
    queries = one_after_another(20, 384)
    view = SpaceView.of_matrix(matrix, Metric.DOT)
    alone, _ = view.scan(queries[0], 3, None)
    assert alone[0] == 1_500
    together, _ = view.scan_batch(queries, 3, None)
    assert (together == alone).all()


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
def test_scans_of_all_rows_and_of_some_add_up_in_the_same_order(metric):
    for dim in range(1, 130):
        matrix, query = rows(300, dim), rows(1, dim, 1)[0]
        view = SpaceView.of_matrix(matrix, metric)
        whole, some = view.scan(query, 300, None), view.scan_rows(query, 300, np.arange(300))
        assert np.array_equal(whole[0], some[0]) and np.array_equal(whole[1], some[1]), dim
        together = view.scan_batch(query[None, :], 300, None)
        assert np.array_equal(together[0][0], whole[0]) and np.array_equal(together[1][0], whole[1]), dim


def test_rows_that_get_better_and_better_are_all_found(by):
    matrix = np.linspace(0, 1, 20_000, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    _, found = best_of_all(matrix, np.ones((10, 8), np.float32), 4, Metric.DOT, extent_of([matrix], Metric.DOT))
    assert (found == [19_999, 19_998, 19_997, 19_996]).all()


@pytest.mark.parametrize("metric", [Metric.DOT, Metric.EUCLIDEAN])
@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_no_score_is_farther_off_than_is_told(by, metric, offset):
    matrix, queries = rows(3_000, 100, offset=offset, apart=0.1), rows(50, 100, 1, offset=offset, apart=0.1)
    extent = extent_of([matrix], metric)
    scores, found = best_of_all(matrix, queries, 50, metric, extent)
    truth = np.take_along_axis(exact(matrix, queries, metric), found, 1)
    assert (np.abs(truth - scores) <= rounding(queries, extent, metric)[:, None]).all()


def test_vectors_far_from_zero_are_moved_and_others_are_not():
    near, far = rows(500, 6), rows(500, 6, offset=100.0)
    assert extent_of([near], Metric.EUCLIDEAN).centre is None
    assert extent_of([far], Metric.DOT).centre is None
    moved = extent_of([far[:200], far[200:]], Metric.EUCLIDEAN)
    assert np.allclose(moved.centre, far.mean(axis=0), atol=0.3)
    assert moved.longest == pytest.approx(np.linalg.norm(far - moved.centre, axis=1).max(), rel=1e-5)
    assert extent_of([far[:0]], Metric.EUCLIDEAN) == (None, 0.0)
    farther = moved.with_rows(rows(5, 6, 1, offset=-100.0), Metric.EUCLIDEAN)
    assert farther.longest > 400 and farther.centre is moved.centre
    assert farther.with_rows(far, Metric.EUCLIDEAN) == farther


@pytest.mark.parametrize("n_queries", [3, 40, 2_500])
@pytest.mark.parametrize("places", ["far from zero", "in two places"])
def test_a_batch_ranks_near_vectors_far_from_zero(n_queries, places):
    """Products of what is not moved lose the distances; those of two places far apart are lost in either case."""
    matrix, queries = rows(2_000, 64, offset=300.0, apart=0.1), rows(n_queries, 64, 1, offset=300.0, apart=0.1)
    if places == "in two places":
        matrix[::2] *= -1
        queries[::2] *= -1
    found, scores = SpaceView.of_matrix(matrix, Metric.EUCLIDEAN).scan_batch(queries, 10, None)
    looked = np.linspace(0, n_queries - 1, min(n_queries, 60)).astype(int)
    truth = exact(matrix, queries[looked], Metric.EUCLIDEAN)
    assert np.array_equal(found[looked], np.argsort(-truth, axis=1)[:, :10])
    assert np.allclose(scores[looked], -np.sqrt(-np.take_along_axis(truth, found[looked], 1)), rtol=1e-5)
