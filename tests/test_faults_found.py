"""Faults that were found by trying to break the store, each kept as a claim that it is no more so."""

import os
import sqlite3
import threading
import time

import numpy as np
import pytest

import embedstore
from embedstore import InvalidFilter, InvalidInput, InvalidRecord, NotAStore, SpaceMismatch
from embedstore.indexing import space_cache
from embedstore.searching import plan


def test_one_and_true_are_different_in_filters_that_follow_each_other(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "i", "vector": [1.0], "x": 1}, {"key": "b", "vector": [1.0], "x": True}])
    assert collection.search([1.0], where={"x": 1}).keys == ["i"]
    assert collection.search([1.0], where={"x": True}).keys == ["b"]
    assert collection.search([1.0], where={"x": 1.0}).keys == ["i"]


def test_floats_of_seventeen_digits_are_equal_to_themselves(any_store):
    collection = any_store.collection("c", encoder="none")
    value = 0.1 + 0.2
    collection.add([{"key": "a", "vector": [1.0], "x": value}])
    assert collection.count({"x": value}) == collection.count({"x": {"$in": [value]}}) == 1
    assert collection.count({"x": {"$gt": value}}) == 0
    assert len(collection.search([1.0], where={"x": value})) == 1


@pytest.mark.parametrize("options", [{"mode": "hybrid"}, {"mmr": 0.5}, {"mode": "text"}, {}])
def test_pages_neither_overlap_nor_skip(store, options):
    random = np.random.default_rng(0)
    words = ["aa", "bb", "cc", "dd", "ee"]
    collection = store.collection("c", encoder="letters")
    collection.add({"key": f"k{i}", "text": " ".join(random.choice(words, 6))} for i in range(400))
    paged = [key for page in range(30) for key in collection.search("aa bb", 10, offset=10 * page, **options).keys]
    assert len(paged) == len(set(paged)) >= 290
    assert paged[:25] == collection.search("aa bb", 25, **options).keys


def test_a_recipe_changed_by_another_process_is_followed(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    matrix = np.random.default_rng(0).standard_normal((2_000, 128)).astype(np.float32)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    assert collection.search(matrix[0]).exact
    with embedstore.open(store.path) as other:
        other.collection("c").index(recipe="hnsw")
        assert not collection.search(matrix[0]).exact
        other.collection("c").index(recipe="flat")
        assert collection.search(matrix[0]).exact


def test_a_vector_of_another_store_is_refused(tmp_path):
    with embedstore.open(tmp_path / "a") as one, embedstore.open(tmp_path / "b") as two:
        for store in (one, two):
            store.collection("c", encoder="letters").add([{"key": "x", "text": "abc"}])
        with pytest.raises(SpaceMismatch):
            two.collection("c").search(one.collection("c").space()["x"])


def test_the_rejects_file_may_not_be_the_input(store, tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n')
    with pytest.raises(InvalidInput, match="is the input itself"):
        store.collection("c", encoder="letters").ingest(path, on_error="skip", rejects=str(path))
    assert path.read_text() == '{"id": "a", "text": "x"}\n'


def test_ingest_takes_no_vectors_for_a_space_that_an_encoder_fills(store):
    with pytest.raises(InvalidInput, match="made by its encoder"):
        store.collection("c", encoder="letters").ingest([{"key": "a", "text": "abc", "v": [9.0] * 6}], vector="v")


def test_the_database_of_another_program_is_not_written_into(tmp_path):
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(NotAStore, match="another program"):
        embedstore.open(tmp_path).collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]
    connection.close()


def test_a_field_that_pieces_have_is_not_overwritten(store):
    collection = store.collection("c", encoder="letters")
    with pytest.raises(InvalidRecord, match="row 1, field 'chunk'"):
        collection.ingest([{"key": "a", "text": "abc", "chunk": "mine"}], chunk=10)
    assert len(collection) == 0


@pytest.mark.parametrize("metric", ["dot", "euclidean", "cosine"])
def test_vectors_whose_scores_would_overflow_are_refused(store, metric):
    collection = store.collection("c", encoder="none", metric=metric)
    with pytest.raises(InvalidRecord, match="lengths must lie between"):
        collection.add([{"key": "a", "vector": [3e25, 1.0]}])
    collection.add([{"key": "a", "vector": [1.0, 1.0]}])
    with pytest.raises(InvalidInput, match="lengths must lie between"):
        collection.search([1e20, 1.0])


def test_names_with_quotes_within_objects_are_found_and_texts_that_look_like_objects_are_not(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add(
        [
            {"key": "object", "vector": [1.0], "a": {'b"c': 1}},
            {"key": "plain", "vector": [1.0], "a": "hello"},
            {"key": "lookalike", "vector": [1.0], "a": '{"b\\"c": 1}'},
        ]
    )
    assert [record.key for record in collection.records('a."b""c" = 1')] == ["object"]


def test_a_pattern_with_many_wild_cards_is_answered_at_once(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "t": "a" * 3000}])
    started = time.perf_counter()
    assert len(collection.search([1.0], where={"t": {"$like": "%a" * 20 + "b"}})) == 0
    assert time.perf_counter() - started < 5


