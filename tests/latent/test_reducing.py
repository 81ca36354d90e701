"""Spaces that are made of others: what they hold, how they follow what is written, and that nothing of them is lost."""

import threading

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput, InvalidRecord
from embedstore.latent import moments
from embedstore.transforms.affine import normalized

DIM = 12


def points(n=200, seed=0):
    """Vectors of 12 numbers with a strong shape, and their class."""
    drawn = np.random.default_rng(seed)
    classes = drawn.integers(0, 3, n)
    spread = drawn.standard_normal((n, DIM)) * np.linspace(2.0, 0.2, DIM)
    centres = np.random.default_rng(99).standard_normal((3, DIM)) * 2
    return (spread + centres[classes] + 1.0).astype(np.float32), classes


def filled(store, n=200, metric="euclidean", **options):
    vectors, classes = points(n)
    collection = store.collection("points", encoder="none", metric=metric, **options)
    collection.add([
        {"key": str(i), "vector": vectors[i], "class": f"c{classes[i]}", "n": i} for i in range(n)
    ])  # fmt: skip
    return collection, vectors, classes


def keys(n=200):
    return [str(i) for i in range(n)]


def test_principal_components_are_those_of_another_implementation(any_store):
    from sklearn.decomposition import PCA

    collection, vectors, _ = filled(any_store)
    space = collection.add_space("pca", reduce="pca", dim=5)
    reference = PCA(5, svd_solver="full").fit(vectors)
    np.testing.assert_allclose(collection.vectors(keys(), space="pca"), reference.transform(vectors), atol=1e-4)
    told = space.describe()
    assert (told["made_of"], told["method"], told["n_fitted"], told["dim"]) == ("vector", "pca", 200, 5)
    assert told["explained_variance"] == pytest.approx(reference.explained_variance_ratio_.sum(), abs=1e-5)
    assert told["encoder"] == "pca of vector (5 numbers)" and told["metric"] == "euclidean"
    assert any_store.verify().problems == []


def test_a_large_offset_costs_principal_components_no_digits():
    from sklearn.decomposition import PCA

    vectors = points(500)[0] + np.float32(1000.0)
    found, _ = moments.pca(moments.moments_of([(None, vectors[:100]), (None, vectors[100:])]), 4, normalize=False)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    reference = PCA(4, svd_solver="full").fit(centred)
    np.testing.assert_allclose(np.abs(found.matrix), np.abs(reference.components_), atol=2e-4)


def test_what_is_written_later_is_placed_and_what_changes_follows(any_store):
    from sklearn.decomposition import PCA

    collection, vectors, _ = filled(any_store)
    collection.add_space("small", reduce="pca", dim=3)
    before = collection.vectors(["5"], space="small")
    later = points(210, seed=4)[0]
    collection.add([{"key": "late", "vector": later[200]}])
    collection.upsert([{"key": "7", "vector": later[201], "n": 7}])
    collection.update([{"key": "5", "colour": "red"}])
    collection.delete(["6"])
    np.testing.assert_array_equal(collection.vectors(["5"], space="small"), before)
    assert collection.space("small").describe()["n_vectors"] == 200
    reference = PCA(3, svd_solver="full").fit(vectors).transform(later[[201, 200]])
    np.testing.assert_allclose(collection.vectors(["7", "late"], space="small"), reference, atol=1e-4)
    query = collection.space("small")["late"]
    assert query.nearest(1, include_sources=True).keys == ["late"]
    assert collection.search(query, k=3, where="n < 50").keys[0] != "6"
    assert any_store.verify().problems == []


def test_texts_are_searched_and_encoded_in_a_space_that_is_made_of_theirs(store, letters_calls):
    texts = ["a bad cab", "bead by bead", "added decade", "cabbage", "deed", "facade", "an ace", "dab", "ebb", "faded"]
    words = store.collection("words", encoder="letters")
    words.add([{"key": text, "text": text} for text in texts])
    letters_calls.clear()
    space = words.add_space("two", reduce="pca", dim=2)
    assert letters_calls == []  # vectors are made of vectors
    words.add([{"key": "baggage", "text": "baggage"}])
    assert letters_calls == [1]
    for text in ("deed", "baggage"):
        np.testing.assert_allclose(space.encode(text).array, space[text].array, atol=1e-5)
        assert words.search(text, k=1, space="two").keys == [text]
    with pytest.raises(InvalidRecord, match="'two' are made of other spaces"):
        words.upsert([{"key": "deed", "text": "deed", "vectors": {"two": [1.0, 2.0]}}])


