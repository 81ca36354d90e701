"""``compact`` gives back room and loses nothing: the same answers, shorter logs, for every process."""

import subprocess
import sys

import numpy as np
import pytest

from embedstore.indexing import space_cache
from embedstore.searching import plan

DIM = 8
LOGS = ("changed_records", "dead_vectors", "commits")


@pytest.fixture
def worn(any_store, monkeypatch):
    """A store much of which was updated and deleted, with an HNSW index; and its vectors by key."""
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    rng = np.random.default_rng(0)
    held = {f"k{i}": rng.standard_normal(DIM).astype(np.float32) for i in range(600)}
    collection = any_store.collection("c", encoder="none", recipe="hnsw")
    collection.add({"key": key, "vector": row, "text": f"{key} {'filling ' * 200}"} for key, row in held.items())
    collection.index()
    for i in range(0, 600, 4):
        held[f"k{i}"] = rng.standard_normal(DIM).astype(np.float32)
    collection.upsert({"key": f"k{i}", "vector": held[f"k{i}"], "text": f"k{i}"} for i in range(0, 600, 4))
    collection.update({"key": f"k{i}", "n": i} for i in range(0, 600, 3))
    gone = [f"k{i}" for i in range(300, 600) if i % 5]
    collection.delete(gone)
    for key in gone:
        del held[key]
    collection.search("k8", mode="text")
    return any_store, held


def assert_answers(store, held):
    collection = store.collection("c")
    assert {one.key for one in collection.records()} == set(held)
    keys = list(held)
    matrix = np.stack([held[key] for key in keys])
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    for i in range(0, len(keys), 40):
        wanted = [keys[j] for j in np.argsort(-(units @ units[i]))[:5]]
        assert collection.search(matrix[i], 5).keys == wanted
    assert collection.search("k8", mode="text").keys == ["k8"]
    assert len(collection.search("k301", mode="text")) == 0
    assert collection.count(where="n >= 0") == sum(int(key[1:]) % 3 == 0 for key in keys)


def n_logged(store):
    with store.reading() as transaction:
        return [transaction.one(f"SELECT count(*) FROM {name}")[0] for name in LOGS]


def test_answers_stay_the_same(worn):
    store, held = worn
    assert_answers(store, held)
    before = store.collection("c").stats()
    store.compact()
    assert_answers(store, held)
    after = store.collection("c").stats()
    assert (after["digest"], after["n_records"]) == (before["digest"], before["n_records"])
    assert store.verify().ok
    store.close()
    assert_answers(store, held)


def test_logs_are_pruned_and_what_was_removed_is_counted(worn):
    store, _ = worn
    before = n_logged(store)
    assert min(before[:2]) > 100
    report = store.compact()
    assert n_logged(store) == [0, 0, 1]  # the newest commit stays, to know caches by
    assert report.n_log_rows == sum(before) - 1
    assert store.compact().n_log_rows == 0


def test_the_index_stays_usable(worn):
    store, held = worn
    assert store.collection("c").search(held["k8"]).plan.startswith("hnsw")
    store.compact()
    assert store.collection("c").search(held["k8"]).plan.startswith("hnsw")


def test_the_file_shrinks(worn):
    store, _ = worn
    if not store.database.address.endswith("store.db"):
        pytest.skip("PostgreSQL gives back room to its own tables")
    store.close()
    before = (store.path / "store.db").stat().st_size
    report = store.compact()
    store.close()
    after = (store.path / "store.db").stat().st_size
    assert after < before * 0.8
    assert report.bytes_after < report.bytes_before


def test_what_others_left_behind_is_swept(worn):
    store, _ = worn
    store.collection("gone", encoder="none").add([{"key": "a", "vector": [1.0], "text": "x"}])
    store.collection("gone").refresh()
    cache = store.path / "cache"
    for name in ("space-1/MANIFEST.corrupt", "space-1/exact-0.tmp", "keywords-9.db", "keywords-1.db.corrupt"):
        (cache / name).write_bytes(b"x")
    (cache / "space-77").mkdir()
    (cache / "space-77" / "MANIFEST").write_bytes(b"x")
    store.compact()
    names = {path.name for path in cache.rglob("*")}
    assert not names & {"MANIFEST.corrupt", "exact-0.tmp", "keywords-9.db", "keywords-1.db.corrupt", "space-77"}


def test_an_open_store_of_another_process_goes_on_across_a_compact(store, monkeypatch):
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 0)
    collection = store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "vector": [i + 1.0, 1.0], "text": f"word{i}", "n": i} for i in range(200))
    script = (
        "import embedstore, sys\n"
        "c = embedstore.open(sys.argv[1]).collection('c')\n"
        "for line in sys.stdin:\n"
        "    print(eval(line), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:

        def asked(line: str) -> str:
            other.stdin.write(line + "\n")
            other.stdin.flush()
            return other.stdout.readline().strip()

        assert asked("c.search([8.0, 1.0], 1).keys, c.search('word7', mode='text').keys, c.count('n < 10')") == (
            "(['k7'], ['k7'], 10)"
        )
        for step in range(4):
            collection.upsert({"key": f"k{i}", "vector": [-i - step, 1.0], "text": f"s{step}w{i}"} for i in range(50))
            collection.delete([f"k{100 + step}"])
            store.compact()
            assert asked(f"c.search([{-20.0 - step}, 1.0], 1).keys") == "['k20']"
            assert asked(f"c.search('s{step}w9', mode='text').keys") == "['k9']"
            assert asked(f"c.search('word{100 + step}', mode='text').keys") == "[]"
            assert asked(f"c.add([{{'key': 'mine{step}', 'vector': [0.0, {step}.5]}}]).added") == "1"
            assert collection.search([0.0, 1.0], 300).keys.count(f"mine{step}") == 1
            assert store.verify().ok
        other.stdin.close()
        assert other.wait() == 0


def test_a_snapshot_that_another_thread_reads_is_not_disturbed(store):
    collection = store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "text": "x" * 2000} for i in range(3000))
    stream = collection.records()
    first = [next(stream).key for _ in range(10)]
    collection.delete([f"k{i}" for i in range(5, 2900)])
    store.compact()
    rest = [one.key for one in stream]
    assert first + rest == [f"k{i}" for i in range(3000)]
    assert len(collection) == 105
    assert store.verify().ok
