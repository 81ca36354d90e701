"""What a collection keeps, and what it refuses."""

import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

import embedstore
from embedstore import (
    CollectionNotFound,
    DuplicateKey,
    EncoderMismatch,
    InvalidInput,
    InvalidRecord,
    RecordNotFound,
    SpaceMismatch,
    StoreNotFound,
)


def vectors_of(n: int, dim: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def filled(store, n: int = 20, **options):
    collection = store.collection("things", encoder="none", **options)
    matrix = vectors_of(n)
    collection.add(
        {"key": f"k{i}", "text": f"text number {i}", "vector": matrix[i], "year": 2000 + i} for i in range(n)
    )
    return collection, matrix


def test_what_was_added_comes_back_as_it_was_given(any_store):
    collection = any_store.collection("things", encoder="none")
    metadata = {
        "year": 2019, "ratio": 0.1, "big": 2**62, "flag": True, "none": None, "name": "Zoë \"q\" \\ 'x'",
        "tags": ["a", 1, None], "nested": {"a": {"b": 1.5}}, "a.b": "dotted", 'qu"ote': 1,
    }  # fmt: skip
    vector = np.array([0.1, -2.5, 3e-7], np.float32)
    report = collection.add([{"key": "p1", "text": "Rice\n blast", "vector": vector, "uri": "file:x", **metadata}])
    assert report.to_dict() == {
        "added": 1, "updated": 0, "unchanged": 0, "failed": 0, "deleted": 0, "encoded": 0, "truncated": 0,
    }  # fmt: skip
    record = collection.get("p1")
    assert (record.key, record.content, record.uri, record.metadata) == ("p1", "Rice\n blast", "file:x", metadata)
    assert collection.vectors(["p1"]).tobytes() == vector.tobytes()


def test_add_of_an_existing_key_raises_and_writes_nothing(any_store):
    collection, _ = filled(any_store, 3)
    with pytest.raises(DuplicateKey, match=r"row 2, field 'key': key 'k1' is in the collection already"):
        collection.add([{"key": "new", "vector": [1.0] * 8}, {"key": "k1", "vector": [1.0] * 8}])
    assert len(collection) == 3
    assert "new" not in collection


def test_a_key_twice_in_one_input_is_refused(store):
    collection = store.collection("things", encoder="none")
    with pytest.raises(DuplicateKey, match="row 2"):
        collection.upsert([{"key": "a", "vector": [1.0]}, {"key": "a", "vector": [2.0]}])
    assert len(collection) == 0


def test_two_keys_with_the_same_text_are_two_records(store):
    collection = store.collection("things", encoder="letters")
    report = collection.add([{"key": "a", "text": "abc"}, {"key": "b", "text": "abc", "x": 1}])
    assert (report.added, report.encoded) == (2, 1)
    assert collection.search("abc", k=5).keys == ["a", "b"]


def test_upsert_tells_added_updated_and_unchanged_apart(any_store):
    collection, matrix = filled(any_store, 4)
    report = collection.upsert(
        [
            {"key": "k0", "text": "text number 0", "vector": matrix[0], "year": 2000},
            {"key": "k1", "text": "text number 1", "vector": matrix[1], "year": 1},
            {"key": "k2", "text": "text number 2", "vector": matrix[3], "year": 2002},
            {"key": "k9", "text": "nine", "vector": matrix[0]},
        ]
    )
    assert (report.added, report.updated, report.unchanged) == (1, 2, 1)
    assert collection.get("k1").metadata == {"year": 1}
    assert np.array_equal(collection.vectors(["k2"])[0], matrix[3])
    assert len(collection) == 5


def test_new_metadata_is_kept_though_the_text_is_the_same_and_is_not_encoded_again(store, letters_calls):
    collection = store.collection("things", encoder="letters")
    collection.add([{"key": "a", "text": "abc", "x": 1}])
    letters_calls.clear()
    report = collection.upsert([{"key": "a", "text": "abc", "x": 2}])
    assert (report.updated, report.encoded, letters_calls) == (1, 0, [])
    assert collection.get("a").metadata == {"x": 2}


def test_a_changed_text_is_encoded_again(store):
    collection = store.collection("things", encoder="letters")
    collection.add([{"key": "a", "text": "aaa"}, {"key": "b", "text": "bbb"}])
    assert collection.upsert([{"key": "a", "text": "ddd"}]).encoded == 1
    assert collection.search("ddd", k=1).keys == ["a"]
    assert collection.search("aaa", k=2)[0].score < 0.5


def test_update_changes_metadata_only(any_store):
    collection, matrix = filled(any_store, 2)
    report = collection.update([{"key": "k0", "year": None, "lang": "en"}])
    assert report.updated == 1
    assert collection.get("k0").metadata == {"lang": "en"}
    assert collection.get("k0").content == "text number 0"
    assert np.array_equal(collection.vectors(["k0"])[0], matrix[0])
    with pytest.raises(RecordNotFound, match="'nobody'"):
        collection.update([{"key": "nobody", "x": 1}])
    with pytest.raises(InvalidRecord, match="field 'text'"):
        collection.update([{"key": "k0", "text": "new"}])


def test_removed_record_is_never_returned(any_store):
    collection, matrix = filled(any_store, 30)
    collection.search(matrix[3])
    assert collection.delete(["k3", "k4", "unknown"]) == 2
    for _ in range(2):
        hits = collection.search(matrix[3], k=30)
        assert len(hits) == 28
        assert not {"k3", "k4"} & set(hits.keys)
        assert collection.search("number", k=30, mode="text").keys.count("k3") == 0
    with pytest.raises(RecordNotFound):
        collection.get("k3")


def test_delete_by_filter_takes_exactly_the_matching_records(any_store):
    collection, _ = filled(any_store, 30)
    assert collection.delete(where="year >= 2010 AND year < 2015") == 5
    assert len(collection) == 25
    assert collection.count("year >= 2010 AND year < 2015") == 0
    with pytest.raises(InvalidInput, match="either keys or a filter"):
        collection.delete()


def test_a_record_with_a_deleted_key_can_be_added_again(any_store):
    collection, matrix = filled(any_store, 5)
    collection.delete(["k2"])
    collection.add([{"key": "k2", "text": "again", "vector": matrix[4]}])
    assert collection.get("k2").content == "again"
    assert set(collection.search(matrix[4], k=2).keys) == {"k2", "k4"}


def test_keys_with_quotes_emoji_and_paths_are_keys_like_any_other(any_store):
    collection = any_store.collection("things", encoder="none")
    keys = ["it's", '"q"', "../../etc/passwd", "🦊", "a b", "%_", "k" * 512, "é" * 256, "; DROP TABLE records"]
    collection.add({"key": key, "vector": [float(i + 1), 1.0]} for i, key in enumerate(keys))
    for key in keys:
        assert collection.get(key).key == key
    assert collection.delete(keys) == len(keys)
    assert len(collection) == 0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"key": "", "text": "x"}, "row 1, field 'key': the key is empty"),
        ({"key": "k" * 513, "text": "x"}, "513 bytes"),
        ({"key": "a\nb", "text": "x"}, "control character"),
        ({"key": 1.5, "text": "x"}, "string or an integer"),
        ({"key": "\ud800", "text": "x"}, "lone surrogate"),
        ({"key": "a", "text": ""}, "field 'text': the text is empty"),
        ({"key": "a", "text": " \t\n"}, "white space"),
        ({"key": "a", "text": None}, "the text is missing"),
        ({"key": "a", "text": 5}, "must be a string, not int"),
        ({"key": "a", "text": "x\0y"}, "character 1 is NUL"),
        ({"key": "a", "text": "x\udfffy"}, r"character 1 is a lone surrogate \(U\+DFFF\)"),
        ({"key": "a", "text": "x", "m": float("nan")}, "field 'm': is nan"),
        ({"key": "a", "text": "x", "m": [1, float("inf")]}, "inf"),
        ({"key": "a", "text": "x", "m": object()}, "holds object"),
        ({"key": "a", "text": "x", "m": 2**63}, "does not fit in 64 bits"),
        ({"key": "a", "text": "x", "m": "\0"}, "NUL"),
        ({"key": "a", "text": "x", "m": {"\ud800": 1}}, "lone surrogate"),
        ({"key": "a", "text": "x", "": 1}, "name must have 1 to 255 bytes"),
        ({"key": "a", "text": "x", 5: 1}, "name must be a string"),
        ({"key": "a", "text": "x", "metadata": 5}, "must be a mapping"),
        ({"key": "a", "text": "x", "metadata": {"y": 1}, "y": 2}, "both beside and inside"),
        ("a string", "must be a mapping"),
    ],
)
def test_a_record_that_cannot_be_stored_is_refused_with_its_row_and_field(store, record, message):
    collection = store.collection("things", encoder="letters")
    with pytest.raises(InvalidRecord, match=message):
        collection.add([record])
    assert not store.exists() or len(collection) == 0