def test_a_space_of_given_vectors_says_that_it_has_no_encoder(store):
    collection, _, _ = filled(store)
    collection.add_space("small", reduce="random", dim=3)
    with pytest.raises(InvalidInput, match="'vector', which holds vectors computed elsewhere"):
        collection.search("text", space="small")
    with pytest.raises(InvalidInput, match="'vector', which holds vectors computed elsewhere"):
        collection.space("small")["3"].decode()


def test_pictures_are_decoded_by_the_way_back(store, square_model):
    from vae.made import squares

    pictures, _ = squares(80)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": picture} for i, picture in enumerate(pictures)])
    dim = shapes.space().dim
    shapes.add_space("turned", reduce="pca", dim=dim)
    shapes.add_space("mapped", reduce="random", dim=2)
    here = np.asarray(shapes.space()["9"].decode(), np.int16)
    there = np.asarray(shapes.space("turned")["9"].decode(), np.int16)
    assert np.abs(here - there).max() <= 1
    assert shapes.search(pictures[9], k=1, space="turned").keys == ["9"]
    with pytest.raises(InvalidInput, match="nothing leads back from this space"):
        shapes.space("mapped")["9"].decode()


def test_distances_are_taken_over_as_a_decoder_sees_them(store, square_model):
    from vae.made import squares

    pictures, _ = squares(120)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([{"key": str(i), "image": picture} for i, picture in enumerate(pictures)])
    space = shapes.add_space("seen", reduce="pullback")
    point = shapes.space()["5"]
    decode = shapes.encoder().model.decode_flat
    seen, told = shapes.encoder("seen"), []
    for dimension in range(len(point)):
        moved = point.array.copy()
        moved[dimension] += 0.05
        pixels = np.linalg.norm(decode(moved[None]) - decode(point.array[None]))
        told.append((pixels, np.linalg.norm(seen.transform([moved[None]]) - seen.transform([point.array[None]]))))
    assert np.corrcoef(np.log(np.array(told).T))[0, 1] > 0.5
    given_back = np.asarray(space["5"].decode(), np.int16) - np.asarray(point.decode(), np.int16)
    assert np.abs(given_back).max() <= 2
    with pytest.raises(InvalidInput, match="'pullback' needs a space of a trained autoencoder|holds vectors computed"):
        filled(store)[0].add_space("seen", reduce="pullback")


def test_whitened_dimensions_vary_by_one_and_do_not_vary_together(store):
    collection, _, _ = filled(store)
    collection.add_space("white", reduce="whiten", dim=6)
    np.testing.assert_allclose(np.cov(collection.vectors(keys(), space="white").T), np.eye(6), atol=1e-4)


def test_cosine_spaces_are_reduced_as_they_are_compared(store):
    collection, vectors, _ = filled(store, metric="cosine")
    collection.add_space("first", reduce="truncate", dim=4)
    np.testing.assert_allclose(collection.vectors(keys(), space="first"), normalized(vectors)[:, :4], atol=1e-6)
    collection.add_space("flat", reduce="all-but-the-top")
    unit = normalized(vectors).astype(np.float64)
    centred = unit - unit.mean(axis=0)
    top = np.linalg.svd(centred, full_matrices=False)[2][:1]
    np.testing.assert_allclose(collection.vectors(keys(), space="flat"), centred - centred @ top.T @ top, atol=1e-5)


def test_a_record_whose_vector_comes_to_nothing_is_kept_and_has_none_there(store):
    collection, _, _ = filled(store, metric="cosine")
    collection.add_space("first", reduce="truncate", dim=2)
    collection.add([{"key": "edge", "vector": [0.0] * 11 + [1.0]}])
    assert collection.get("edge").key == "edge" and collection.space("first").describe()["n_vectors"] == 200
    assert collection.fill_spaces().updated == 0 and store.verify().problems == []


