"""Spaces of several others side by side: what they measure, and that they follow what is written into any of them."""

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput

N = 120


def drawn(n=N, seed=0):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 6)).astype(np.float32), generator.standard_normal((n, 4)).astype(np.float32)


def filled(store, n=N, metric="cosine"):
    """Records with vectors in the space ``vector``; every third has none in ``picture``."""
    first, second = drawn(n)
    collection = store.collection("things", encoder="none", metric=metric)
    collection.add([{"key": str(i), "vector": first[i]} for i in range(2)])
    collection.add_space("picture", metric=metric)
    collection.upsert([
        {"key": str(i), "vector": first[i], "n": i, **({} if i % 3 == 2 else {"vectors": {"picture": second[i]}})}
        for i in range(n)
    ])  # fmt: skip
    return collection, first, second


def cosines(query, vectors):
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1) * np.linalg.norm(query.astype(np.float64))
    return vectors.astype(np.float64) @ query.astype(np.float64) / lengths


def has_both(i):
    return i % 3 != 2


def test_similarity_is_the_weighted_mean_of_those_of_the_parts(any_store):
    collection, first, second = filled(any_store)
    space = collection.add_space("both", reduce="product", of=["vector", "picture"], weights=[3, 1])
    assert (space.dim, space.metric.value) == (10, "cosine")
    held = [i for i in range(N) if has_both(i)]
    expected = 0.75 * cosines(first[7], first[held]) + 0.25 * cosines(second[7], second[held])
    hits = space["7"].nearest(5, include_sources=True)
    best = np.argsort(-expected)[:5]
    assert hits.keys == [str(held[place]) for place in best]
    np.testing.assert_allclose([hit.score for hit in hits], expected[best], atol=1e-5)
    told = space.describe()
    assert told["made_of"] == ["vector", "picture"] and told["n_vectors"] == len(held)
    assert told["encoder"] == "product of vector and picture (10 numbers)"
    assert [(part["space"], part["weight"]) for part in told["parts"]] == [("vector", 0.75), ("picture", 0.25)]
    assert told["parts"][0]["fidelity"]["recall"] > told["parts"][1]["fidelity"]["recall"]
    assert any_store.verify().problems == []


