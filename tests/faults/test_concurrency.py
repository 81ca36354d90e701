"""Processes, threads and forks share a store; locks of the dead are free, those of the living are named."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shared import ROOT

import embedstore
from embedstore import DuplicateKey, StoreLocked
from faults.concurrency import ANY, History, freshness, run_parts
from faults.sharing import run

KINDS = ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def url(request):
    """None for SQLite, or the URL of an empty PostgreSQL database."""
    return request.getfixturevalue("fresh_database") if request.param == "postgres" else None


def test_the_judge_tells_possible_states_from_impossible_ones():
    history = History(begun=3, acknowledged=2, absent_after={-1, 2})
    assert history.allows(None, acknowledged=1)
    assert history.allows(None, acknowledged=-1)
    assert not history.allows(None, acknowledged=3)
    assert history.allows(3, acknowledged=2)
    assert history.allows(ANY, acknowledged=2)
    assert not history.allows(2, acknowledged=0)
    assert not history.allows(1, acknowledged=2)
    assert not history.allows(4, acknowledged=2)


def test_writers_readers_and_a_builder_agree_on_one_history(tmp_path, url):
    caches = [tmp_path / "one"] if url is None else [tmp_path / "one", tmp_path / "two"]
    report = run_parts(tmp_path, caches, url, seconds=3, seed=1, n_writers=2, n_readers=2)
    assert report["faults"] == []
    assert sum(report["done"].values()) > 50


def test_what_one_process_has_acknowledged_another_finds_at_once(tmp_path, url):
    assert freshness([tmp_path / "one", tmp_path / "two"] if url else [tmp_path / "one"], url, 12) == []


def test_threads_share_a_store_that_is_closed_under_them(tmp_path, url):
    assert run("threads", tmp_path / "store", url, 3) == []


def test_children_forked_under_load_work_on(tmp_path, url):
    assert run("forks", tmp_path / "store", url, 6) == []


def test_a_fork_that_outlives_the_writer_does_not_keep_its_lock(tmp_path):
    script = (
        "import embedstore, os, sys, threading, time\n"
        "store = embedstore.open(sys.argv[1])\n"
        "store.ensure()\n"
        "def write():\n"
        "    with store.database.write():\n"
        "        time.sleep(60)\n"
        "threading.Thread(target=write, daemon=True).start()\n"
        "time.sleep(0.3)\n"
        "import embedstore.forking\n"
        "embedstore.forking._PATIENCE_SECONDS = 0.1\n"  # a write that lasts is not waited for
        "if os.fork() == 0:\n"
        "    print('forked', os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "s")], stdout=subprocess.PIPE, text=True
    ) as writer:
        child = int(writer.stdout.readline().split()[1])
        impatient = embedstore.open(tmp_path / "s", lock_timeout=0.1)
        with pytest.raises(StoreLocked, match=f"process {writer.pid} "):
            impatient.collection("c", encoder="none").create()
        writer.kill()
        writer.wait()
        try:
            with embedstore.open(tmp_path / "s", lock_timeout=1) as store:
                store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
        finally:
            os.kill(child, signal.SIGKILL)
        impatient.close()


# ---- an acknowledgement that is lost


@pytest.mark.parametrize("verb", ["add", "upsert"])
def test_a_writer_killed_between_commit_and_reply_leaves_one_copy(tmp_path, url, verb):
    records = [{"key": f"k{i}", "text": f"text {i}", "vector": [1.0, i + 1.0], "n": i} for i in range(3)]
    with embedstore.open(tmp_path / "s", database=url) as store:
        store.collection("c", encoder="none", dim=2).create()
        script = (
            "import embedstore, json, sys\n"
            "store = embedstore.open(sys.argv[1], database=sys.argv[2] or None)\n"
            "getattr(store.collection('c'), sys.argv[3])(json.loads(sys.argv[4]))\n"
            "print('acknowledged')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "s"), url or "", verb, json.dumps(records)],
            env={**os.environ, "EMBEDSTORE_FAILPOINT": "write.committed"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (-9, ""), done.stderr
        collection = store.collection("c")
        with pytest.raises(DuplicateKey, match=r"row 1, field 'key': key 'k0' is in the collection already"):
            collection.add(records)
        again = collection.upsert(records)
        assert (again.added, again.updated, again.unchanged) == (0, 0, 3)
        assert [record.key for record in collection.records()] == ["k0", "k1", "k2"]
        assert collection.search("text", mode="text", k=9).keys == ["k0", "k1", "k2"]
        assert len(collection.search([1.0, 1.0], k=9)) == 3
        assert store.verify().problems == []


# ---- who holds the lock

HOLDER = (
    "import embedstore, sys\n"
    "from embedstore.storage import catalog\n"
    "store = embedstore.open(sys.argv[1], database=sys.argv[2] or None)\n"
    "with store.database.write() as transaction:\n"
    "    transaction.run('UPDATE collections SET log_floor = log_floor')\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def test_a_living_holder_is_waited_for_and_a_dead_one_is_not(tmp_path, url):
    folder = str(tmp_path / "s")
    with embedstore.open(folder, database=url, lock_timeout=0.3) as store:
        collection = store.collection("c", encoder="none")
        collection.add([{"key": "a", "vector": [1.0]}])
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, folder, url or ""], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(StoreLocked, match="is being written to by"):
                collection.delete(["a"])
            refused = subprocess.run(
                [sys.executable, "-m", "embedstore", "--store", folder, *([] if url is None else ["--database", url]),
                 "--timeout", "0.3", "delete", "c", "a"],
                capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            assert (refused.returncode, refused.stdout) == (3, "")
            who = f"process {holder.pid} (-c); waited 0.3 s" if url is None else "another process"
            assert f"is being written to by {who}" in refused.stderr
            assert refused.stderr.count("\n") == 1
            assert collection.count() == 1  # readers do not wait
            with embedstore.open(folder, database=url, lock_timeout=10) as patient:
                assert patient.collection("c").count() == 1
                holder.kill()
                holder.wait()
                began = time.monotonic()
                assert patient.collection("c").delete(["a"]) == 1
                assert time.monotonic() - began < 1


# ---- two machines


@pytest.mark.postgres
def test_two_machines_keep_caches_of_their_own(tmp_path, fresh_database):
    def files(folder: Path) -> dict[str, tuple[int, int]]:
        return {
            str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()
        }  # fmt: skip

    one, two = (embedstore.open(tmp_path / name, database=fresh_database) for name in ("one", "two"))
    with one, two:
        here = one.collection("c", encoder="none")
        here.add({"key": f"k{i}", "text": f"word{i}", "vector": [i + 1.0, 1.0], "n": i} for i in range(200))
        there = two.collection("c")
        here.index(recipe="hnsw")
        there.index()
        before = files(tmp_path / "two")
        here.delete(["k7"])
        here.upsert([{"key": "k8", "text": "changed", "vector": [-1.0, 5.0], "n": 800}])
        here.update([{"key": "k9", "n": 900}])
        here.index(recipe="hnsw")
        one.compact()
        assert files(tmp_path / "two") == before
        assert "k7" not in there.search([8.0, 1.0], k=200).keys
        assert there.search([-1.0, 5.0], k=1).keys == ["k8"]
        assert sorted(there.search([1.0, 1.0], k=9, where="n >= 800").keys) == ["k8", "k9"]
        assert there.search("changed", mode="text").keys == ["k8"]
        assert there.get("k9").metadata == {"n": 900}
        there.delete(["k10"])
        assert "k10" not in here.search([11.0, 1.0], k=200).keys
        assert len(here) == len(there) == 198


def test_closing_a_store_waits_for_the_write_of_another_thread(store):
    store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    begun, ended = threading.Event(), []

    def write() -> None:
        with store.database.write() as transaction:
            begun.set()
            time.sleep(0.3)
            transaction.run("UPDATE store_info SET value = value")
        ended.append(time.monotonic())

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    store.close()
    closed = time.monotonic()
    writer.join()
    assert ended[0] <= closed + 0.05
