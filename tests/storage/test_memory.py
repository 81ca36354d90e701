"""What a connection remembers of the catalog holds exactly as long as nobody else has committed."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import embedstore
from embedstore import DuplicateKey
from embedstore.storage.head import read_head

ELSEWHERE = (
    "import embedstore, sys\n"
    "with embedstore.open(sys.argv[1]) as store:\n"
    "    for line in sys.argv[2:]:\n"
    "        exec(line)\n"
)


def elsewhere(store, *lines: str) -> None:
    """Run lines of code on the store in another process."""
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, store.path, *lines], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def points(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 0.0], "x": 1}])
    return collection


def test_records_and_fields_written_by_another_process_are_known_at_once(store):
    collection = points(store)
    assert collection.search([1.0, 0.0], where="x = 1").keys == ["a"]
    elsewhere(store, "store.collection('c').add([{'key': 'b', 'vector': [1, 1], 'y': 'new'}])")
    assert len(collection) == 2
    assert collection.search([1.0, 0.0], where="y = 'new'").keys == ["b"]
    collection.add([{"key": "c", "vector": [0.0, 1.0], "y": "new"}])
    assert collection.search([0.0, 1.0], where="y = 'new'").keys == ["c", "b"]
    assert store.verify().problems == []


def test_a_collection_made_anew_by_another_process_is_not_taken_for_the_old(store):
    collection = points(store)
    elsewhere(
        store,
        "store.delete_collection('c')",
        "store.collection('c', encoder='none', metric='dot').add([{'key': 'z', 'vector': [1, 2, 3]}])",
    )
    collection.add([{"key": "b", "vector": [3.0, 2.0, 1.0]}])
    assert [record.key for record in collection.records()] == ["z", "b"]
    assert collection.stats()["fields"] == {}
    assert store.verify().problems == []


def test_a_space_added_by_another_process_is_written_to(store):
    collection = points(store)
    elsewhere(store, "store.collection('c').add_space('other', dim=1)")
    collection.add([{"key": "b", "vector": [0.0, 1.0], "vectors": {"other": [5.0]}}])
    assert collection.search([1.0], space="other").keys == ["b"]
    assert store.verify().problems == []


def test_what_was_rolled_back_is_forgotten(store):
    collection = points(store)
    with pytest.raises(RuntimeError), store.database.write() as transaction:
        from embedstore.storage.writing import CollectionWriter

        writer = CollectionWriter(transaction, "c")
        writer.delete([row[0] for row in transaction.all("SELECT record_id FROM records")])
        writer.finish()
        raise RuntimeError
    assert (len(collection), collection.stats()["n_records"]) == (1, 1)
    collection.add([{"key": "b", "vector": [0.0, 1.0]}])
    assert collection.stats()["commits"] == 2
    assert store.verify().problems == []


@pytest.mark.parametrize("n_new", [0, 3, 20])
def test_a_taken_key_is_named_with_its_place_however_many_are_added(any_store, n_new):
    collection = points(any_store)
    new = [{"key": f"n{i}", "vector": [1.0, 1.0]} for i in range(n_new)]
    with pytest.raises(DuplicateKey, match=f"row {n_new + 1}, field 'key': key 'a' is in the collection already"):
        collection.add([*new, {"key": "a", "vector": [1.0, 1.0]}, {"key": "last", "vector": [1.0, 1.0]}])
    assert [record.key for record in collection.records()] == ["a"]
    assert any_store.verify().problems == []


def test_commits_are_numbered_over_all_collections_and_through_deletions(store):
    for name in ("one", "two"):
        points_of = store.collection(name, encoder="none")
        for i in range(3):
            points_of.add([{"key": str(i), "vector": [1.0]}])
    before = read_head(store.path)
    store.delete_collection("two")
    after = read_head(store.path)
    assert before is not None and after is not None
    assert after.number == before.number + 1
    store.close()
    with embedstore.open(store.path) as again:
        again.collection("one").add([{"key": "more", "vector": [1.0]}])
        newest = read_head(store.path)
        assert newest is not None and newest.number == after.number + 1
        assert again.database.lost_commits() is None
    with closing(sqlite3.connect(store.path / "store.db")) as database, database:
        database.execute("DELETE FROM commits WHERE commit_key = (SELECT max(commit_key) FROM commits)")
    assert "was acknowledged" in (embedstore.open(store.path).database.lost_commits() or "")