def test_discriminants_tell_classes_apart_as_another_implementation_does(store):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    collection, vectors, classes = filled(store)
    collection.add_space("told", reduce="lda", label="class")
    found = collection.vectors(keys(), space="told")
    reference = LinearDiscriminantAnalysis(solver="eigen", n_components=2).fit_transform(vectors, classes)
    assert found.shape == (200, 2)
    for mine, theirs in zip(found.T, reference.T, strict=True):
        assert abs(np.corrcoef(mine, theirs)[0, 1]) > 0.99999


def test_what_is_erased_cannot_be_told_by_a_linear_model_any_more(store):
    from sklearn.linear_model import LogisticRegression

    collection, vectors, classes = filled(store, n=600)
    probe = LogisticRegression(C=1e4, max_iter=5000)
    assert probe.fit(vectors, classes).score(vectors, classes) > 0.9
    collection.add_space("without", reduce="erase", label="class")
    left = collection.vectors(keys(600), space="without")
    majority = np.bincount(classes).max() / 600
    assert probe.fit(left, classes).score(left, classes) == pytest.approx(majority, abs=0.01)
    for one in range(3):  # class means are equal, which is what makes it so
        np.testing.assert_allclose(left[classes == one].mean(axis=0), left.mean(axis=0), atol=1e-4)
    assert np.square(left - vectors).sum() < 0.75 * np.square(vectors - vectors.mean(axis=0)).sum()


@pytest.mark.parametrize("method", ["umap", "tsne", "pacmap"])
def test_a_map_keeps_neighbours_together_and_places_those_that_come_later(store, method):
    collection, vectors, classes = filled(store)
    space = collection.add_space("map", reduce=method, where="n < 150")
    places = collection.vectors(keys(), space="map")
    assert places.shape == (200, 2) and space.metric.value == "euclidean"
    assert space.describe()["fidelity"]["trustworthiness"] > 0.85
    centres = np.stack([places[:150][classes[:150] == one].mean(axis=0) for one in range(3)])
    nearest = np.linalg.norm(places[150:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == classes[150:]).mean() > 0.9
    collection.add([{"key": "again", "vector": vectors[3]}])
    np.testing.assert_allclose(space["again"].array, places[3], atol=0.5 * places.std())
    other = collection.add_space("map2", reduce=method, where="n < 150", seed=0)
    np.testing.assert_array_equal(collection.vectors(keys(), space="map2"), places)
    assert other.describe()["fingerprint"] == space.describe()["fingerprint"]


def test_fidelity_is_that_of_another_implementation():
    from sklearn.manifold import trustworthiness

    from embedstore.latent.quality import fidelity
    from embedstore.model import Metric

    vectors = points()[0]
    after = vectors[:, :3]
    found = fidelity(vectors, after, 7, metric=Metric.EUCLIDEAN)
    assert found.trustworthiness == pytest.approx(trustworthiness(vectors, after, n_neighbors=7), abs=1e-6)
    assert found.continuity == pytest.approx(trustworthiness(after, vectors, n_neighbors=7), abs=1e-6)
    whole = fidelity(vectors, vectors, 7, metric=Metric.COSINE)
    assert (whole.trustworthiness, whole.continuity, whole.recall) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"reduce": "pca", "dim": 13}, "dim is 13; of 12 numbers at most 12"),
        ({"reduce": "pca", "dim": 0}, "dim is 0; it must be a whole number from 1 on"),
        ({"reduce": "magic"}, "by 'magic'; the methods are pca, whiten"),
        ({"reduce": "lda"}, "'lda' needs a label"),
        ({"reduce": "erase", "label": "absent"}, "no record of 'points' has the field 'absent'"),
        ({"reduce": "erase", "label": "n"}, "'n' has 200 values for 200 records; give a field of classes"),
        ({"reduce": "lda", "label": "class", "dim": 3}, "dim is 3; of 12 numbers at most 2"),
        ({"reduce": "lda", "label": "class", "where": "class = 'c1'"}, "one value only, 'c1'"),
        ({"reduce": "pca", "label": "class"}, "'pca' takes no label"),
        ({"reduce": "pca", "where": "n < 1"}, "1 vectors; at least 2|1 vectors of"),
        ({"reduce": "pca", "of": "absent"}, "no space 'absent'; it has: vector"),
        ({"reduce": "umap", "where": "n < 10"}, "a map needs 16 records at least; there are 10"),
        ({"reduce": "tsne", "dim": 3}, "t-SNE lays out in 1 or 2 numbers, not 3"),
        ({"reduce": "pca", "encoder": "minilm"}, "by an encoder or of another space"),
        ({"of": "vector"}, "say how, too"),
        ({"reduce": "pca", "recipe": "absent"}, "absent"),
    ],
)
def test_bad_requests_get_one_line_and_leave_nothing(store, options, told):
    collection, _, _ = filled(store)
    with pytest.raises(embedstore.EmbedstoreError, match=told) as raised:
        collection.add_space("new", **options)
    assert "\n" not in str(raised.value)
    assert [one.name for one in collection.spaces()] == ["vector"]


