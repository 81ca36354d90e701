"""Indexes are built by processes of their own: nobody waits, and nothing is lost when one dies."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import embedstore
from embedstore.indexing import staleness
from embedstore.indexing.cachefile import read_manifest
from embedstore.searching import plan

N, DIM = 6_000, 16


@pytest.fixture
def matrix():
    return np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)


def filled(path, matrix, url=None):
    store = embedstore.open(path, database=url, build_in_background=True)
    collection = store.collection("c", encoder="none", recipe="hnsw")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    return store, collection


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_a_search_begins_the_build_and_answers_exactly_meanwhile(kind, request, tmp_path, matrix):
    url = None if kind == "sqlite" else request.getfixturevalue("fresh_database")
    store, collection = filled(tmp_path / "store", matrix, url)
    hits = collection.search(matrix[3], 1)
    assert (hits.keys, hits.exact) == (["3"], True)
    assert store.wait_for_builds(60)
    hits = collection.search(matrix[3], 1)
    assert hits.keys == ["3"]
    assert hits.plan.startswith("hnsw over 6,000 vectors")
    store.close()


def test_rows_that_outgrow_the_index_are_taken_into_a_new_one(tmp_path, matrix, monkeypatch):
    monkeypatch.setattr(staleness, "_STALE_ROWS", 100)
    store, collection = filled(tmp_path / "store", matrix[:500])
    collection.index()
    collection.add({"key": f"n{i}", "vector": row} for i, row in enumerate(matrix[500:700]))
    hits = collection.search(matrix[600], 1)
    assert hits.keys == ["n100"]
    assert "exact scan of 200 newer vectors" in hits.plan
    assert store.wait_for_builds(60)
    assert collection.search(matrix[600], 1).plan.startswith("hnsw over 700 vectors")
    store.close()


def test_an_ingest_begins_the_build_of_what_it_outgrew(tmp_path, matrix):
    store = embedstore.open(tmp_path / "store", build_in_background=True)
    collection = store.collection("c", encoder="none", recipe="hnsw")
    collection.ingest([{"key": str(i), "vector": row.tolist()} for i, row in enumerate(matrix)], vector="vector")
    assert store.wait_for_builds(60)
    assert read_manifest(store.path / "cache" / "space-1")["index"]["n_vectors"] == N
    store.close()


def test_a_builder_that_is_killed_leaves_the_old_cache_and_another_finishes(tmp_path, matrix):
    store, collection = filled(tmp_path / "store", matrix)
    store.close()
    for failpoint in ("cache.begun", "cache.exact", "cache.labels", "cache.index", "cache.manifest_synced"):
        told = f'{{"path": "{store.path}", "database": null, "collection": "c", "space": "vector"}}'
        done = subprocess.run(
            [sys.executable, "-m", "embedstore.building"], input=told, text=True, capture_output=True, check=False,
            env={**os.environ, "EMBEDSTORE_FAILPOINT": failpoint},
        )  # fmt: skip
        assert done.returncode == -signal.SIGKILL, done.stderr
        with embedstore.open(store.path) as again:
            assert again.collection("c").search(matrix[7], 1).keys == ["7"]
            assert not again.collection("c").stats()["spaces"][0]["building"]
    with embedstore.open(store.path, build_in_background=True) as again:
        again.collection("c").search(matrix[7], 1)
        assert again.wait_for_builds(60)
        assert again.collection("c").search(matrix[7], 1).plan.startswith("hnsw")
        assert again.verify().ok
    names = {path.suffix for path in (store.path / "cache" / "space-1").iterdir()}
    assert ".tmp" not in names


def test_one_space_is_not_built_twice_at_once_and_writers_do_not_wait(tmp_path, matrix):
    store, collection = filled(tmp_path / "store", matrix)
    cache = store.search.space_cache(1)
    from embedstore.storage.files import make_private
    from embedstore.storage.locks import ProcessLock

    make_private(tmp_path / "store" / "cache" / "space-1")
    with ProcessLock(tmp_path / "store" / "cache" / "space-1" / "build.lock").held(1):
        other = embedstore.open(store.path)
        assert other.collection("c").stats()["spaces"][0]["building"]
        with pytest.raises(embedstore.StoreLocked):
            other.collection("c").index(wait=False)
        started = time.monotonic()
        collection.add([{"key": "late", "vector": matrix[0] * 2}])
        assert time.monotonic() - started < 5
        assert other.collection("c").search(matrix[0], 2).keys == ["0", "late"]
        other.close()
    assert not cache.is_building()
    store.close()


def test_a_process_that_only_reads_begins_the_next_build_too(tmp_path, matrix, monkeypatch):
    from embedstore import building

    monkeypatch.setattr(staleness, "_STALE_ROWS", 100)
    monkeypatch.setattr(building, "_BREATH_SECONDS", 0.2)
    store, collection = filled(tmp_path / "store", matrix[:300])
    collection.search(matrix[0], 1)
    assert store.wait_for_builds(60)
    assert collection.search(matrix[0], 1).plan.startswith("hnsw over 300")
    collection.add({"key": f"n{i}", "vector": row} for i, row in enumerate(matrix[300:600]))
    until = time.monotonic() + 60
    while not collection.search(matrix[0], 1).plan.startswith("hnsw over 600") and time.monotonic() < until:
        time.sleep(0.1)
    assert collection.search(matrix[0], 1).plan.startswith("hnsw over 600")
    store.close()


def test_a_builder_that_fails_is_told_of(tmp_path, matrix, monkeypatch, caplog):
    store, collection = filled(tmp_path / "store", matrix)
    with store.database.write() as transaction:
        transaction.run("UPDATE vectors SET vec = zeroblob(64) WHERE vector_id = (SELECT max(vector_id) FROM vectors)")
    store.begin_build(*_rows(store))
    assert store.wait_for_builds(60)
    store.begin_build(*_rows(store))
    assert "could not be built in the background" in caplog.text
    assert "store.db" in caplog.text
    store.close()


def _rows(store):
    from embedstore.storage import catalog

    with store.reading() as transaction:
        owner = catalog.require_collection(transaction, "c")
        return owner, catalog.spaces_of(transaction, owner.collection_id)["vector"]


def test_nothing_is_begun_where_that_is_not_wanted(tmp_path, matrix):
    with embedstore.open(tmp_path / "store", build_in_background=False) as store:
        collection = store.collection("c", encoder="none", recipe="hnsw")
        collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
        collection.search(matrix[3], 1)
        assert not store.builds_in_background
        assert read_manifest(store.path / "cache" / "space-1") is None
