"""What a review found: each was wrong once."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

import embedstore
from embedstore.indexing.cachefile import read_manifest
from embedstore.searching import plan
from embedstore.storage import catalog, sqlite_statements
from embedstore.storage.writing import CollectionWriter


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)


def vectors(n=1500, dim=16):
    return np.random.default_rng(0).standard_normal((n, dim)).astype(np.float32)


def filled(store, **options):
    collection = store.collection("c", encoder="none", **options)
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(vectors()))
    return collection


@pytest.mark.parametrize(("first", "second"), [("ivf-sq8", "hnsw"), ("hnsw", "ivf"), ("hnsw", "flat-fp16")])
def test_searches_go_on_between_a_change_of_recipe_and_its_index(store, first, second):
    collection = filled(store, recipe=first)
    collection.index()
    collection.search(vectors()[0])
    with store.database.write() as transaction:
        writer = CollectionWriter(transaction, "c")
        writer.set_recipe("vector", second)
        writer.finish()
    assert collection.search(vectors()[5], 1).keys == ["5"]
    assert collection.search_batch(vectors()[:9], 1)[8].keys == ["8"]


FORKED = (
    "import os, sys, signal, numpy as np, embedstore\n"
    "from embedstore.searching import plan\n"
    "plan.index_cost = lambda *_, **__: 0.0\n"
    "m = np.random.default_rng(0).standard_normal((1500, 16)).astype('f4')\n"
    "store = embedstore.open(sys.argv[1]); c = store.collection('c', encoder='none')\n"
    "c.add({'key': str(i), 'vector': row} for i, row in enumerate(m))\n"
    "c.index(recipe=sys.argv[2]); c.search_batch(m, 3); c.neighbours(m, 3)\n"
    "child = os.fork()\n"
    "if child == 0:\n"
    "    signal.alarm(30)\n"
    "    right = [h.keys[0] for h in c.search_batch(m[:200], 1)] == [str(i) for i in range(200)]\n"
    "    c.index(recipe=sys.argv[2]); c.neighbours(m, 3)\n"
    "    os._exit(0 if right else 1)\n"
    "print(os.waitpid(child, 0)[1])\n"
)


@pytest.mark.parametrize("recipe", ["flat", "hnsw", "ivf-sq8"])
def test_a_forked_child_searches_in_batches_and_builds(tmp_path, recipe):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, tmp_path / "store", recipe], capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr


FORKED_WHILE_IMPORTING = (
    "import os, signal, sys, threading, time, numpy as np, embedstore\n"
    "m = np.random.default_rng(0).standard_normal((1500, 16)).astype('f4')\n"
    "store = embedstore.open(sys.argv[1]); c = store.collection('c', encoder='none')\n"
    "c.add({'key': str(i), 'vector': row} for i, row in enumerate(m))\n"
    "assert 'faiss' not in sys.modules\n"
    "asking = threading.Thread(target=lambda: c.search_batch(m, 1)); asking.start()\n"
    "while 'faiss' not in sys.modules:\n"
    "    time.sleep(0.0002)\n"
    "started = time.monotonic(); child = os.fork()\n"
    "if child == 0:\n"
    "    signal.alarm(30)\n"
    "    os._exit(0 if len(c.search_batch(m[:20], 1)) == 20 else 1)\n"
    "print(os.waitpid(child, 0)[1], time.monotonic() - started < 9); asking.join()\n"
)


def test_a_fork_while_a_thread_imports_faiss_leaves_nothing_locked(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED_WHILE_IMPORTING, tmp_path / "store"], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "0 True"), done.stderr


def test_an_older_snapshot_does_not_publish_over_a_newer_cache(store, monkeypatch):
    from embedstore.indexing import space_cache

    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 0)
    collection = filled(store, recipe="flat-fp16")
    folder = store.path / "cache" / "space-1"
    with store.reading() as transaction:
        owner = catalog.require_collection(transaction, "c")
        row = catalog.spaces_of(transaction, owner.collection_id)["vector"]
        with embedstore.open(store.path) as other:
            other.collection("c").add([{"key": "late", "vector": vectors()[0] * 2}])
            other.collection("c").index()
            newest = read_manifest(folder)
        view = store.search.space_cache(1).view(transaction, owner, row)
        assert view.n_alive == 1500
    assert read_manifest(folder) == newest
    assert collection.search(vectors()[0], 2).plan.startswith("flat-fp16 over 1,501")


def test_integers_next_to_the_last_exact_one_are_told_apart(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add([{"key": str(i), "vector": [1.0], "n": 2**53 + i} for i in (-1, 0, 1, 2)])
    for where in (f"n = {2**53}", f"n > {2**53}", f"n >= {2**53 + 1}", f"n < {2**53}"):
        assert len(collection.search([1.0], where=where)) == collection.count(where=where), where


def test_a_collection_object_follows_one_that_was_made_anew_with_another_encoder(store):
    collection = store.collection("c", encoder="letters")
    collection.add([{"key": "a", "text": "abc"}])
    with embedstore.open(store.path) as other:
        other.delete_collection("c")
        other.collection("c", encoder="none").add([{"key": "x", "vector": [1.0, 2.0]}])
    collection.add([{"key": "y", "vector": [2.0, 1.0]}])
    assert [record.key for record in collection.records()] == ["x", "y"]


def test_what_filters_select_is_not_kept_of_older_commits(store):
    collection = filled(store)
    cache = store.search.space_cache(1)
    for i in range(5):
        collection.search(vectors()[0], where=f"n < {500 + i}")
    assert len(cache._selections) == 5
    collection.add([{"key": "new", "vector": vectors()[0], "n": 0}])
    collection.search(vectors()[0], where="n < 500")
    assert len(cache._selections) == 1


def test_a_batch_of_more_text_than_one_value_holds_is_written_in_pieces(store, monkeypatch):
    monkeypatch.setattr(sqlite_statements, "_MOST_CHARACTERS", 5_000)
    collection = store.collection("c", encoder="none")
    texts = [f"{i} " + "x" * (i * 7 % 900) for i in range(300)]
    collection.add({"key": f"k{i}", "text": text, "n": i} for i, text in enumerate(texts))
    assert [record.content for record in collection.records()] == texts
    assert store.verify().problems == []


def test_hits_can_be_copied_before_they_are_looked_at(store):
    hits = filled(store).search_batch(vectors()[:2], 2)[1]
    copied = copy.deepcopy(hits)
    store.close()
    assert copied.keys == hits.keys == [hit.key for hit in hits]


def test_what_is_shown_of_a_tuning_can_be_changed_without_changing_it(store):
    collection = filled(store)
    collection.tune(recall=0.9, recipes=["hnsw"])
    collection.space().tuning()["settings"]["efSearch"] = 1
    collection.space().tuning_curve()[0]["recall"] = 7
    assert collection.space().tuning()["settings"].get("efSearch") != 1
    assert collection.space().tuning_curve()[0]["recall"] != 7


def test_a_deleted_note_of_the_newest_commit_is_written_again(store):
    collection = filled(store)
    (store.path / "HEAD").unlink()
    collection.add([{"key": "new", "vector": vectors()[0]}])
    assert (store.path / "HEAD").exists()
