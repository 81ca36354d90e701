"""``verify`` finds everything that is not as it was written, and nothing else."""

import os
import shutil
import sqlite3
from contextlib import closing

import numpy as np
import pytest

import embedstore

DIM = 8


@pytest.fixture
def filled(any_store):
    """A store with updates, deletions, two spaces and caches."""
    collection = any_store.collection("c", encoder="none", dim=DIM)
    matrix = np.random.default_rng(0).standard_normal((60, DIM)).astype(np.float32)
    collection.add(
        {"key": f"k{i}", "vector": row, "text": f"word{i}", "n": i, "deep": {"x": i / 2}}
        for i, row in enumerate(matrix)
    )
    collection.add_space("other", dim=2, metric="dot")
    collection.upsert({"key": f"k{i}", "vectors": {"other": [i, 1.0]}, "text": f"again{i}"} for i in range(0, 60, 7))
    collection.update([{"key": "k3", "n": 300}])
    collection.delete(["k5", "k7"])
    return any_store


def problems(store):
    return [(one.part, one.what) for one in store.verify().problems]


def test_a_whole_store_has_no_problems_and_is_counted(filled):
    report = filled.verify()
    assert report.ok
    assert (report.n_collections, report.n_records, report.n_spaces, report.n_vectors) == (1, 58, 2, 66)


def test_an_empty_store_is_whole(any_store):
    any_store.collection("c", encoder="none").create()
    report = any_store.verify()
    assert (report.ok, report.n_collections, report.n_records) == (True, 1, 0)


def test_a_missing_store_is_no_damage(tmp_path):
    with pytest.raises(embedstore.StoreNotFound), embedstore.open(tmp_path / "none") as store:
        store.verify()


@pytest.mark.parametrize(
    ("statement", "part", "what"),
    [
        ("UPDATE records SET content = 'other' WHERE key = 'k9'", "record", "not what was written"),
        ("UPDATE records SET uri = 'file:x' WHERE key = 'k9'", "record", "not what was written"),
        ("DELETE FROM vectors WHERE record_id IN (SELECT record_id FROM records WHERE key = 'k9')", "space",
         "vectors; "),
        ("UPDATE commits SET n_records = n_records + 1", "collection", "were written"),
        ("UPDATE commits SET last_serial = 1", "collection", "not given out yet"),
        ("UPDATE commits SET spaces = '{}'", "space", "not given out yet"),
        ("UPDATE spaces SET recipe = 'none'", "space", "there is no recipe"),
        ("UPDATE spaces SET fingerprint = 'ab' WHERE name = 'vector'", "space", "but no encoder"),
        ("DELETE FROM fields WHERE kind = 'real'", "record", "not among the fields"),
        ("DELETE FROM commits WHERE commit_key = 1099511627778", "log", "its commits are not those"),
        ("UPDATE commits SET number = -commit_key", "log", "its commits are not those"),
        ("UPDATE commits SET last_serial = 1 WHERE commit_key = 1099511627777", "log", "not what was written"),
        ("DELETE FROM changed_records", "log", "is not what was written"),
        ("DELETE FROM dead_vectors", "log", "is not what was written"),
        ("UPDATE collections SET default_space = 'x'", "collection", "is missing"),
        ("DELETE FROM store_info WHERE name = 'needs'", "database", "is missing"),
        ("UPDATE store_info SET value = '0' WHERE name = 'last_space_id'", "database", "was given out"),
    ],
)  # fmt: skip
def test_what_was_changed_behind_the_stores_back_is_found(filled, statement, part, what):
    with filled.database.write() as transaction:
        transaction.run(statement)
    found = problems(filled)
    assert any(one == part and what in text for one, text in found), found


def test_nothing_is_changed_by_verifying_a_damaged_store(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "text": "x"}])
    store.close()
    with closing(sqlite3.connect(store.path / "store.db")) as database, database:
        database.execute("UPDATE records SET content = 'y'")
    before = (store.path / "store.db").read_bytes()
    assert [one.part for one in store.verify().problems] == ["record"]
    store.close()
    assert (store.path / "store.db").read_bytes() == before


def test_every_problem_of_many_is_counted(store):
    collection = store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "text": f"{i}"} for i in range(1500))
    with store.database.write() as transaction:
        transaction.run("UPDATE records SET content = 'other'")
    found = store.verify().problems
    assert len(found) == 1001
    assert "500 more like these" in found[-1].what


def test_damaged_caches_are_told_apart_from_lost_data(store):
    matrix = np.random.default_rng(0).standard_normal((300, DIM)).astype(np.float32)
    collection = store.collection("c", encoder="none", recipe="hnsw")
    collection.add({"key": str(i), "vector": row, "text": f"w{i}"} for i, row in enumerate(matrix))
    collection.index()
    collection.refresh()
    store.close()
    files = [path for path in (store.path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(files) == 6
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        report = store.verify()
        assert [one.part for one in report.problems] == ["cache"], path
        assert report.lost == []
        path.write_bytes(content)
    assert store.verify().ok


def test_a_deleted_cache_is_no_problem(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "text": "x"}])
    collection.refresh()
    shutil.rmtree(store.path / "cache")
    assert store.verify().ok


def test_verify_sees_one_snapshot_while_another_process_writes(store, tmp_path):
    import subprocess
    import sys

    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 2.0], "text": "x"}])
    script = (
        "import embedstore, sys\n"
        "c = embedstore.open(sys.argv[1]).collection('c')\n"
        "for i in range(150):\n"
        "    c.upsert([{'key': f'k{i % 20}', 'vector': [i, 1.0], 'text': f'w{i}', 'n': i}])\n"
        "    if i % 5 == 0: c.delete([f'k{i % 20}'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, os.fspath(store.path)]) as writer:
        n = 0
        while writer.poll() is None:
            report = store.verify()
            assert report.ok, report.problems[0]
            n += 1
    assert writer.returncode == 0
    assert n > 3


def test_a_schema_whose_damage_sqlite_cannot_put_into_words_is_told_as_damage(tmp_path):
    """The driver raises UnicodeDecodeError for a message that quotes the damaged bytes."""
    with embedstore.open(tmp_path / "store") as store:
        store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    path = tmp_path / "store" / "store.db"
    content = path.read_bytes()
    assert content.count(b"CREATE TABLE vectors (") == 1
    path.write_bytes(content.replace(b"CREATE TABLE vectors (", b"CREATE TABLE vectors \xa0"))
    with pytest.raises(UnicodeDecodeError), closing(sqlite3.connect(path)) as database:
        database.execute("SELECT * FROM records")
    with embedstore.open(tmp_path / "store") as store:
        report = store.verify()
        assert len(report.problems) == 1 and "store.db" in str(report.problems[0])
        collection = store.collection("c")
        for ask in (lambda: collection.search([1.0]), lambda: len(collection), lambda: collection.delete(["a"])):
            with pytest.raises(embedstore.StoreDamaged, match="store.db.*embedstore verify"):
                ask()