def test_an_empty_collection_has_nothing_to_reduce(store):
    with pytest.raises(embedstore.EmbedstoreError, match="there is no store|does not exist yet"):
        store.collection("none", encoder="none").add_space("new", reduce="pca")


def test_a_space_of_which_others_are_made_stays(store):
    collection, _, _ = filled(store)
    collection.add_space("copy", encoder="none")
    collection.add_space("small", reduce="pca", dim=4)
    collection.add_space("smaller", reduce="pca", dim=2, of="small")
    with pytest.raises(InvalidInput, match="of the space 'small' others are made: smaller; drop them first"):
        collection.drop_space("small")
    collection.add([{"key": "late", "vector": points(201)[0][200]}])
    assert collection.space("smaller")["late"].array.shape == (2,)
    collection.drop_space("smaller")
    collection.drop_space("small")
    with store.reading() as transaction:
        assert transaction.all("SELECT * FROM fitted") == []
    assert store.verify().problems == []


def test_spaces_follow_what_they_were_made_of_when_it_gets_another_name(store):
    words = store.collection("words", encoder="letters")
    words.add([{"key": text, "text": text} for text in ("abc", "abcd", "deed", "cabbage", "facade", "ebb", "dab")])
    words.add_space("two", reduce="pca", dim=2)
    with pytest.raises(InvalidInput, match="others are made: two; drop them first, or keep"):
        words.reencode("letters:3")
    before = words.vectors(["deed"], space="two")
    words.reencode("letters:3", keep=True)
    assert words.space("two").describe()["made_of"] == "text.old"
    np.testing.assert_array_equal(words.vectors(["deed"], space="two"), before)
    words.add([{"key": "deed2", "text": "deed"}])
    np.testing.assert_allclose(words.vectors(["deed2"], space="two"), before, atol=1e-6)
    np.testing.assert_allclose(words.space("two").encode("deed").array, before[0], atol=1e-6)
    assert store.verify().problems == []


def test_records_written_while_a_space_is_made_are_in_it(any_store, monkeypatch):
    from embedstore import deriving

    monkeypatch.setattr(deriving, "_PAGE", 20)
    collection, vectors, _ = filled(any_store)
    errors = []

    def write():
        try:
            for i in range(40):
                collection.add([{"key": f"w{i}", "vector": vectors[i] + 1}])
                collection.upsert([{"key": str(i), "vector": vectors[i] * 2}])
        except Exception as error:
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    collection.add_space("small", reduce="truncate", dim=3)
    writer.join()
    assert errors == []
    expected = collection.vectors([*keys(), *(f"w{i}" for i in range(40))])[:, :3]
    np.testing.assert_array_equal(
        collection.vectors([*keys(), *(f"w{i}" for i in range(40))], space="small"), expected
    )
    assert any_store.verify().problems == []


def test_filling_goes_on_where_it_was_interrupted(store, monkeypatch):
    from embedstore import deriving

    collection, _, _ = filled(store)
    monkeypatch.setattr(deriving, "_PAGE", 30)
    whole, n_calls = deriving.usable_lines, []

    def failing(space, matrix):
        n_calls.append(1)
        if len(n_calls) == 3:
            raise KeyboardInterrupt
        return whole(space, matrix)

    monkeypatch.setattr(deriving, "usable_lines", failing)
    with pytest.raises(KeyboardInterrupt):
        collection.add_space("small", reduce="pca", dim=3)
    assert collection.space("small").describe()["n_vectors"] == 60
    assert collection.fill_spaces().updated == 140
    assert collection.space("small").describe()["n_vectors"] == 200


