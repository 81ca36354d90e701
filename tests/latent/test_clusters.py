"""Clusters: found as others find them, numbered by size, kept in metadata and filtered by."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import embedstore

SIZES = (120, 80, 40)


def filled(store, metric="euclidean"):
    drawn = np.random.default_rng(0)
    centres = np.array([[8.0, 0, 0, 0], [0, 8.0, 0, 0], [0, 0, 8.0, 0]])
    true = np.repeat([0, 1, 2], SIZES)
    vectors = (centres[true] + drawn.standard_normal((len(true), 4))).astype(np.float32)
    collection = store.collection("points", encoder="none", metric=metric)
    collection.add([{"key": str(i), "vector": one, "true": int(true[i])} for i, one in enumerate(vectors)])
    return collection, true


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("options", [{"k": 3}, {"method": "gmm"}, {"method": "gmm", "k": 3}, {"method": "hdbscan"}])
def test_clusters_that_are_apart_are_found_and_numbered_by_size(store, metric, options):
    collection, true = filled(store, metric)
    found = collection.cluster(**options)
    labels = dict(zip(found.keys, found.labels.tolist(), strict=True))
    mine = np.array([labels[str(i)] for i in range(240)])
    # Three parts of a sphere are no Gaussians, so that the BIC may find a fourth there.
    curved = metric == "cosine" and options == {"method": "gmm"}
    assert adjusted_rand_score(true[mine >= 0], mine[mine >= 0]) > (0.85 if curved else 0.97)
    assert sum(found.sizes) == (mine >= 0).sum() > 220 and found.sizes == sorted(found.sizes, reverse=True)
    assert [int((mine == one).sum()) for one in range(len(found.sizes))] == found.sizes
    assert found.silhouette > 0.5 and not found.sampled
    if options.get("method") == "gmm":
        assert min(found.bic, key=found.bic.get) == 3 or curved
        np.testing.assert_allclose(found.shares.sum(axis=1), 1, atol=1e-6)
        assert (found.shares.argmax(axis=1) == found.labels).all()


def test_labels_are_kept_and_filtered_by(any_store):
    collection, true = filled(any_store)
    collection.cluster(method="gmm", store_as="group")
    assert collection.count("group.label = 0") == pytest.approx(120, abs=2)
    assert collection.count("group.label = 2 AND group.share > 0.9") == pytest.approx(40, abs=4)
    assert len(collection.get("0").metadata["group"]["shares"]) == 3
    collection.cluster(k=2, store_as="group")
    assert "shares" not in collection.get("0").metadata["group"]
    keys = collection.cluster(k=2, where={"group.label": 0}, store_as="group").keys
    assert collection.count({"group": {"$exists": True}}) == len(keys) < 240
    with pytest.raises(embedstore.InvalidInput, match="a field 'true' that holds something else"):
        collection.cluster(k=2, store_as="true")
    assert any_store.verify().problems == []


def test_records_beyond_the_sample_are_assigned_too(store):
    collection, true = filled(store)
    for method, k in (("kmeans", 3), ("gmm", 3), ("hdbscan", None)):
        found = collection.cluster(method=method, k=k, sample=100)
        assert found.sampled and len(found.keys) == 240
        labels = dict(zip(found.keys, found.labels.tolist(), strict=True))
        mine = np.array([labels[str(i)] for i in range(240)])
        assert adjusted_rand_score(true[mine >= 0], mine[mine >= 0]) > 0.9
    assert len(collection.cluster(k=2, where="true = 1").keys) == 80


def test_shares_stand_by_their_labels_where_parts_are_empty(store):
    collection = store.collection("two", encoder="none", metric="euclidean")
    collection.add([{"key": str(i), "vector": [float(i % 4 == 0), 0.0]} for i in range(40)])
    found = collection.cluster(method="gmm", k=4)
    assert found.sizes == [30, 10] and found.shares.shape == (40, 4)
    assert (found.shares[np.arange(40), found.labels] == found.shares.max(axis=1)).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "kmeans needs the number of clusters"),
        ({"method": "x"}, "method is 'x'"), ({"k": 0}, "k is 0"), ({"k": 241}, "240 vectors"),
        ({"method": "hdbscan", "k": 3}, "finds the number of clusters itself"),
        ({"k": 2, "where": "true = 9"}, "there are 0 vectors"),
        ({"k": 20, "sample": 10}, "there are 10 vectors to fit to, fewer than 20"),
        ({"method": "hdbscan", "least": 300}, "there are 240 vectors to fit to, fewer than 300"),
        ({"k": 2, "seed": 2**33}, "it must be below"),
        ({"k": 2, "space": "absent"}, "no space 'absent'"), ({"k": 2, "store_as": "_x"}, "no underscore"),
    ],
)  # fmt: skip
def test_bad_requests_get_one_line(store, options, told):
    with pytest.raises(embedstore.EmbedstoreError, match=told):
        filled(store)[0].cluster(**options)
