"""The commit protocol: whole or not at all, in order, one writer at a time, durable."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import embedstore
from embedstore import NotAStore, StorageFull, StoreLocked, UnsupportedFormat

WRITER = (
    "import embedstore, sys, numpy as np\n"
    "c = embedstore.open(sys.argv[1]).collection('c', encoder='none')\n"
    "name = sys.argv[2]\n"
    "for i in range(100000):\n"
    "    keys = [f'{name}-{i}-{j}' for j in range(7)]\n"
    "    print('TRY', i, flush=True)\n"
    "    c.add({'key': k, 'text': k, 'vector': [float(i + 1), float(j)], 'n': i} for j, k in enumerate(keys))\n"
    "    print('ACK', i, flush=True)\n"
)


@pytest.mark.parametrize("seed", range(6))
def test_after_kill_nine_every_acknowledged_batch_is_there_and_the_last_is_whole_or_absent(tmp_path, seed):
    folder = tmp_path / "store"
    delay = float(np.random.default_rng(seed).uniform(0.25, 0.8))
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), "w"], stdout=subprocess.PIPE, text=True
    ) as writer:
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        lines = writer.communicate()[0].splitlines()
    acknowledged = {int(line.split()[1]) for line in lines if line.startswith("ACK ") and line.split()[1].isdigit()}
    tried = {int(line.split()[1]) for line in lines if line.startswith("TRY ") and line.split()[1].isdigit()}
    if not tried:
        assert not acknowledged
        return
    with embedstore.open(folder) as store:
        collection = store.collection("c", encoder="none")
        found: dict[int, int] = {}
        for record in collection.records() if len(collection) else []:
            found[record.metadata["n"]] = found.get(record.metadata["n"], 0) + 1
        assert acknowledged <= set(found) <= tried
        assert set(found.values()) <= {7}
        for i in list(found)[-3:]:
            assert collection.search([float(i + 1), 6.0], k=1, where=f"n = {i}").keys == [f"w-{i}-6"]


def test_writers_in_many_processes_take_turns_and_lose_nothing(tmp_path):
    folder = tmp_path / "store"
    script = WRITER.replace("range(100000)", "range(30)")
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), name], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        for name in "abc"
    ]
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
    with embedstore.open(folder) as store:
        collection = store.collection("c")
        keys = {record.key for record in collection.records()}
        assert keys == {f"{name}-{i}-{j}" for name in "abc" for i in range(30) for j in range(7)}
        stats = collection.stats()
        assert (stats["n_records"], stats["commits"]) == (630, 90)


def test_threads_of_one_process_share_a_store(store):
    collection = store.collection("c", encoder="none")
    errors = []

    def work(name: str) -> None:
        try:
            for i in range(25):
                collection.add([{"key": f"{name}{i}", "vector": [float(i + 1), 1.0], "n": i}])
                assert f"{name}{i}" in collection.search([float(i + 1), 1.0], k=500, where=f"n = {i}").keys
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(collection) == 100


def test_a_writer_that_waits_too_long_is_told_who_holds_the_lock(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    script = (
        "import embedstore, sys\n"
        "s = embedstore.open(sys.argv[1])\n"
        "s.ensure()\n"
        "with s.database.write():\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        impatient = embedstore.open(store.path, lock_timeout=0.2)
        with pytest.raises(StoreLocked, match=rf"being written to by process {holder.pid} .*waited 0.2 s"):
            impatient.collection("c").add([{"key": "b", "vector": [1.0]}])
        assert len(collection) == 1  # readers do not wait
        holder.kill()
        holder.wait()
        started = time.monotonic()
        impatient.collection("c").add([{"key": "b", "vector": [1.0]}])
        assert time.monotonic() - started < 1
        impatient.close()


def test_a_fork_keeps_both_processes_usable(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "before", "vector": [1.0, 1.0]}])
    collection.search([1.0, 1.0])
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            collection.add([{"key": "child", "vector": [1.0, 2.0]}])
            os.write(write, ",".join(collection.search([1.0, 2.0], k=5).keys).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    assert os.read(read, 1000) == b"child,before"
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    collection.add([{"key": "parent", "vector": [2.0, 1.0]}])
    assert set(collection.search([1.0, 1.0], k=5).keys) == {"before", "child", "parent"}


def child_says(work):
    """What ``work`` returns, or raises, in a forked child."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(write, said.encode())
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as answer:
        said = answer.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    return said


def test_a_child_that_is_forked_within_a_snapshot_refuses_the_store_and_leaves_it_to_the_parent(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": str(i), "vector": [1.0, float(i)]} for i in range(50)])

    def work():
        with embedstore.open(store.path) as other:  # another object, but the same file and the same SQLite
            return other.collection("c").count()

    with store.reading() as transaction:
        assert transaction.one("SELECT count(*) FROM records") == (50,)
        said = child_says(work)
        assert transaction.one("SELECT count(*) FROM records") == (50,)
    assert said.startswith(f"StorageFailed: {store.path}/store.db was being read or written when this process was")
    collection.add([{"key": "parent", "vector": [2.0, 1.0]}])
    assert len(collection) == 51 and store.verify().problems == []
    assert child_says(work) == "51"


def test_a_child_holds_its_own_locks_so_that_no_other_program_deletes_its_log(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "parent", "vector": [1.0, 1.0]}])
    collection.search([1.0, 1.0])
    reader = "import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute('SELECT * FROM records'); d.close()"

    def work():
        collection.add([{"key": "first", "vector": [1.0, 2.0]}])
        # A program that takes itself for the last to have the file open empties and deletes its log.
        subprocess.run([sys.executable, "-c", reader, str(store.path / "store.db")], check=True)
        collection.add([{"key": "second", "vector": [1.0, 3.0]}])
        return (store.path / "store.db-wal").exists()

    assert child_says(work) == "True"
    with embedstore.open(store.path) as other:
        assert {record.key for record in other.collection("c").records()} == {"parent", "first", "second"}
        assert other.verify().problems == []