def test_the_delta_in_memory_is_bounded_though_vectors_are_only_replaced(store, monkeypatch):
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 100_000)
    collection = store.collection("c", encoder="none")
    for turn in range(30):
        collection.upsert({"key": str(i), "vector": [1.0 + turn, *[float(i)] * 15]} for i in range(200))
        collection.search([1.0] * 16)
    view = store.search._spaces[1]._view
    assert view.delta.nbytes <= 2 * 100_000
    assert view.n_rows < 5000


def test_an_encoder_space_can_be_added_to_records_without_text(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "text": "abc"}, {"key": "b", "vector": [2.0]}])
    collection.add_space("letters", encoder="letters")
    assert collection.vectors(["a"], space="letters")[0].tolist() == [1, 1, 1, 0, 0, 1]
    collection.upsert([{"key": "c", "vector": [3.0]}])
    assert len(collection) == 3


def test_vectors_made_for_a_collection_that_was_replaced_meanwhile_are_made_again(store):
    import embedstore_letters

    collection = store.collection("c", encoder="letters")
    collection.add([{"key": "a", "text": "abc"}])
    plain = embedstore_letters.LettersEncoder.encode

    def slow(self, texts):
        embedstore_letters.LettersEncoder.encode = plain
        with embedstore.open(store.path) as other:
            other.delete_collection("c")
            other.collection("c", encoder="letters:5").add([{"key": "x", "text": "abc"}])
        return plain(self, texts)

    embedstore_letters.LettersEncoder.encode = slow
    try:
        collection.upsert([{"key": "b", "text": "abc"}])
    finally:
        embedstore_letters.LettersEncoder.encode = plain
    assert {tuple(row) for row in collection.vectors(["x", "b"]).tolist()} == {(1, 1, 1, 0, 0, 5)}


def test_filters_and_keys_that_are_no_text_are_refused(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "x": 1}])
    for where in ("_key = '\udcff'", {"_key": "\udcff"}, {"x\udcff": 1}, {"x": 2**1070}):
        with pytest.raises(InvalidFilter):
            collection.count(where)
    for call in (collection.get, lambda key: collection.delete([key])):
        with pytest.raises(InvalidRecord, match="surrogate"):
            call("\udcff")


def test_an_error_ends_an_ingest_though_standard_input_stays_open(store, run_cli, tmp_path):
    import subprocess
    import sys

    store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    with store.database.write():
        with subprocess.Popen(
            [sys.executable, "-m", "embedstore", "--timeout", "0.5", "ingest", "d", "-"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "EMBEDSTORE_STORE": str(store.path)},
        ) as process:
            process.stdin.write(b'{"text": "x"}\n')
            process.stdin.flush()
            assert process.wait(timeout=30) == 3
            process.stdin.close()