def test_a_space_that_was_held_while_its_parent_got_another_name_leads_nobody_astray(store):
    words = store.collection("words", encoder="letters")
    words.add([{"key": text, "text": text} for text in ("abc", "abcd", "deed", "cabbage", "facade", "ebb", "dab")])
    held = words.add_space("two", reduce="pca", dim=2)
    with embedstore.open(store.path) as other:
        other.collection("words").reencode("letters:3", keep=True)
    store._encoders.clear()
    expected = words.vectors(["deed"], space="two")[0]
    np.testing.assert_allclose(held.encode("deed").array, expected, atol=1e-6)
    np.testing.assert_allclose(words.space("two").encode("deed").array, expected, atol=1e-6)


def test_a_vector_that_comes_to_nothing_takes_the_old_one_with_it(any_store):
    collection, _, _ = filled(any_store, metric="cosine")
    collection.add_space("first", reduce="truncate", dim=2)
    collection.add_space("one", reduce="truncate", dim=1, of="first")
    collection.upsert([{"key": "3", "vector": [0.0] * 11 + [1.0], "n": 3}])
    assert [space.describe()["n_vectors"] for space in collection.spaces()] == [200, 199, 199]
    for name in ("first", "one"):
        with pytest.raises(embedstore.RecordNotFound, match=f"'3' of 'points' has no vector in space '{name}'"):
            collection.space(name)["3"]
    assert any_store.verify().problems == []


def test_what_is_not_changed_is_not_written_again(store):
    collection, vectors, classes = filled(store)
    records = [{"key": str(i), "vector": vectors[i], "class": f"c{classes[i]}", "n": i} for i in range(200)]
    collection.add_space("small", reduce="pca", dim=5)
    collection.add_space("map", reduce="tsne")
    held = {space: collection.vectors(keys(), space=space) for space in ("small", "map")}
    assert collection.upsert(records).unchanged == 200
    assert all(collection.upsert([record]).unchanged == 1 for record in records[:20])
    assert collection.upsert(records[:77]).unchanged == 77
    for space, before in held.items():
        np.testing.assert_array_equal(collection.vectors(keys(), space=space), before)


def test_what_is_written_while_a_map_is_drawn_is_placed_by_its_new_vector(store, monkeypatch):
    from embedstore.latent import maps

    collection, vectors, _ = filled(store)
    draw = maps.draw

    def drawn(*arguments):
        with embedstore.open(store.path) as other:
            other.collection("points").upsert([{"key": "0", "vector": vectors[150], "n": 0}])
        return draw(*arguments)

    monkeypatch.setattr(maps, "draw", drawn)
    space = collection.add_space("map", reduce="tsne")
    spread = collection.vectors(keys(), space="map").std()
    assert space["0"].distance(space["150"]) < spread < space["0"].distance(space["1"]) + spread


def test_an_erased_space_is_compared_as_it_is_and_tells_nothing_in_any_unit(store):
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 2, 900)
    plain = drawn.standard_normal((900, 5)) * np.where(labels, 1.0, 3.0)[:, None]
    plain[:, 1] += 4 * labels
    for name, units in (("one", np.ones(5)), ("other", np.array([1e3, 1.0, 1e-2, 1.0, 10.0]))):
        collection = store.collection(name, encoder="none", metric="cosine" if name == "one" else "euclidean")
        collection.add([
            {"key": str(i), "vector": one, "label": bool(labels[i])} for i, one in enumerate(plain * units)
        ])  # fmt: skip
        space = collection.add_space("erased", reduce="erase", label="label")
        assert space.metric.value == "euclidean"
        left = collection.vectors([str(i) for i in range(900)], space="erased").astype(np.float64)
        gap = np.abs(left[labels == 1].mean(axis=0) - left[labels == 0].mean(axis=0)) / left.std(axis=0)
        assert gap.max() < 1e-3


def test_a_rare_class_is_erased_too():
    drawn = np.random.default_rng(0)
    labels = np.zeros(20_000, int)
    labels[:3], labels[3:8000] = 2, 1
    vectors = drawn.standard_normal((20_000, 6)).astype(np.float32)
    vectors[labels == 1, 0] += 10
    vectors[labels == 2, 1] += 50
    whole, classes = moments.moments_by_label([(np.arange(20_000), vectors)], dict(enumerate(labels.tolist())))
    left = moments.erasure(whole, classes, normalize=False).apply(vectors)
    for one in range(3):
        np.testing.assert_allclose(left[labels == one].mean(axis=0), left.mean(axis=0), atol=1e-3)


