"""What keeps a store sound while others use it, or where somebody meddled with its folder."""

import os
import shutil
import sqlite3
import subprocess
import sys
import time

import pytest
from shared import ROOT

import embedstore
from embedstore import InvalidInput, StorageFailed, StoreDamaged, UnsupportedFormat

FILL = [{"key": f"k{i}", "text": f"word{i} common", "vector": [1.0, float(i)], "year": 2000 + i} for i in range(10)]


@pytest.fixture
def filled(store):
    store.collection("c", encoder="none").add(FILL)
    return store


def other_process(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def meddle(path, statement):
    with sqlite3.connect(path / "store.db") as database:
        database.execute(statement)
    database.close()


VISIT = (
    "import sqlite3, sys\n"
    "d = sqlite3.connect(sys.argv[1]); d.execute('SELECT count(*) FROM sqlite_master').fetchall(); d.close()"
)
COUNT = "import embedstore, sys; print(len(embedstore.open(sys.argv[1]).collection('c')))"


def test_repair_of_an_open_store_does_not_take_its_locks_away(filled, tmp_path):
    embedstore.repair(filled.path, tmp_path / "new")
    other_process(VISIT, filled.path / "store.db")  # as the last to leave it would delete the log
    filled.collection("c").add([{"key": "later", "vector": [3.0, 1.0]}])
    assert other_process(COUNT, filled.path) == "11"


def test_sealing_a_keyword_index_does_not_take_its_locks_away(filled):
    collection = filled.collection("c")
    collection.search("common", mode="text")
    words = filled.path / "cache" / "keywords-1.db"
    inode = os.stat(words).st_ino
    other_process(VISIT, words)
    with open("/proc/locks") as file:
        assert any(f":{inode} " in line for line in file)
    assert (words.parent / "keywords-1.db-wal").exists()


def test_update_of_a_damaged_record_is_refused_rather_than_given_a_new_hash(filled):
    filled.close()
    meddle(filled.path, "UPDATE records SET metadata = '{\"year\":1900}' WHERE key = 'k5'")
    with pytest.raises(StoreDamaged, match="'k5'"):
        filled.collection("c").update([{"key": "k5", "seen": 1}])
    assert len(filled.verify().problems) == 1


def test_delete_under_a_filter_does_not_obey_a_damaged_record(filled):
    filled.close()
    meddle(filled.path, "UPDATE records SET metadata = '{\"year\":1900}' WHERE key = 'k5'")
    with pytest.raises(StoreDamaged, match="'k5'"):
        filled.collection("c").delete(where="year < 1950")
    assert filled.collection("c").count() == 10


def test_a_change_of_the_working_folder_does_not_change_the_store(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with embedstore.open("lib") as store:
            store.collection("c", encoder="none").add(FILL[:2])
    monkeypatch.chdir(tmp_path / "one")
    store = embedstore.open("lib")
    store.collection("c").add([FILL[2]])
    monkeypatch.chdir(tmp_path / "two")
    store.collection("c").add([FILL[3]])
    store.close()
    assert [other_process(COUNT, tmp_path / name / "lib") for name in ("one", "two")] == ["4", "2"]


def test_a_store_that_was_moved_away_and_restored_is_not_written_to_by_who_had_it_open(filled, tmp_path):
    archive = tmp_path / "archive"
    filled.backup(archive)
    filled.collection("c").add([{"key": "later", "vector": [3.0, 1.0]}])
    os.rename(filled.path, tmp_path / "moved")
    embedstore.restore(archive, filled.path)
    with pytest.raises(StorageFailed, match="was moved away or replaced .* open it again"):
        filled.collection("c").add([{"key": "lost", "vector": [3.0, 1.0]}])
    with pytest.raises(StorageFailed, match="was moved away or replaced"):
        filled.collection("c").get("k1")
    filled.close()
    filled.collection("c").add([{"key": "kept", "vector": [3.0, 1.0]}])
    assert filled.collection("c").search([3.0, 1.0], k=1).keys == ["kept"]
    assert filled.verify().ok


def test_who_only_reads_notices_that_the_store_was_replaced_soon_and_at_once_where_it_connects_anew(filled, tmp_path):
    filled.backup(tmp_path / "archive")
    collection = filled.collection("c")
    in_use = filled.database.take_reader()  # so that whoever reads next needs another connection
    os.rename(filled.path, tmp_path / "moved")
    embedstore.restore(tmp_path / "archive", filled.path)
    with pytest.raises(StorageFailed, match="was moved away or replaced"):
        collection.get("k1")
    filled.database.keep_reader(in_use)
    time.sleep(0.05)
    with pytest.raises(StorageFailed, match="was moved away or replaced"):
        collection.get("k1")


@pytest.mark.parametrize("name", ["store.db", "HEAD", "cache/words", "../store/x"])
def test_a_backup_is_not_written_into_the_store(filled, name):
    (filled.path / "cache").mkdir(exist_ok=True)
    with pytest.raises(InvalidInput, match="lies in the store itself"):
        filled.backup(filled.path / name, overwrite=True)
    assert filled.verify().ok


def test_a_keyword_search_does_not_wait_for_a_process_that_holds_the_index(filled):
    collection = filled.collection("c")
    collection.search("common", mode="text")
    collection.add([{"key": "new", "text": "fresh", "vector": [1.0, 1.0]}])
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from embedstore.storage.locks import ProcessLock\n"
        "with ProcessLock(Path(sys.argv[1])).held(1):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, filled.path / "cache" / "keywords-1.lock"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout.readline() == "held\n"
        started = time.monotonic()
        assert collection.search("fresh", mode="text").keys == ["new"]
        assert filled.verify().ok
        assert time.monotonic() - started < 10
        holder.communicate()


def test_verify_does_not_upgrade_an_older_store(tmp_path):
    path = tmp_path / "v0"
    shutil.copytree(ROOT / "tests" / "stores" / "v0", path)
    before = (path / "store.db").read_bytes()
    with embedstore.open(path) as store, pytest.raises(UnsupportedFormat, match="'embedstore db upgrade'"):
        store.verify()
    assert (path / "store.db").read_bytes() == before


def test_a_header_that_forbids_writing_is_damage(filled, tmp_path):
    filled.close()
    content = bytearray((filled.path / "store.db").read_bytes())
    content[18] ^= 0xFF  # SQLite's write version
    (filled.path / "store.db").write_bytes(content)
    with embedstore.open(filled.path) as store:
        assert [problem.what for problem in store.verify().problems] == [
            "the file's header says that it cannot be written to"
        ]
        with pytest.raises(StoreDamaged, match="was not backed up"):
            store.backup(tmp_path / "archive")


def test_a_path_need_not_be_unicode(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9?#%")
    with embedstore.open(path) as store:
        store.collection("c", encoder="none").add(FILL)
        assert store.collection("c").search("word3", mode="text").keys == ["k3"]
        store.backup(os.fsdecode(os.fsencode(tmp_path) + b"/archive\xe9"))
        assert store.verify().ok


def test_repair_of_what_holds_nothing_makes_no_store(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "store.db").write_text("no database\n")
    with pytest.raises(StoreDamaged, match="nothing that is whole was found"):
        embedstore.repair(tmp_path / "s")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_damaged_vector_is_listed_once_and_does_not_keep_other_caches_from_being_checked(store):
    for name in ("first", "second"):
        store.collection(name, encoder="none").add(FILL)
        store.collection(name).refresh()
    store.close()
    meddle(store.path, "UPDATE vectors SET vec = zeroblob(8) WHERE vector_id % 1099511627776 = 4 AND space_id = 1")
    exact = next((store.path / "cache" / "space-2").glob("exact-*"))
    exact.write_bytes(bytes(len(exact.read_bytes())))
    found = [(problem.part, problem.name) for problem in store.verify().problems]
    assert found == [("vector", "first/vector/4"), ("cache", str(exact.parent))]
