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
    return request.param


@pytest.mark.parametrize("metric", Metric)
@pytest.mark.parametrize(("n", "dim", "n_queries", "k"), [
    (1, 3, 1, 1), (5, 8, 7, 9), (1_024, 16, 3, 20), (1_025, 16, 3, 1_024), (9_300, 12, 40, 30), (9_217, 2, 700, 5),
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


def test_rows_that_get_better_and_better_are_all_found():
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
    assert np.allclose(moved.centre, far.mean(axis=0), atol=0.01)
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