@pytest.mark.parametrize(
    ("vector", "error", "message"),
    [
        ([1.0, float("nan")], InvalidRecord, r"row 2, field 'vector': number 1 of the vector is nan"),
        ([float("-inf"), 1.0], InvalidRecord, "number 0 of the vector is -inf"),
        ([0.0, 0.0], InvalidRecord, "all zeros"),
        ([1.0, 2.0, 3.0], SpaceMismatch, "row 2, field 'vector': the vector has 3 numbers; the space 'vector' holds 2"),
        ([], InvalidRecord, "one row of numbers"),
        ([[1.0, 2.0]], InvalidRecord, "shape"),
        ("text", InvalidRecord, "list of numbers"),
        ([1e30, 0.0], InvalidRecord, "length is 1e\\+30"),
        ([1e-30, 0.0], InvalidRecord, "length is 1e-30"),
    ],
)
def test_a_vector_that_cannot_be_compared_is_refused(store, vector, error, message):
    collection = store.collection("things", encoder="none")
    with pytest.raises(error, match=message):
        collection.add([{"key": "a", "vector": [1.0, 2.0]}, {"key": "b", "vector": vector}])
    assert len(collection) == 0


def test_zero_vectors_are_allowed_where_they_can_be_compared(store):
    for metric in ("dot", "euclidean"):
        collection = store.collection(f"with-{metric}", encoder="none", metric=metric)
        collection.add([{"key": "zero", "vector": [0.0, 0.0]}, {"key": "one", "vector": [1.0, 0.0]}])
        assert set(collection.search([0.0, 0.0], k=2).keys) == {"zero", "one"}