def test_labels_of_other_types_are_other_classes():
    vectors = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    labels = dict(enumerate([True, 1, "x", 2.5] * 10))
    assert len(moments.moments_by_label([(np.arange(40), vectors)], labels)[1]) == 4


def test_whitening_refuses_dimensions_that_are_rounding_alone():
    for seed in range(6):
        drawn = np.random.default_rng(seed)
        flat = (drawn.standard_normal((300, 5)) @ drawn.standard_normal((5, 6))).astype(np.float32)
        whole = moments.moments_of([(None, flat)], exact=True)
        with pytest.raises(InvalidInput, match="only 5 components vary"):
            moments.whitening(whole, 6, normalize=False, usual=6)
        made, _ = moments.whitening(whole, 5, normalize=False, usual=6)
        assert moments.whitening(whole, None, normalize=False, usual=6)[0].dim == 5
        np.testing.assert_allclose(np.cov(made.apply(flat).T), np.eye(5), atol=1e-3)


def test_vectors_beyond_all_bounds_are_left_out_of_a_derived_space(store):
    collection, vectors, _ = filled(store, metric="cosine")
    collection.add_space("first", reduce="truncate", dim=2)
    collection.add([{"key": "tiny", "vector": [1e-25, 0.0, *vectors[0, 2:]]}])
    assert collection.space("first").describe()["n_vectors"] == 200
    hits = collection.search(like=["7"], k=201, space="first")
    assert len(hits) == 199 and all(np.isfinite(hit.score) for hit in hits)


def test_maps_of_too_little_get_one_line(store):
    same = store.collection("same", encoder="none", metric="euclidean")
    same.add([{"key": str(i), "vector": [1.0, 2.0, 3.0]} for i in range(40)])
    few = store.collection("few", encoder="none", metric="euclidean")
    few.add([{"key": str(i), "vector": one} for i, one in enumerate(points(18)[0])])
    for method in ("umap", "tsne", "pacmap"):
        with pytest.raises(InvalidInput, match="all 40 vectors are the same"):
            same.add_space("map", reduce=method)
    with pytest.raises(InvalidInput, match="a map of 18 records has 16 numbers at most, not 17|17"):
        few.add_space("map", reduce="umap", dim=17)


def test_a_transform_of_another_space_is_not_imported(store, tmp_path):
    import json

    collection, vectors, _ = filled(store)
    collection.add_space("small", reduce="pca", dim=3)
    collection.export(str(tmp_path / "out.jsonl"))
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    spaces = header["embedstore_export"]["spaces"]
    other = store.collection("others", encoder="none", metric="euclidean")
    other.add([{"key": str(i), "vector": one} for i, one in enumerate(vectors * 2)])
    other.add_space("small", reduce="pca", dim=3)
    other.export(str(tmp_path / "other.jsonl"))
    theirs = json.loads((tmp_path / "other.jsonl").read_text().splitlines()[0])["embedstore_export"]["spaces"]

    def refused(change):
        changed = json.loads(lines[0])
        change(changed["embedstore_export"]["spaces"])
        (tmp_path / "bad.jsonl").write_text("\n".join([json.dumps(changed), *lines[1:]]) + "\n")
        with pytest.raises(InvalidInput, match="cannot be used"):
            store.collection("new").import_(str(tmp_path / "bad.jsonl"))
        assert "new" not in store.collections()

    def swap(given):
        given[1]["fitted"] = theirs[1]["fitted"]

    def drop(given):
        given[1]["fitted"] = []

    for change in (swap, drop, lambda given: given.reverse(), lambda given: given[1]["fitted"][0].update(body="AA==")):
        refused(change)
    assert len(spaces) == 2
    collection.add([{"key": "late", "vector": vectors[0]}])  # nothing of the refused ones is remembered


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_an_export_brings_derived_spaces_back(store, tmp_path, suffix):
    collection, vectors, _ = filled(store)
    collection.add_space("small", reduce="pca", dim=3)
    collection.add_space("map", reduce="umap")
    path = str(tmp_path / f"out{suffix}")
    collection.export(path)
    other = store.collection("other")
    other.import_(path)
    for space in ("small", "map"):
        np.testing.assert_array_equal(other.vectors(keys(), space=space), collection.vectors(keys(), space=space))
        for one in (collection, other):
            one.upsert([{"key": "late", "vector": vectors[3] + 0.1}])
        np.testing.assert_array_equal(other.vectors(["late"], space=space), collection.vectors(["late"], space=space))
    assert store.verify().problems == []


