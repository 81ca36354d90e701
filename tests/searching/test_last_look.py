"""A search by the last look at its collection finds what a search in a snapshot finds, whatever happened."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest

import embedstore
from embedstore import StorageFailed, StoreDamaged
from embedstore.searching import plan
from embedstore.searching.search import CollectionSearch

DIM = 16


def vectors(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM)).astype(np.float32)


@pytest.fixture
def filled(store):
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(vectors(200)))
    return collection


def look(collection) -> object:
    """What the store relies on after it was searched; two searches of the same state make it."""
    for _ in range(3):
        collection.search(vectors(1)[0], 3)
    found = collection.store.search.last_look(collection.name)
    assert found is not None
    return found


@contextlib.contextmanager
def no_snapshot(collection, monkeypatch):
    """Within the block, a search in a snapshot is a failure."""
    with monkeypatch.context() as patched:
        patched.setattr(type(collection.store), "reading", lambda _: pytest.fail("a snapshot was opened"))
        yield


def test_a_search_of_what_nobody_changed_needs_no_snapshot_and_finds_the_same(filled, monkeypatch):
    query = vectors(1, 7)[0]
    first = filled.search(query, 10)
    look(filled)
    with no_snapshot(filled, monkeypatch):
        again = filled.search(query, 10)
        page = filled.search(query, 5, offset=5)
        diverse = filled.search(query, 5, mmr=0.5)
        beyond = filled.search(query, 5, offset=500)
    assert [(hit.key, hit.score, hit.record) for hit in again] == [(hit.key, hit.score, hit.record) for hit in first]
    assert again.plan == first.plan and again.explanation == first.explanation
    assert page.keys == first.keys[5:] and [hit.rank for hit in page] == [6, 7, 8, 9, 10]
    assert len(diverse) == 5 and diverse.plan.endswith("diversified")
    assert len(beyond) == 0


@pytest.mark.parametrize("change", ["add", "upsert", "update", "delete", "recipe", "drop", "drop and make anew"])
def test_what_another_process_changes_is_seen_by_the_next_search(filled, change):
    query = vectors(1, 3)[0]
    look(filled)
    with embedstore.open(filled.store.path) as other:
        theirs = other.collection("c")
        if change == "add":
            theirs.add([{"key": "new", "vector": query}])
        elif change == "upsert":
            theirs.upsert([{"key": "5", "vector": query}])
        elif change == "update":
            theirs.update([{"key": key, "n": -1} for key in theirs.search(query, 1).keys])
        elif change == "delete":
            theirs.delete(filled.search(query, 1).keys)
        elif change == "recipe":
            theirs.index(recipe="hnsw")
        else:
            other.delete_collection("c")
            if change == "drop and make anew":
                other.collection("c", encoder="none").add([{"key": "only", "vector": query}])
        expected = theirs.search(query, 5)
    for _ in range(4):  # in a snapshot at first, and by the new look then
        hits = filled.search(query, 5)
        assert [(hit.key, hit.record) for hit in hits] == [(hit.key, hit.record) for hit in expected]
    if change in ("add", "upsert"):
        assert hits[0].score == pytest.approx(1.0)


FILTERS = [
    "n < 50", "NOT n BETWEEN 3 AND 190", {"n": {"$in": [1, 2, 3.0]}}, "n > 5 AND NOT (n = 7 OR n >= 100)", "n > 900",
]  # fmt: skip


def test_a_filter_needs_no_snapshot_once_its_columns_are_there(filled, monkeypatch):
    query = vectors(1, 7)[0]
    expected = [filled.search(query, 10, where=where) for where in FILTERS]
    look(filled)
    with no_snapshot(filled, monkeypatch):
        found = [filled.search(query, 10, where=where) for where in FILTERS]
        unseen = filled.search(query, 200, where="n < 51.5")
        page = filled.search(query, 5, offset=5, where="n < 50")
    for one, other in zip(found, expected, strict=True):
        assert [(hit.key, hit.score, hit.record) for hit in one] == [(hit.key, hit.score, hit.record) for hit in other]
        assert one.plan == other.plan
    assert sorted(map(int, unseen.keys)) == list(range(52))
    assert page.keys == expected[0].keys[5:]


@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "new"])
@pytest.mark.parametrize("change", ["add", "update", "delete", "new field", "other kind", "make anew"])
def test_under_a_filter_too_what_another_process_changes_is_seen(filled, change, seen):
    query = vectors(1, 3)[0]
    where = "n < 50" if seen else "n < 49.5"
    look(filled)
    before = filled.search(query, 5, where="n < 50")
    with pytest.raises(embedstore.UnknownField, match="'m'"):
        filled.search(query, 5, where="m = 1")
    with pytest.raises(embedstore.InvalidFilter, match="text"):
        filled.search(query, 5, where="n = 'x'")
    with embedstore.open(filled.store.path) as other:
        theirs = other.collection("c")
        if change == "add":
            theirs.add([{"key": "new", "vector": query, "n": 1}])
        elif change == "update":
            theirs.update([{"key": key, "n": 100} for key in before.keys[:2]])
        elif change == "delete":
            theirs.delete(before.keys[:2])
        elif change == "new field":
            theirs.update([{"key": before.keys[3], "m": 1}])
        elif change == "other kind":
            theirs.update([{"key": before.keys[3], "n": "x"}])
        else:
            other.delete_collection("c")
            other.collection("c", encoder="none").add([{"key": "only", "vector": query, "n": 3}])
        expected = theirs.search(query, 5, where=where)
    for _ in range(4):
        hits = filled.search(query, 5, where=where)
        assert [(hit.key, hit.record) for hit in hits] == [(hit.key, hit.record) for hit in expected]
        if change == "new field":
            assert filled.search(query, 5, where="m = 1").keys == [before.keys[3]]
        if change == "other kind":
            assert filled.search(query, 5, where="n = 'x'").keys == [before.keys[3]]
    assert hits.keys != before.keys or change == "new field"


@pytest.mark.parametrize("recipe", ["hnsw", "ivf-sq8", "binary-refine", "ivf-disk", "flat-fp16"])
def test_an_index_is_searched_by_the_last_look_as_in_a_snapshot(store, monkeypatch, recipe):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors(3000)))
    collection.index(recipe=recipe)
    collection.delete([str(i) for i in range(0, 3000, 7)])
    collection.add({"key": f"late {i}", "vector": row} for i, row in enumerate(vectors(20, 5)))
    queries = vectors(20, 1)
    look(collection)
    with monkeypatch.context() as patched:
        patched.setattr(CollectionSearch, "answer_at", lambda *_: None)
        expected = [collection.search(query, 10) for query in queries]
    with no_snapshot(collection, monkeypatch):
        found = [collection.search(query, 10) for query in queries]
    for one, other in zip(found, expected, strict=True):
        assert one.plan == other.plan and recipe in one.plan
        assert [(hit.key, hit.score) for hit in one] == [(hit.key, hit.score) for hit in other]


def test_a_damaged_record_is_no_hit_of_a_search_by_the_last_look(filled):
    query = vectors(200)[17]
    look(filled)
    name = filled.store.path / "store.db"
    with contextlib.closing(sqlite3.connect(name)) as database, database:  # no commit of ours: the mark stays
        database.execute("UPDATE records SET metadata = json_set(metadata, '$.n', 18) WHERE key = '17'")
    with pytest.raises(StoreDamaged, match="17.*is not what was written"):
        filled.search(query, 3)
    with contextlib.closing(sqlite3.connect(name)) as database, database:
        database.execute("DELETE FROM records WHERE key = '17'")
    with pytest.raises(StoreDamaged, match="is not there"):
        filled.search(query, 3)


def test_errors_are_those_of_a_snapshot(filled):
    look(filled)
    with pytest.raises(embedstore.SpaceMismatch, match=f"has 3 numbers.*{DIM}"):
        filled.search(np.ones(3, np.float32), 3)
    with pytest.raises(embedstore.SpaceNotFound):
        filled.search(vectors(1)[0], 3, space="nowhere")
    with pytest.raises(embedstore.InvalidInput, match="nothing to search for"):
        filled.search(None, 3)
    for _ in range(2):  # neither what is wrong with a filter nor what is not a field is kept
        with pytest.raises(embedstore.InvalidFilter, match="ends too early"):
            filled.search(vectors(1)[0], 3, where="n <")
        with pytest.raises(embedstore.UnknownField, match="'nowhere'"):
            filled.search(vectors(1)[0], 3, where="nowhere = 1")
    filled.store.close()
    assert len(filled.search(vectors(1)[0], 3)) == 3  # opens itself again


def test_a_reader_beside_a_writer_always_sees_what_was_acknowledged(filled):
    """Each write puts a record where the query is; the search after it must find it, by whichever way."""
    query = vectors(1, 9)[0]
    written, stop, wrong = [0], threading.Event(), []

    def write() -> None:
        with embedstore.open(filled.store.path) as mine:
            theirs = mine.collection("c")
            for turn in range(1, 60):
                theirs.upsert([{"key": "moving", "vector": query, "turn": turn}])
                written[0] = turn
                stop.wait(0.005)
        stop.set()

    look(filled)
    writer = threading.Thread(target=write)
    writer.start()
    n_searches = 0
    while not stop.is_set():
        least = written[0]
        hit = filled.search(query, 1)[0]
        if least and (hit.key != "moving" or hit.record.metadata["turn"] < least):
            wrong.append((least, hit))
        n_searches += 1
    writer.join()
    assert n_searches > 60 and not wrong


REPLACED_VIEWS = """
import gc, sys, numpy as np, embedstore
from embedstore.indexing.faiss_index import FaissIndex
from embedstore.indexing.space_view import SpaceView
from embedstore.searching import plan