def test_a_vector_is_refused_where_an_encoder_makes_them(store):
    collection = store.collection("things", encoder="letters")
    with pytest.raises(InvalidRecord, match="made by its encoder"):
        collection.add([{"key": "a", "text": "abc", "vector": [1.0] * 6}])


def test_another_encoder_for_an_existing_space_is_an_error_that_names_both(store):
    store.collection("things", encoder="letters").add([{"key": "a", "text": "abc"}])
    with pytest.raises(EncoderMismatch, match="made by letters .*, not by letters:2"):
        store.collection("things", encoder="letters:2")
    with pytest.raises(EncoderMismatch, match="vectors computed elsewhere"):
        store.collection("things", encoder="none")
    assert len(store.collection("things", encoder="letters")) == 1


def test_a_record_has_vectors_in_many_spaces(any_store):
    collection = any_store.collection("things", encoder="letters")
    collection.add([{"key": "a", "text": "aab"}, {"key": "b", "text": "bbc"}])
    collection.add_space("other", encoder="letters:9")
    collection.add_space("map", dim=2, metric="euclidean")
    collection.upsert(
        [
            {"key": "a", "text": "aab", "vectors": {"map": [0.0, 0.0]}},
            {"key": "b", "text": "bbc", "vectors": {"map": [3.0, 4.0]}},
        ]
    )
    assert [space.name for space in collection.spaces()] == ["text", "other", "map"]
    assert collection.vectors(["a"], space="other")[0].tolist() == [2, 1, 0, 0, 0, 9]
    hits = collection.search([3.0, 4.0], k=2, space="map")
    assert [(hit.key, hit.score) for hit in hits] == [("b", 0.0), ("a", -5.0)]
    assert collection.search("aab", k=1, space="other").keys == ["a"]
    collection.upsert([{"key": "a", "text": "eee"}])
    assert collection.vectors(["a"], space="other")[0].tolist() == [0, 0, 0, 0, 3, 9]
    assert collection.vectors(["a"], space="map")[0].tolist() == [0, 0]