def test_the_database_is_set_up_to_survive_a_power_cut(store):
    store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    with store.database.write() as transaction:
        assert transaction.one("PRAGMA journal_mode") == ("wal",)
        assert transaction.one("PRAGMA synchronous") == (2,)
        assert transaction.one("PRAGMA foreign_keys") == (1,)
        assert transaction.one("PRAGMA page_size") == (8192,)
        assert transaction.one("PRAGMA wal_autocheckpoint") in ((0,), (1000,))  # in COMMIT, under the writer lock


def test_files_are_for_their_owner_alone(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "text": "x"}])
    collection.refresh()
    for path in [store.path, *store.path.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_failed_write_leaves_nothing_and_the_next_one_works(store, monkeypatch):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 1.0]}])
    before = collection.stats()
    from embedstore.storage.writing import CollectionWriter

    def fail(self):
        raise RuntimeError("power went out here")

    with monkeypatch.context() as patched:
        patched.setattr(CollectionWriter, "finish", fail)
        with pytest.raises(RuntimeError):
            collection.add([{"key": "b", "vector": [1.0, 2.0]}])
    assert collection.stats() == before
    collection.add([{"key": "b", "vector": [1.0, 2.0]}])
    assert collection.search([1.0, 2.0], k=1).keys == ["b"]


def test_a_full_disk_loses_nothing_and_says_where(tmp_path):
    script = (
        "import embedstore, resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "c = embedstore.open(sys.argv[1]).collection('c', encoder='none')\n"
        "c.add([{'key': 'first', 'vector': [1.0, 1.0]}])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, resource.RLIM_INFINITY))\n"
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        c.add([{'key': f'k{n}', 'text': 'x' * 20000, 'vector': [1.0, 2.0]}])\n"
        "        n += 1\n"
        "except embedstore.EmbedstoreError as error:\n"
        "    print(type(error).__name__, sys.argv[1] in str(error))\n"
        "print(n, len(c), c.search([1.0, 1.0], k=1).keys)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "c.add([{'key': 'last', 'vector': [2.0, 1.0]}])\n"
        "print(len(c))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=False
    )
    first, second, third = done.stdout.splitlines()
    assert first in ("StorageFull True", "StorageFailed True"), done.stderr
    n = int(second.split()[0])
    assert n > 3
    assert second == f"{n} {n + 1} ['first']"
    assert third == str(n + 2)
    assert issubclass(StorageFull, OSError)


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    store = embedstore.open(tmp_path)
    with pytest.raises(NotAStore, match="notes.txt"):
        store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    with pytest.raises(NotAStore, match=r"no store\.db"):
        store.collections()
    assert [one.name for one in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(NotAStore, match="is a file"):
        embedstore.open(tmp_path / "notes.txt").collections()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "store.db").write_text("this is not a database, but long enough to be looked at" * 100)
    with pytest.raises(NotAStore, match="not a SQLite database"):
        embedstore.open(tmp_path).collections()
    (tmp_path / "other").mkdir()
    with sqlite3.connect(tmp_path / "other" / "store.db") as connection:
        connection.execute("CREATE TABLE something (x)")
    connection.close()
    with pytest.raises((NotAStore, embedstore.StoreNotFound)):
        embedstore.open(tmp_path / "other").collections()


def test_a_store_of_a_newer_release_is_refused(store):
    store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
    with store.database.write() as transaction:
        transaction.run("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(UnsupportedFormat, match="'9999'; this release, .*, knows up to .0004.. Open it with"):
        embedstore.open(store.path).collections()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def test_the_migrations_make_the_tables_that_the_code_describes(kind, request, tmp_path):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from sqlalchemy import create_engine

    from embedstore.storage.layout import SCHEMA_REVISION
    from embedstore.storage.migrations import run_migrations
    from embedstore.storage.revision import KNOWN_REVISIONS
    from embedstore.storage.schema import tables

    url = request.getfixturevalue("fresh_database") if kind == "postgres" else f"sqlite:///{tmp_path}/x.db"
    engine = create_engine(url)
    with engine.begin() as connection:
        run_migrations(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = [
            one for one in compare_metadata(context, tables)
            if "words" not in str(one)  # PostgreSQL's full text, which only it has
        ]  # fmt: skip
        assert differences == []
        assert context.get_current_revision() == SCHEMA_REVISION == KNOWN_REVISIONS[-1]
    engine.dispose()


def test_the_digest_says_what_the_rows_say(store):
    from embedstore.storage.digests import shift_digest

    collection = store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "text": f"t{i}", "vector": [float(i + 1), 1.0], "n": i} for i in range(40))
    collection.delete(where="n < 5")
    collection.update([{"key": "k9", "n": 99}])
    collection.upsert([{"key": "k8", "vector": [9.0, 9.0]}])
    with store.reading() as transaction:
        rows = [bytes(row[0]) for row in transaction.all("SELECT row_hash FROM records")]
        vectors = [bytes(row[0]) for row in transaction.all("SELECT row_hash FROM vectors")]
    stats = collection.stats()
    assert len(rows) == len(vectors) == 35
    assert shift_digest(bytes(16), added=rows).hex() == stats["digest"]
    assert shift_digest(bytes(16), added=vectors).hex() == stats["spaces"][0]["digest"]
    assert json.dumps(stats)
