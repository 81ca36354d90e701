"""Directions: fitted to groups or pairs, measured on what was held out, kept, and computed with."""

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput, RecordNotFound, SpaceMismatch

TRUE = np.array([3.0, 0, 0, 0, 0, 0, 0, 0])


def filled(store, metric="euclidean", n=300):
    drawn = np.random.default_rng(1)
    labels = drawn.integers(0, 2, n)
    vectors = (drawn.standard_normal((n, 8)) * [1, 5, 1, 1, 1, 1, 1, 1] + labels[:, None] * TRUE).astype(np.float32)
    collection = store.collection("people", encoder="none", metric=metric)
    collection.add([
        {"key": str(i), "vector": vectors[i], "smiles": bool(labels[i]), "n": i} for i in range(n)
    ])  # fmt: skip
    return collection, vectors, labels


def test_the_difference_of_means_is_just_that(any_store):
    collection, vectors, labels = filled(any_store)
    space = collection.space()
    found = space.fit_direction("smile", positive="smiles = true", negative="smiles = false")
    expected = vectors[labels == 1].mean(axis=0) - vectors[labels == 0].mean(axis=0)
    np.testing.assert_allclose(found.array, expected, atol=1e-5)
    assert found.about["method"] == "mean" and found.about["n_positive"] == int(labels.sum())
    assert found.about["length"] == pytest.approx(np.linalg.norm(expected), abs=1e-5)
    along = vectors @ (expected / np.linalg.norm(expected))
    within = np.sqrt(np.concatenate([along[labels == one] - along[labels == one].mean() for one in (0, 1)]).var())
    strength = (along[labels == 1].mean() - along[labels == 0].mean()) / within
    assert found.about["strength"] == pytest.approx(strength, rel=0.01)
    assert any_store.verify().problems == []


def test_a_regression_tells_apart_better_than_the_means_where_another_dimension_is_loud(store):
    space = filled(store)[0].space()
    by_means = space.fit_direction("means", positive="smiles = true", negative="smiles = false")
    by_model = space.fit_direction("model", positive="smiles = true", negative="smiles = false", method="logistic")
    assert by_model.about["auroc"] > 0.95 and by_model.about["accuracy"] > 0.85
    assert by_model.about["auroc"] >= by_means.about["auroc"] - 0.01
    assert abs(by_model.cosine(space.vector(TRUE))) > 0.95
    normal = by_model.array / np.linalg.norm(by_model.array)
    assert by_model.norm() == pytest.approx(float(by_means.array @ normal), rel=1e-4)


def test_numbers_that_never_vary_do_not_swallow_a_regression(store):
    collection, vectors, labels = filled(store)
    wide = store.collection("wide", encoder="none", metric="cosine")
    still = np.repeat([[1e-33, 0.0, 1e-9]], len(vectors), axis=0).astype(np.float32)
    wide.add([
        {"key": str(i), "vector": np.concatenate([one, still[i]]), "smiles": bool(labels[i])}
        for i, one in enumerate(vectors)
    ])  # fmt: skip
    groups = {"positive": "smiles = true", "negative": "smiles = false"}
    by_model = wide.space().fit_direction("model", **groups, method="logistic")
    assert by_model.norm() > 0.3 * wide.space().fit_direction("means", **groups).norm()


def test_what_means_nothing_is_not_told_apart(store):
    collection, _, _ = filled(store)
    found = collection.space().fit_direction("none", positive="n < 150", negative="n >= 150", method="logistic")
    assert 0.35 < found.about["auroc"] < 0.65


def test_pairs_give_what_their_differences_have_in_common(store):
    drawn = np.random.default_rng(2)
    start = drawn.standard_normal((40, 8)) * 4
    collection = store.collection("pairs", encoder="none", metric="euclidean")
    collection.add([{"key": f"a{i}", "vector": one} for i, one in enumerate(start)])
    way = np.array([0, 0, 2.0, 0, 0, 0, 0, 1.0])
    collection.add([
        {"key": f"b{i}", "vector": one + way + drawn.standard_normal(8) * 0.2} for i, one in enumerate(start)
    ])  # fmt: skip
    pairs = [(f"a{i}", f"b{i}") for i in range(40)]
    for method in (None, "mean", "pairs"):
        found = collection.space().fit_direction("way", pairs=pairs, method=method)
        np.testing.assert_allclose(found.array, way, atol=0.15)
        assert found.about["method"] == (method or "pairs") and found.about["n_positive"] == 40