def test_distances_are_added_in_units_of_their_own(store):
    collection, first, second = filled(store, metric="euclidean")
    collection.upsert([
        {"key": str(i), "vector": first[i], "n": i, "vectors": {"picture": 1000 * second[i]}} for i in range(N)
    ])  # fmt: skip
    space = collection.add_space("both", reduce="product", of=["vector", "picture"])
    spreads = [2 * one.astype(np.float64).var(axis=0, ddof=1).sum() for one in (first, second)]
    squared = [((one[7] - one) ** 2).sum(axis=1) / spread for one, spread in zip((first, second), spreads, strict=True)]
    expected = np.sqrt((squared[0] + squared[1]) / 2)
    found = [space["7"].distance(space[str(i)]) for i in range(N)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert space.metric.value == "euclidean"


def test_it_follows_what_is_written_into_any_of_its_parts(any_store):
    collection, first, second = filled(any_store)
    collection.add_space("both", reduce="product", of=["vector", "picture"])
    new = drawn(seed=5)

    def expected(a, b):
        parts = [one / np.linalg.norm(one) * np.sqrt(0.5) for one in (a, b)]
        return np.concatenate(parts)

    def held(key):
        return collection.vectors([key], space="both")[0]

    collection.upsert([{"key": "4", "vector": new[0][4], "n": 4}])  # one part alone
    np.testing.assert_allclose(held("4"), expected(new[0][4], second[4]), atol=1e-6)
    collection.upsert([{"key": "6", "vectors": {"picture": new[1][6]}, "n": 6}])  # the other
    np.testing.assert_allclose(held("6"), expected(first[6], new[1][6]), atol=1e-6)
    collection.upsert([{"key": "5", "vectors": {"picture": new[1][5]}, "n": 5}])  # what it lacked
    np.testing.assert_allclose(held("5"), expected(first[5], new[1][5]), atol=1e-6)
    collection.add([
        {"key": "whole", "vector": new[0][0], "vectors": {"picture": new[1][0]}}, {"key": "half", "vector": new[0][1]},
    ])  # fmt: skip
    np.testing.assert_allclose(held("whole"), expected(new[0][0], new[1][0]), atol=1e-6)
    with pytest.raises(embedstore.RecordNotFound):
        held("half")
    collection.delete(["7", "8"])
    n_both = sum(map(has_both, range(N))) + 1
    assert collection.space("both").describe()["n_vectors"] == n_both + 1 - 1
    assert any_store.verify().problems == []


def test_a_part_that_comes_to_nothing_takes_the_product_with_it(any_store):
    collection, first, second = filled(any_store)
    collection.add_space("short", reduce="truncate", dim=2)
    collection.add_space("both", reduce="product", of=["short", "picture"])
    n_before = collection.space("both").describe()["n_vectors"]
    collection.upsert([{"key": "3", "vector": [0.0, 0.0, 1.0, 0.0, 0.0, 0.0], "n": 3}])
    assert collection.space("both").describe()["n_vectors"] == n_before - 1
    collection.upsert([{"key": "3", "vector": [1.0, 0.0, 1.0, 0.0, 0.0, 0.0], "n": 3}])
    assert collection.space("both").describe()["n_vectors"] == n_before
    assert any_store.verify().problems == []


def test_spaces_can_be_made_of_a_product(store):
    collection, first, _ = filled(store)
    collection.add_space("both", reduce="product", of=["vector", "picture"])
    collection.add_space("small", reduce="pca", dim=3, of="both")
    collection.upsert([{"key": "0", "vector": first[50], "n": 0}])
    reference = collection.space("small").root
    assert reference.name == "both"
    with pytest.raises(InvalidInput, match="others are made: small"):
        collection.drop_space("both")
    with pytest.raises(InvalidInput, match="others are made: both"):
        collection.drop_space("picture")
    assert store.verify().problems == []


def test_a_query_is_encoded_into_every_part(store):
    words = store.collection("words", encoder="letters")
    words.add([{"key": text, "text": text} for text in ("abc", "abcd", "deed", "cabbage", "facade", "ebb", "dab")])
    words.add_space("other", encoder="letters:3")
    space = words.add_space("both", reduce="product", of=["text", "other"], weights=[1, 2])
    np.testing.assert_allclose(space.encode("deed").array, words.vectors(["deed"], space="both")[0], atol=1e-6)
    assert words.search("deed", k=1, space="both").keys == ["deed"]
    assert [hits.keys for hits in words.search_batch(["deed", "ebb"], k=1, space="both")] == [["deed"], ["ebb"]]
    mixed = space.encode({"text": "abc", "other": "ebb"})
    halves = words.vectors(["abc"], space="both")[0], words.vectors(["ebb"], space="both")[0]
    n = words.space("text").dim
    np.testing.assert_allclose(mixed.array, np.concatenate([halves[0][:n], halves[1][n:]]), atol=1e-6)
    given = words.search({"text": words.space("text")["abc"], "other": "abc"}, k=1, space="both")
    assert given.keys == ["abc"]
    with pytest.raises(InvalidInput, match="the query says nothing of other; it must of each of text, other, and"):
        space.encode({"text": "abc"})


def test_a_product_with_vectors_from_elsewhere_is_asked_with_vectors(store):
    collection, first, second = filled(store)
    collection.add_space("both", reduce="product", of=["vector", "picture"])
    for query in ("a text", {"other": [1.0]}):
        with pytest.raises(InvalidInput, match="say what to look for in each, as {'vector': ..., 'picture': ...}"):
            collection.search(query, space="both")
    for query, told in (
        ({"vector": first[9]}, "says nothing of picture"),
        ({"vector": first[9], "picture": second[9], "x": 1}, "speaks of x, too"),
        ({"vector": first[9], "picture": [1.0, 2.0]}, "for 'picture' the query has 2 numbers; the space holds 4"),
    ):
        with pytest.raises(InvalidInput, match=told):
            collection.search(query, space="both")
    hits = collection.search({"vector": first[9], "picture": second[9].tolist()}, k=1, space="both")
    assert hits.keys == ["9"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_export_brings_it_back(store, tmp_path, suffix):
    collection, first, second = filled(store)
    collection.add_space("both", reduce="product", of=["vector", "picture"], weights=[1, 5])
    path = str(tmp_path / f"out{suffix}")
    collection.export(path)
    other = store.collection("other")
    other.import_(path)
    keys = [str(i) for i in range(N) if has_both(i)]
    np.testing.assert_array_equal(other.vectors(keys, space="both"), collection.vectors(keys, space="both"))
    other.upsert([{"key": "3", "vector": first[50], "n": 3}])
    assert other.space("both").describe()["made_of"] == ["vector", "picture"]
    assert store.verify().problems == []


def test_a_part_may_get_another_name(store):
    words = store.collection("words", encoder="letters")
    words.add([{"key": text, "text": text} for text in ("abc", "abcd", "deed", "cabbage", "facade", "ebb", "dab")])
    words.add_space("other", encoder="letters:3")
    words.add_space("both", reduce="product", of=["text", "other"])
    words.reencode("letters:2", keep=True)
    assert words.space("both").describe()["made_of"] == ["text.old", "other"]
    words.add([{"key": "bead", "text": "bead"}])
    mixed = words.space("both").encode({"text.old": "bead", "other": "bead"})
    np.testing.assert_allclose(mixed.array, words.vectors(["bead"], space="both")[0], atol=1e-6)
    assert store.verify().problems == []


def test_a_repaired_store_has_it(store, tmp_path):
    from embedstore.maintenance.salvage import repair

    collection, first, _ = filled(store)
    collection.add_space("both", reduce="product", of=["vector", "picture"])
    store.close()
    assert repair(store.path, tmp_path / "mended").lost == []
    with embedstore.open(tmp_path / "mended") as mended:
        again = mended.collection("things")
        again.upsert([{"key": "4", "vector": first[50], "n": 4}])
        assert again.space("both").describe()["made_of"] == ["vector", "picture"] and mended.verify().problems == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"of": "vector"}, "a product is of two different spaces at least"),
        ({"of": ["vector"]}, "a product is of two different spaces at least"),
        ({"of": ["vector", "vector"]}, "a product is of two different spaces at least"),
        ({}, "a product is of two different spaces at least"),
        ({"of": ["vector", "nothing"]}, "nothing"),
        ({"of": ["vector", "picture"], "weights": [1]}, "give each of the 2 spaces one"),
        ({"of": ["vector", "picture"], "weights": [1, -1]}, "give each of the 2 spaces one"),
        ({"of": ["vector", "picture"], "weights": [1, float("nan")]}, "give each of the 2 spaces one"),
        ({"of": ["vector", "picture"], "dim": 3}, "leave dim out"),
        ({"of": ["vector", "picture"], "label": "n"}, "takes no label"),
    ],
)
def test_what_makes_no_product_gets_one_line(store, options, told):
    collection, _, _ = filled(store)
    with pytest.raises((InvalidInput, embedstore.SpaceNotFound), match=told):
        collection.add_space("both", reduce="product", **options)
    assert [space.name for space in collection.spaces()] == ["vector", "picture"]


def test_other_methods_take_one_space_and_no_weights(store):
    collection, _, _ = filled(store)
    with pytest.raises(InvalidInput, match="a product is of several"):
        collection.add_space("small", reduce="pca", of=["vector", "picture"])
    with pytest.raises(InvalidInput, match="'pca' takes no weights"):
        collection.add_space("small", reduce="pca", weights=[1.0])
    with pytest.raises(InvalidInput, match="say how"):
        collection.add_space("small", weights=[1.0])


def test_a_damaged_vector_of_a_part_is_not_carried_on(store):
    collection, first, _ = filled(store)
    collection.add_space("both", reduce="product", of=["vector", "picture"])
    picture = collection.space("picture").space_id
    with store.database.write() as transaction:
        transaction.run("UPDATE vectors SET vec = zeroblob(16) WHERE space_id = :space", {"space": picture})
    with pytest.raises(embedstore.StoreDamaged):
        collection.upsert([{"key": "4", "vector": first[50], "n": 4}])