def test_reading_what_does_not_exist_says_so(tmp_path):
    with embedstore.open(tmp_path / "nowhere") as store:
        with pytest.raises(StoreNotFound, match="there is no store"):
            store.collections()
        collection = store.collection("things", encoder="none")
        assert len(collection) == 0
        with pytest.raises(StoreNotFound):
            collection.get("a")
        assert not (tmp_path / "nowhere").exists()
        collection.add([{"key": "a", "vector": [1.0]}])
        with pytest.raises(CollectionNotFound, match="no collection 'other'; it has: things"):
            store.existing_collection("other")


def test_a_sample_is_drawn_without_replacement_and_the_same_for_a_seed(any_store):
    collection, _ = filled(any_store, 30)
    drawn = [record.key for record in collection.sample(10, seed=3)]
    assert len(set(drawn)) == 10
    assert drawn == [record.key for record in collection.sample(10, seed=3)]
    assert {record.key for record in collection.sample(99, where="year < 2003")} == {"k0", "k1", "k2"}


def test_the_digest_depends_on_the_content_alone(tmp_path):
    records = [{"key": f"k{i}", "vector": [float(i + 1), 1.0], "x": i} for i in range(20)]
    with embedstore.open(tmp_path / "one") as first, embedstore.open(tmp_path / "two") as second:
        one, two = (store.collection("c", encoder="none") for store in (first, second))
        one.add(records)
        for record in reversed(records):
            two.add([record])
        two.add([{"key": "extra", "vector": [1.0, 1.0]}])
        assert one.stats()["digest"] != two.stats()["digest"]
        two.delete(["extra"])
        two.upsert([{**records[4], "x": 99}])
        two.upsert([records[4]])
        assert one.stats()["digest"] == two.stats()["digest"]
        assert one.stats()["spaces"][0]["digest"] == two.stats()["spaces"][0]["digest"]


def test_a_dropped_collection_is_gone_and_its_name_is_free(any_store):
    collection, matrix = filled(any_store, 10)
    collection.search(matrix[0])
    assert any_store.delete_collection("things") == 10
    assert any_store.collections() == []
    again = any_store.collection("things", encoder="none")
    again.add([{"key": "only", "vector": [1.0, 0.0, 0.0]}])
    assert again.search([1.0, 0.0, 0.0]).keys == ["only"]


def test_records_come_in_the_order_in_which_they_were_added(any_store):
    collection, _ = filled(any_store, 10)
    collection.upsert([{"key": "k3", "text": "changed", "vector": [1.0] * 8}])
    assert [record.key for record in collection.records()] == [f"k{i}" for i in range(10)]
    assert [record.key for record in collection.records("year > 2004", limit=2)] == ["k5", "k6"]