def test_a_repaired_store_has_its_derived_spaces(store, tmp_path):
    collection, _, _ = filled(store)
    collection.add_space("small", reduce="pca", dim=3)
    held = collection.vectors(keys(), space="small")
    store.close()
    from embedstore.maintenance.salvage import repair

    report = repair(store.path, tmp_path / "mended")
    assert report.lost == []
    with embedstore.open(tmp_path / "mended") as mended:
        again = mended.collection("points")
        np.testing.assert_array_equal(again.vectors(keys(), space="small"), held)
        again.add([{"key": "late", "vector": points(201)[0][200]}])
        assert again.space("small")["late"].array.shape == (3,) and mended.verify().problems == []


@pytest.mark.parametrize("change", ["UPDATE fitted SET body = zeroblob(100)", "DELETE FROM fitted"])
def test_a_damaged_transform_is_found_and_its_vectors_are_salvaged(store, tmp_path, change):
    from embedstore.maintenance.salvage import repair

    collection, _, _ = filled(store)
    collection.add_space("small", reduce="pca", dim=3)
    held = collection.vectors(keys(), space="small")
    with store.database.write() as transaction:
        transaction.run(change)
    assert [(one.part, one.name) for one in store.verify().problems] == [("space", "points/small")]
    store.close()
    from embedstore.transforms import derived

    derived._known.clear()
    with embedstore.open(store.path) as again, pytest.raises(embedstore.StoreDamaged):
        again.collection("points").add([{"key": "late", "vector": points(201)[0][200]}])
    report = repair(store.path, tmp_path / "mended")
    assert any("how it was made of other spaces is lost" in one.what for one in report.lost)
    with embedstore.open(tmp_path / "mended") as mended:
        np.testing.assert_array_equal(mended.collection("points").vectors(keys(), space="small"), held)
        assert mended.verify().problems == []


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_vectors_that_are_all_the_same_get_one_line(store, metric):
    same = store.collection("same", encoder="none", metric=metric)
    same.add([{"key": str(i), "vector": [1.0, 2.0, 3.0], "class": "ab"[i % 2]} for i in range(40)])
    for method in ("pca", "whiten", "all-but-the-top", "lda", "erase"):
        with pytest.raises(InvalidInput, match="all 40 vectors are the same, so there is nothing to fit"):
            same.add_space("made", reduce=method, label="class" if method in ("lda", "erase") else None)


def test_one_number_is_compared_by_distance(store):
    collection, vectors, _ = filled(store, metric="cosine")
    collection.update([{"key": key, "big": int(key) % 2 == 0} for key in keys()])
    space = collection.add_space("told", reduce="lda", label="big")
    assert (space.dim, space.metric.value) == (1, "euclidean")
    assert collection.add_space("one", reduce="pca", dim=1, metric="cosine").metric.value == "cosine"


def test_whitening_keeps_what_varies(store):
    vectors, _ = points()
    vectors[:, 3] = 5.0
    collection = store.collection("flat", encoder="none", metric="euclidean")
    collection.add([{"key": str(i), "vector": one} for i, one in enumerate(vectors)])
    assert collection.add_space("white", reduce="whiten").dim == DIM - 1


def test_a_twin_is_placed_where_its_twin_is(store):
    collection, vectors, _ = filled(store, metric="cosine")
    collection.add_space("map", reduce="tsne")
    collection.add([{"key": f"twin-{i}", "vector": vectors[i] * 3} for i in range(0, 200, 10)])
    twins = collection.vectors([f"twin-{i}" for i in range(0, 200, 10)], space="map")
    np.testing.assert_allclose(twins, collection.vectors([str(i) for i in range(0, 200, 10)], space="map"), atol=1e-6)


def test_a_field_without_single_values_is_told_from_one_that_is_not_there(store):
    collection, _, _ = filled(store)
    collection.update([{"key": "1", "both": ["x", "y"]}])
    with pytest.raises(InvalidInput, match="the field 'both' with a single value; there are both, class, n"):
        collection.add_space("told", reduce="lda", label="both")