def test_directions_are_kept_listed_replaced_and_forgotten(any_store):
    collection, _, _ = filled(any_store)
    space = collection.space()
    first = space.fit_direction("smile", positive="smiles = true", negative="smiles = false")
    space.fit_direction("odd", positive=["1", "3", "5"], negative=["2", "4"])
    assert [one.name for one in space.directions()] == ["odd", "smile"]
    again = collection.space().direction("smile")
    np.testing.assert_array_equal(again.array, first.array)
    assert again.about == first.about
    replaced = space.fit_direction("smile", positive="smiles = false", negative="smiles = true")
    np.testing.assert_allclose(space.direction("smile").array, -first.array, atol=1e-5)
    assert replaced.name == "smile"
    space.forget_direction("odd")
    assert [one.name for one in space.directions()] == ["smile"]
    with pytest.raises(RecordNotFound, match="no direction 'odd'; it has: smile"):
        space.direction("odd")
    with pytest.raises(RecordNotFound, match="no direction 'odd'"):
        space.forget_direction("odd")
    with pytest.raises(RecordNotFound, match="no direction ''"):
        space.direction("")


def test_a_direction_is_computed_with_as_a_vector(store):
    collection, vectors, _ = filled(store)
    space = collection.space()
    way = space.fit_direction("smile", positive="smiles = true", negative="smiles = false")
    moved = space["7"] + 2 * way
    np.testing.assert_allclose(moved.array, vectors[7] + 2 * way.array, rtol=1e-6)
    assert "7" not in moved.nearest(3).keys and way.name == "smile" and "Direction('smile'" in repr(way)
    assert space["7"].reject(way).project(way).norm() == pytest.approx(0.0, abs=1e-5)
    other = store.collection("other", encoder="none")
    other.add([{"key": "a", "vector": np.ones(8)}])
    with pytest.raises(SpaceMismatch, match="'other/vector' and 'people/vector' cannot be added"):
        other.space()["a"] + way


def test_cosine_spaces_are_compared_at_length_one(store):
    collection, vectors, labels = filled(store, metric="cosine")
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = unit[labels == 1].mean(axis=0) - unit[labels == 0].mean(axis=0)
    space = collection.space()
    for groups in (
        {"positive": "smiles = true", "negative": "smiles = false"},
        {name: [str(i) for i in np.flatnonzero(labels == one)] for name, one in (("positive", 1), ("negative", 0))},
    ):
        np.testing.assert_allclose(space.fit_direction("smile", **groups).array, expected, atol=1e-5)


def test_directions_go_with_their_space_through_export_and_backup(store, tmp_path):
    collection, _, _ = filled(store)
    collection.space().fit_direction("smile", positive="smiles = true", negative="smiles = false")
    held = collection.space().direction("smile")
    collection.export(str(tmp_path / "out.jsonl"))
    other = store.collection("other")
    other.import_(str(tmp_path / "out.jsonl"))
    np.testing.assert_array_equal(other.space().direction("smile").array, held.array)
    there = store.collection("there")  # a collection that exists keeps its own, and takes what it lacks
    there.import_(str(tmp_path / "out.jsonl"))
    there.space().forget_direction("smile")
    there.import_(str(tmp_path / "out.jsonl"))
    np.testing.assert_array_equal(there.space().direction("smile").array, held.array)
    there.drop()
    store.backup(tmp_path / "b")
    embedstore.restore(tmp_path / "b", tmp_path / "restored")
    with embedstore.open(tmp_path / "restored") as again:
        np.testing.assert_array_equal(again.collection("people").space().direction("smile").array, held.array)
    collection.drop()
    with store.reading() as transaction:
        assert len(transaction.all("SELECT * FROM fitted")) == 1
    assert store.verify().problems == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"positive": "smiles = true"}, "needs two groups"),
        ({"pairs": [("1", "2")], "positive": "n = 1", "negative": "n = 2"}, "pairs of keys, not both"),
        ({"pairs": [("1", "2")]}, "there is 1 pair; 2 or more"),
        ({"pairs": [("1", "2"), ("3",)]}, "a pair is two keys"),
        ({"positive": "n = 1", "negative": "n > 1"}, "the positive group has 1 records"),
        ({"positive": "n < 5", "negative": []}, "the negative group has 0 records"),
        ({"positive": "n < 5", "negative": "n < 5"}, "the same mean"),
        ({"positive": "n < 5", "negative": "n > 5", "method": "pairs"}, "needs pairs of keys"),
        ({"positive": "n < 5", "negative": "n > 5", "method": "x"}, "method is 'x'"),
        ({"positive": ["1", "absent"], "negative": "n > 5"}, "no record of 'people' has the key 'absent'"),
        ({"positive": "absent = 1", "negative": "n > 5"}, "absent"),
    ],
)
def test_bad_requests_get_one_line_and_keep_nothing(store, options, told):
    space = filled(store)[0].space()
    with pytest.raises(embedstore.EmbedstoreError, match=told) as raised:
        space.fit_direction("new", **options)
    assert "\n" not in str(raised.value) and space.directions() == []


def test_names_are_checked(store):
    with pytest.raises(InvalidInput, match="cannot be used"):
        filled(store)[0].space().fit_direction("", positive="n < 5", negative="n > 5")