def test_scan_gives_typed_columns(any_store):
    collection = any_store.collection("things", encoder="none")
    collection.add(
        [
            {"key": "a", "text": "x", "vector": [1.0, 2.0], "n": 1, "r": 0.5, "b": True, "m": 1, "l": [1]},
            {"key": "b", "vector": [3.0, 4.0], "n": 2, "r": 1, "m": "one", "o": {"p": "q"}},
        ]
    )
    (batch,) = collection.scan(columns=["key", "text", "n", "r", "b", "m", "l", "o.p", "vector.vector"])
    assert batch.to_pydict() == {
        "key": ["a", "b"], "text": ["x", None], "n": [1, 2], "r": [0.5, 1.0], "b": [True, None],
        "m": ["1", '"one"'], "l": ["[1]", None], "o.p": [None, "q"], "vector.vector": [[1.0, 2.0], [3.0, 4.0]],
    }  # fmt: skip
    with pytest.raises(InvalidInput, match="no column 'nope'"):
        list(collection.scan(columns=["nope"]))


def test_integer_keys_are_written_and_read_as_decimals(any_store):
    collection = any_store.collection("things", encoder="none")
    collection.add([{"key": 5, "vector": [1.0, 0.0], "x": 1}, {"key": 6, "vector": [1.0, 1.0]}])
    assert collection.get(5).key == collection.get("5").key == "5"
    assert 5 in collection
    assert collection.search(like=[5], k=1).keys == ["6"]
    assert collection.update([{"key": 5, "x": 2}]).updated == 1
    assert collection.delete([5]) == 1