@pytest.mark.postgres
def test_two_first_writers_of_different_dimensions_cannot_both_win(fresh_database, tmp_path):
    one = embedstore.open(tmp_path / "one", database=fresh_database)
    two = embedstore.open(tmp_path / "two", database=fresh_database)
    one.collection("c", encoder="none").create()
    failures = []

    def write(store, dim):
        try:
            for i in range(20):
                store.collection("c").upsert([{"key": f"{dim}-{i}", "vector": [1.0] * dim}])
        except SpaceMismatch as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(store, dim)) for store, dim in ((one, 3), (two, 4))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) == 1
    dim = one.collection("c").space().dim
    assert len(one.collection("c").search([1.0] * dim, k=50)) == 20
    one.close()
    two.close()


@pytest.mark.postgres
def test_many_first_writers_make_one_collection(fresh_database, tmp_path):
    errors = []

    def write(name):
        try:
            with embedstore.open(tmp_path / name, database=fresh_database) as store:
                store.collection("c", encoder="none").add([{"key": name, "vector": [1.0, 2.0]}])
        except embedstore.EmbedstoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with embedstore.open(tmp_path / "reader", database=fresh_database) as store:
        assert len(store.collection("c")) == 6
        assert len(store.collection("c").spaces()) == 1


@pytest.mark.postgres
def test_a_fork_keeps_both_processes_usable_on_postgres(fresh_database, tmp_path):
    with embedstore.open(tmp_path / "s", database=fresh_database) as store:
        collection = store.collection("c", encoder="none")
        collection.add([{"key": "before", "vector": [1.0, 1.0]}])
        collection.search([1.0, 1.0])
        children = []
        for i in range(4):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    collection.add([{"key": f"child{i}", "vector": [1.0, float(i)]}])
                    code = 0 if f"child{i}" in collection.search([1.0, float(i)], k=9).keys else 2
                finally:
                    os._exit(code)
            children.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0, 0]
        assert len(collection) == 5


@pytest.mark.postgres
def test_a_password_in_a_urls_query_is_not_shown(fresh_database, tmp_path):
    store = embedstore.open(tmp_path / "s", database=f"{fresh_database}?password=s3cret")
    store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    assert "s3cret" not in str(store.stats()) + repr(store)
    store.close()


@pytest.mark.postgres
def test_a_text_of_many_different_words_can_be_stored(fresh_database, tmp_path):
    with embedstore.open(tmp_path / "s", database=fresh_database) as store:
        text = " ".join(f"слово-{i:x}-другое-{i * 7919:x}" for i in range(12_000))
        store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0], "text": text}])
        assert store.collection("c").get("a").content == text


def test_an_address_is_no_path_and_its_password_is_not_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInput, match="'postgresql\\+psycopg':// begins an address.*database=") as refused:
        embedstore.open("postgresql+psycopg://me:secret@localhost/x")
    assert "secret" not in str(refused.value)
    for wrong in (5, None):
        with pytest.raises(InvalidInput, match="a path is a string or a Path"):
            embedstore.open(wrong)
    assert not list(tmp_path.iterdir())


def test_arguments_that_say_two_things_are_refused(store):
    collection = store.collection("c", encoder="none", dim=2)
    with pytest.raises(InvalidRecord, match="is a vector of the same space as 'vector'"):
        collection.add([{"key": "a", "vector": [1, 2], "vectors": {"vector": [3, 4]}}])
    collection.add([{"key": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(InvalidInput, match="dim is 2, but how many numbers there are, the encoder says"):
        collection.add_space("l", encoder="letters", dim=2)
    with pytest.raises(InvalidInput, match="n is 3.5"):
        collection.sample(3.5)
    with pytest.raises(InvalidInput, match="update changes metadata only"):
        collection.update([{"key": "a", "image": "x.png"}])
    assert collection.neighbours(np.empty((0, 2), np.float32), 3).plan == "no queries"


def test_a_plan_speaks_of_allowed_vectors_where_there_is_a_filter(store):
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": [1.0, i], "n": i} for i in range(50))
    collection.delete(["3"])
    assert collection.search([1.0, 2.0]).plan == "exact scan of 49 vectors"
    assert "3 allowed" in collection.search([1.0, 2.0], where="n < 4").plan
