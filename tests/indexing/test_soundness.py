"""Vectors of unlike sizes: an index of codes finds them, or is not asked."""

import logging

import numpy as np
import pytest

from embedstore.indexing.fitting import Shape, shape_for, training_rows
from embedstore.indexing.recipes import Family, all_recipes
from embedstore.model import Metric
from embedstore.searching import plan

N, DIM = 6000, 32


def vectors(n=N, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((50, DIM))
    return (centres[random.integers(0, 50, n)] + 0.4 * random.standard_normal((n, DIM))).astype(np.float32)


def filled(store, rows, recipe, metric):
    collection = store.collection("c", encoder="none", recipe=recipe, metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    collection.index()
    return collection


def recall(collection, rows, queries, metric, k=10):
    right = []
    for query in queries:
        scores = rows @ query if metric == "dot" else -np.linalg.norm(rows - query, axis=1)
        hits = collection.search(query, k)
        kth = np.sort(scores)[-k]
        right.append(np.mean([scores[int(key)] >= kth - 1e-4 * abs(kth) for key in hits.keys]))
    return float(np.mean(right))


@pytest.fixture
def index_is_used(monkeypatch):
    cost = plan.index_cost
    monkeypatch.setattr(plan, "index_cost", lambda *given, **named: min(cost(*given, **named) / 1e9, 1e9))


@pytest.mark.parametrize("recipe", ["ivf-sq8", "ivf-disk", "ivf-rabitq-refine", "ivf-pq-refine", "flat-fp16"])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1e3])
def test_short_and_long_vectors_are_found_by_inner_product_as_others_are(store, index_is_used, recipe, size):
    rows = vectors() * np.float32(size)
    collection = filled(store, rows, recipe, "dot")
    queries = rows[:40] * np.float32(1.1)
    assert recipe in collection.search(queries[0], 10).plan
    usual = store.collection("usual", encoder="none", recipe=recipe, metric="dot")
    usual.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
    usual.index()
    expected = recall(usual, vectors(), vectors()[:40] * np.float32(1.1), "dot")
    assert recall(collection, rows, queries, "dot") >= expected - 0.1


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
@pytest.mark.parametrize("recipe", ["hnsw-sq8", "ivf-sq8", "ivf-pq-refine"])
def test_one_vector_that_is_far_out_leaves_the_others_as_they_are(store, index_is_used, recipe, metric):
    rows = vectors()
    queries = rows[100:140] + np.float32(0.05)
    collection = filled(store, rows, recipe, metric)
    before = recall(collection, rows, queries, metric)
    rows[17] *= 1e6
    collection.upsert([{"key": "17", "vector": rows[17]}])
    collection.index()
    assert recipe in collection.search(queries[0], 10).plan
    assert recall(collection, rows, queries, metric) >= before - 0.1
    assert collection.search(rows[17] * np.float32(1.0001), 1).keys == ["17"]


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_numbers_beyond_half_precision_are_found_by_it(store, index_is_used, metric):
    rows = vectors()
    rows[::10] *= np.float32(2e5)
    collection = filled(store, rows, "flat-fp16", metric)
    assert recall(collection, rows, rows[:60] * np.float32(1.001), metric) > 0.95


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_vectors_that_half_precision_cannot_tell_are_compared_one_by_one(store, index_is_used, metric, caplog):
    rows = vectors()
    rows[::2] *= np.float32(1e9)
    with caplog.at_level(logging.WARNING):
        collection = filled(store, rows, "flat-fp16", metric)
    assert "so every vector is compared instead; choose another recipe" in caplog.text
    hits = collection.search(rows[1], 10)
    assert hits.exact and hits.plan == "exact scan of 6,000 vectors"
    assert recall(collection, rows, rows[:60], metric) == 1.0
    batch = collection.search_batch(rows[:3], 5)
    assert [hits.exact for hits in batch] == [True] * 3


def test_only_what_needs_it_is_scaled():
    rows, recipes = vectors(), all_recipes()
    for name, recipe in recipes.items():
        for metric in recipe.metrics:
            lists_by_product = recipe.rescore and recipe.family is Family.LISTS and metric is Metric.DOT
            assert shape_for(rows, recipe, metric).exponent == (-3 if lists_by_product else 0), name
    short = shape_for(rows * np.float32(1e-3), recipes["ivf-sq8"], Metric.DOT)
    assert short.exponent == 7
    np.testing.assert_array_equal(short.fitted(rows[:2]), rows[:2] * 128)
    by_distance = Shape(recipes["flat-fp16"], Metric.EUCLIDEAN, DIM, exponent=-4)
    np.testing.assert_array_equal(by_distance.fitted(rows[:2]), rows[:2] / 16)


def test_training_leaves_out_a_few_far_vectors_and_never_many():
    rows = vectors()
    assert training_rows(rows, Metric.EUCLIDEAN, 0) is rows
    rows[3] += 1000
    kept = training_rows(rows, Metric.EUCLIDEAN, 0)
    assert len(kept) == N - 1 and kept.max() < 100
    rows[:600] += 1000
    assert training_rows(rows, Metric.EUCLIDEAN, 0) is rows
    assert training_rows(rows, Metric.COSINE, 0) is rows


@pytest.mark.parametrize("recipe", ["ivf", "ivf-sq8"])
def test_an_index_that_finds_little_by_default_says_so(store, caplog, recipe):
    caplog.set_level(logging.INFO, logger="embedstore")
    without_clusters = np.random.default_rng(0).standard_normal((20_000, 64)).astype(np.float32)
    filled(store, without_clusters, recipe, "euclidean")
    assert "of its ten nearest vectors by default; tuning finds a recipe and settings" in caplog.text
    caplog.clear()
    usual = store.collection("usual", encoder="none", recipe=recipe)
    usual.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
    usual.index()
    assert "by default" not in caplog.text