def test_another_metric_or_dimension_than_a_collection_has_is_an_error(store):
    store.collection("things", encoder="none", dim=2).add([{"key": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(InvalidInput, match="compares by 'cosine', not by 'dot'"):
        store.collection("things", metric="dot")
    with pytest.raises(SpaceMismatch, match="vectors of 2 numbers, not 3"):
        store.collection("things", dim=3)
    for dim in (0, -3, 1.5, True):
        with pytest.raises(InvalidInput, match="dim is"):
            store.collection("others", encoder="none", dim=dim)


def test_an_update_does_not_undo_what_another_writer_did_meanwhile(store):
    collection = store.collection("things", encoder="letters")
    collection.add([{"key": "a", "text": "aaa", "x": 1}])
    with embedstore.open(store.path) as other:
        other.collection("things").upsert([{"key": "a", "text": "bbb", "x": 1, "y": 2}])
    collection.update([{"key": "a", "z": 3}])
    assert collection.get("a").content == "bbb"
    assert collection.get("a").metadata == {"x": 1, "y": 2, "z": 3}


def test_an_argument_of_the_wrong_kind_gets_one_line(store):
    collection = store.collection("things", encoder="none")
    collection.add([{"key": "k1", "vector": [1.0, 2.0]}])
    for wrong in (
        lambda: collection.get_many("k1"), lambda: collection.delete(5), lambda: collection.update(5),
        lambda: collection.upsert(5), lambda: collection.search(like=5), lambda: collection.search_batch(5),
        lambda: collection.search([1.0, 2.0], mmr="x"), lambda: collection.get(10**5000),
        lambda: collection.neighbours("k1"),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            wrong()
    assert collection.get_many(["k1"])[0].key == "k1"


def test_an_export_is_for_its_owner_alone(store, tmp_path):
    collection = store.collection("things", encoder="none")
    collection.add([{"key": "k1", "vector": [1.0, 2.0]}])
    for name in ("a.jsonl", "a.parquet"):
        collection.export(tmp_path / name)
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_an_export_replaces_an_earlier_one_and_no_other_file_unless_told_to(store, tmp_path):
    collection = store.collection("things", encoder="none")
    collection.add([{"key": "k1", "vector": [1.0, 2.0]}])
    for name in ("a.jsonl", "a.parquet"):
        target = tmp_path / name
        target.write_bytes(b"")
        assert collection.export(target) == collection.count()
        collection.add([{"vector": [2.0, 2.0]}])
        assert collection.export(target) == collection.count()
        target.write_text('{"key": "mine"}\n')
        with pytest.raises(InvalidInput, match="is there, and is no export; give another file, or overwrite it"):
            collection.export(target)
        assert target.read_text() == '{"key": "mine"}\n'
        assert collection.export(target, overwrite=True) == collection.count()
        os.mkfifo(tmp_path / f"fifo{target.suffix}")
        with pytest.raises(InvalidInput, match="is there, and is no export"):
            collection.export(tmp_path / f"fifo{target.suffix}")
        store.collection(f"back-{name[2:]}").import_(target)
    with pytest.raises(InvalidInput, match="over 255 bytes"):
        collection.export(tmp_path / f"{'x' * 300}.jsonl")
    table = pyarrow.table({"key": ["a"]}).replace_schema_metadata({"embedstore_export": "{"})
    pyarrow.parquet.write_table(table, tmp_path / "broken.parquet")
    for wrong in (collection.export, collection.import_):
        with pytest.raises(InvalidInput, match="is no export|has a description that cannot be read"):
            wrong(tmp_path / "broken.parquet")
    assert repr(store.collection("back-jsonl")) == "Collection('back-jsonl', 2 records)"
    hits = collection.search([1.0, 2.0], where="_key = 'k1'")
    assert repr(hits).startswith("1 hit (exact scan of 3 vectors, 1 allowed)")


def test_words_join_a_vector_that_was_computed_elsewhere(store):
    collection = store.collection("c", encoder="none")
    collection.add([
        {"key": "a", "text": "red dog", "vector": [1.0, 0.0]}, {"key": "b", "text": "blue cat", "vector": [0.0, 1.0]},
        {"key": "c", "text": "dog house", "vector": [0.7, 0.7]},
    ])  # fmt: skip
    assert collection.search([1.0, 0.1], words="cat", mode="hybrid").keys == ["b", "a", "c"]
    assert collection.search(words="dog", mode="text").keys == ["a", "c"]
    for wrong in (
        lambda: collection.search([1.0, 0.0], words="dog"), lambda: collection.search([1.0, 0.0], mode="hybrid"),
        lambda: collection.search([1.0, 0.0], mode="hybrid", words=" "),
        lambda: collection.search(" ", mode="hybrid", words="dog"),
        lambda: collection.search_batch(np.ma.masked_array(np.ones((2, 2), np.float32), [[0, 1], [0, 0]])),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            wrong()


def test_what_is_no_vector_is_told_apart(store):
    collection = store.collection("c", encoder="none")
    for given, words in (
        (["1", "2"], "not texts"), ([True, False], "not true and false"),
        ([[1.0], [1.0, 2.0]], "rows of different lengths"),
        (np.ma.masked_array([1.0, 2.0], [0, 1]), "a masked array"), ([1j, 2.0], "not complex numbers"),
    ):  # fmt: skip
        with pytest.raises(InvalidRecord, match=words):
            collection.add([{"key": "a", "vector": given}])


def test_keys_may_be_asked_for_twice_and_numbers_come_in_one_row(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 0.0]}, {"key": "b", "vector": [0.0, 1.0]}])
    assert [record.key for record in collection.get_many(["b", "a", "b", "z"])] == ["b", "a", "b"]
    numbers = collection.neighbours([[1.0, 0.0], [0.0, 1.0]], 1).numbers
    assert collection.keys_of(numbers[1]) == ["b"] and collection.keys_of([]) == []
    for wrong in (numbers, [2**70], ["a"], [1.5], [[1], [2, 3]], 5):
        with pytest.raises(InvalidInput, match="one row of whole numbers"):
            collection.keys_of(wrong)


def test_a_space_that_is_held_tells_what_it_is_now(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": str(i), "vector": [1.0, float(i)]} for i in range(20)])
    held = collection.space()
    collection.delete([str(i) for i in range(15)])
    collection.index(recipe="binary-refine")
    assert (held.describe()["n_vectors"], held.describe()["recipe"]) == (5, "binary-refine")
    other = collection.add_space("other", dim=3)
    collection.drop_space("other")
    with pytest.raises(embedstore.SpaceNotFound, match="is no more"):
        other.describe()