def live(kind):
    return sum(isinstance(one, kind) for one in gc.get_objects())

plan.index_cost = lambda *_, **__: 0.0
rows = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
collection = embedstore.open(sys.argv[1]).collection("c", encoder="none", recipe="hnsw")
collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(rows))
gc.disable()
for turn in range(5):
    collection.index()
    collection.upsert([{"key": "moving", "vector": rows[0] + 1, "turn": turn}])
    for _ in range(3):
        collection.search(rows[1], 3)
        collection.search(rows[1], 3, where="n < 200")
    collection.search_batch(rows[:2], 3)
print(live(SpaceView), live(FaissIndex))
collection.index(recipe="flat")
collection.search(rows[1], 3)
print(live(FaissIndex))
"""


def test_a_view_that_is_replaced_is_let_go_without_the_garbage_collector(tmp_path):
    """It may hold a large index, of whose memory the collector knows nothing."""
    done = subprocess.run(
        [sys.executable, "-c", REPLACED_VIEWS, tmp_path / "store"], capture_output=True, text=True, check=False,
        env={**os.environ, "EMBEDSTORE_BUILD": "0"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, ["1", "1", "0"]), done.stderr


def test_an_error_of_the_driver_is_the_stores_by_either_way(filled):
    look(filled)
    with filled.store.reading(), contextlib.ExitStack() as files:  # the connection that is kept is in use
        with pytest.raises(OSError):
            while True:
                files.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(StorageFailed, match="cannot be opened"):
            filled.search(vectors(1)[0], 3)
    assert len(filled.search(vectors(1)[0], 3)) == 3


def test_a_connection_that_comes_back_after_the_store_was_closed_is_not_used_again(tmp_path):
    for name in ("old", "new"):
        with embedstore.open(tmp_path / name) as made:
            made.collection("c", encoder="none").add([{"key": name, "vector": [1.0, 2.0]}])
    with embedstore.open(tmp_path / "old") as opened:
        collection = opened.collection("c")
        assert [collection.search([1.0, 2.0], 1).keys for _ in range(3)] == [["old"]] * 3
        with opened.reading():
            opened.close()
        (tmp_path / "old").rename(tmp_path / "gone")
        (tmp_path / "new").rename(tmp_path / "old")
        assert [collection.search([1.0, 2.0], 1).keys for _ in range(3)] == [["new"]] * 3


def test_many_hits_are_read_in_parts(filled):
    look(filled)
    assert len(filled.search(vectors(1)[0], 100_000)) == 200
