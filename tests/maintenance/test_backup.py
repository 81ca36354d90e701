"""A backup is one commit, whole or not at all; what is no backup is refused and leaves nothing behind."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput, StoreDamaged, UnsupportedFormat
from embedstore.maintenance import archive as archives


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with a closed store, and the file of its backup."""
    folder = tmp_path_factory.mktemp("backup")
    matrix = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    with embedstore.open(folder / "store") as store:
        collection = store.collection("c", encoder="none", metric="dot")
        collection.add({"key": f"k{i}", "vector": row, "text": f"word{i} common"} for i, row in enumerate(matrix))
        collection.update([{"key": "k3", "n": 1}])
        collection.delete(["k5"])
        collection.refresh()
        store.backup(folder / "file.backup")
    return folder


@pytest.fixture
def backed_up(written, tmp_path):
    """Copies of the store and of the file of its backup."""
    shutil.copytree(written / "store", tmp_path / "store")
    shutil.copy(written / "file.backup", tmp_path / "file.backup")
    with embedstore.open(tmp_path / "store") as store:
        yield store, tmp_path / "file.backup"


def contents(store):
    return {
        name: (store.collection(name).stats()["digest"], [one.key for one in store.collection(name).records()])
        for name in store.collections()
    }


def assert_refused(file, folder, error=InvalidInput):
    with pytest.raises(error) as caught:
        embedstore.restore(file, folder)
    assert "\n" not in str(caught.value)
    assert not folder.exists()


def test_a_restored_store_is_the_one_that_was_backed_up(backed_up, tmp_path):
    store, file = backed_up
    report = embedstore.restore(file, tmp_path / "new")
    assert (report.n_collections, report.n_records) == (1, 299)
    with embedstore.open(tmp_path / "new") as new:
        assert contents(new) == contents(store)
        assert new.verify().ok
        assert new.stats()["uuid"] == store.stats()["uuid"]
        query = np.ones(6)
        assert new.collection("c").search(query, 7).keys == store.collection("c").search(query, 7).keys
        assert new.collection("c").search("word7", mode="text").keys == ["k7"]
        new.collection("c").add([{"key": "more", "vector": query}])
        assert new.verify().ok


def test_a_backup_is_readable_by_its_owner_alone(written):
    assert (written / "file.backup").stat().st_mode & 0o077 == 0


def test_a_backup_is_not_overwritten_unless_asked(backed_up):
    store, file = backed_up
    before = file.read_bytes()
    with pytest.raises(InvalidInput, match="exists"):
        store.backup(file)
    assert file.read_bytes() == before
    store.collection("c").delete(["k7"])
    assert store.backup(file, overwrite=True).n_records == 298


def test_a_store_is_not_restored_over_another(backed_up):
    store, file = backed_up
    before = contents(store)
    with pytest.raises(InvalidInput, match="holds a store already"):
        embedstore.restore(file, store.path)
    assert contents(store) == before


def test_a_damaged_store_is_not_backed_up(backed_up, tmp_path):
    store, _ = backed_up
    with store.database.write() as transaction:
        transaction.run("UPDATE records SET content = 'x' WHERE key = 'k9'")
    with pytest.raises(StoreDamaged, match=r"store\.db is damaged.*'k9'.*embedstore verify"):
        store.backup(tmp_path / "new.backup")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.backup", "store"]


@pytest.mark.postgres
def test_postgres_is_backed_up_with_its_own_tools(fresh_database, tmp_path):
    with embedstore.open(tmp_path / "caches", database=fresh_database) as store:
        store.collection("c", encoder="none").add([{"key": "a", "vector": [1.0]}])
        with pytest.raises(InvalidInput, match="pg_dump"):
            store.backup(tmp_path / "file.backup")
    assert not (tmp_path / "file.backup").exists()


def test_newer_caches_are_not_believed_by_an_older_database(backed_up, tmp_path):
    store, file = backed_up
    collection = store.collection("c")
    older = contents(store)
    matrix = np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32)
    collection.upsert({"key": f"k{i}", "vector": row, "text": f"other{i}"} for i, row in enumerate(matrix))
    collection.index(recipe="hnsw")
    collection.refresh()
    store.close()
    for name in ("store.db", "store.db-wal", "store.db-shm", "HEAD"):
        (store.path / name).unlink(missing_ok=True)
    embedstore.restore(file, store.path)
    first = np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32)
    with embedstore.open(store.path) as restored:
        assert contents(restored) == older
        again = restored.collection("c")
        for i in range(0, 300, 37):
            scores = first @ first[i]
            scores[5] = -np.inf
            assert again.search(first[i], 1).keys == [f"k{int(np.argmax(scores))}"]
        assert again.search("word7", mode="text").keys == ["k7"]
        assert len(again.search("other7", mode="text")) == 0
        again.upsert({"key": f"k{i}", "vector": row} for i, row in enumerate(-matrix))
        assert again.search(-matrix[4], 1, where="n = 1").keys == []
        assert restored.verify().ok


def test_a_backup_while_another_process_writes_is_one_commit(store, tmp_path):
    """Each commit writes the same number to two records and adds one; a mixture of two commits would show."""
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [0.0, 1.0], "n": 0}, {"key": "b", "vector": [0.0, 1.0], "n": 0}])
    script = (
        "import embedstore, sys\n"
        "c = embedstore.open(sys.argv[1]).collection('c')\n"
        "for i in range(1, 400):\n"
        "    c.upsert([{'key': k, 'vector': [i, 1.0], 'n': i, 'text': 'long ' * 500} for k in ('a', 'b', f'k{i}')])\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, os.fspath(store.path)]) as writer:
        files = []
        while writer.poll() is None and len(files) < 6:
            files.append(tmp_path / f"{len(files)}.backup")
            store.backup(files[-1])
        writer.wait()
    assert writer.returncode == 0
    assert len(files) >= 2
    for number, file in enumerate(files):
        embedstore.restore(file, tmp_path / str(number))
        with embedstore.open(tmp_path / str(number)) as restored:
            again = restored.collection("c")
            (n,) = {again.get(key).metadata["n"] for key in ("a", "b")}
            assert again.count() == 2 + n
            assert restored.verify().ok


# ---- what is no backup


def test_a_cut_backup_is_refused(backed_up, tmp_path):
    _, file = backed_up
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for n_bytes in [0, 1, 4, 30, 60, len(whole) // 2, *(len(whole) - n for n in (1, 22, 23, 100, 400)),
                    *rng.integers(len(whole), size=20).tolist()]:  # fmt: skip
        file.write_bytes(whole[:n_bytes])
        assert_refused(file, tmp_path / "new")


def test_a_flipped_bit_in_a_backup_is_refused_or_changes_nothing(backed_up, tmp_path):
    store, file = backed_up
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    n_refused = 0
    tail = len(whole) - 700
    for place in [*rng.integers(len(whole), size=30).tolist(), *rng.integers(tail, len(whole), size=60).tolist(),
                  *range(0, 60, 3)]:  # fmt: skip
        content = bytearray(whole)
        content[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        try:
            embedstore.restore(file, tmp_path / "new")
        except InvalidInput:
            n_refused += 1
            assert not (tmp_path / "new").exists()
            continue
        with embedstore.open(tmp_path / "new") as new:
            assert contents(new) == contents(store)
        shutil.rmtree(tmp_path / "new")
    assert n_refused > 60


def crafted(file, members, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def parts_of(file):
    with zipfile.ZipFile(file) as archive:
        return archive.read("store.db"), json.loads(archive.read("BACKUP.json"))


@pytest.mark.parametrize(
    "members",
    [
        [("a.txt", b"x")],
        [],
        [("store.db", b"")],
        [("BACKUP.json", b"{}")],
        [("../store.db", b"x"), ("BACKUP.json", b"{}")],
        [("/etc/cron.d/x", b"x"), ("store.db", b"x"), ("BACKUP.json", b"{}")],
        [("store.db", b"x"), ("BACKUP.json", b"{}"), ("HEAD", b"x")],
        [("store.db", b"x"), ("BACKUP.json", b"not JSON")],
        [("store.db", b"x"), ("BACKUP.json", b"[]")],
        [("store.db", b"x"), ("BACKUP.json", b"[" * 100_000)],
        [("store.db", b"x"), ("BACKUP.json", b"\xff\xfe")],
    ],
)
def test_another_zip_file_is_refused(tmp_path, members):
    crafted(tmp_path / "file.zip", members)
    assert_refused(tmp_path / "file.zip", tmp_path / "new")
    assert not (tmp_path.parent / "store.db").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_refused(backed_up, tmp_path):
    _, file = backed_up
    database, about = parts_of(file)
    crafted(file, [("store.db", database), ("BACKUP.json", json.dumps(about)), ("store.db", b"x")])
    assert_refused(file, tmp_path / "new")


@pytest.mark.parametrize("name", ["format", "n_bytes", "sha256", "commit", "revision", "taken_at", "collections"])
@pytest.mark.parametrize("value", [None, -1, [], {"a": 1}, "x", 2**80, [3], [{}]])
def test_a_description_with_a_wrong_field_is_refused(backed_up, tmp_path, name, value):
    _, file = backed_up
    database, about = parts_of(file)
    if value is None:
        del about[name]
    else:
        about[name] = value
    crafted(file, [("store.db", database), ("BACKUP.json", json.dumps(about))])
    if (name, value) in (("commit", -1), ("commit", 2**80), ("taken_at", "x"), ("collections", [])):
        return  # something else than was written, but it could have been
    assert_refused(file, tmp_path / "new")


@pytest.mark.parametrize("changes", [{"format": 2}, {"revision": "0099"}, {"format": 2, "more": [1]}])
def test_a_backup_of_a_newer_release_is_told_as_such(backed_up, tmp_path, changes):
    _, file = backed_up
    database, about = parts_of(file)
    crafted(file, [("store.db", database), ("BACKUP.json", json.dumps(about | changes))])
    assert_refused(file, tmp_path / "new", UnsupportedFormat)


@pytest.mark.parametrize("member", ["store.db", "BACKUP.json"])
def test_a_deflated_bomb_is_refused_before_it_fills_the_disk(backed_up, tmp_path, member, monkeypatch):
    """A member that unpacks to far more than it says, or than a description may have."""
    _, file = backed_up
    database, about = parts_of(file)
    bomb = bytes(200 << 20)
    parts = {"store.db": database, "BACKUP.json": json.dumps(about).encode()} | {member: bomb}
    crafted(file, parts.items(), compression=zipfile.ZIP_DEFLATED)
    content = bytearray(file.read_bytes())
    if member == "store.db":  # its size in the table of contents is made to fit the description
        place = content.rfind(b"PK\x01\x02", 0, content.rfind(b"PK\x01\x02"))
        assert struct.unpack_from("<I", content, place + 24) == (len(bomb),)
        struct.pack_into("<I", content, place + 24, about["n_bytes"])
        file.write_bytes(content)
    written = []
    real = os.fsync
    monkeypatch.setattr(archives.os, "fsync", lambda fd: (written.append(os.fstat(fd).st_size), real(fd)))
    assert_refused(file, tmp_path / "new")
    assert max(written, default=0) <= about["n_bytes"] + (1 << 20)


def test_a_right_archive_of_another_database_is_refused(backed_up, tmp_path):
    import sqlite3

    _, file = backed_up
    _, about = parts_of(file)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE mine (x)")
    other.close()
    database = (tmp_path / "other.db").read_bytes()
    about |= {"n_bytes": len(database), "sha256": hashlib.sha256(database).hexdigest()}
    crafted(file, [("store.db", database), ("BACKUP.json", json.dumps(about))])
    assert_refused(file, tmp_path / "new")


def test_a_folder_with_other_files_is_not_restored_into(backed_up, tmp_path):
    _, file = backed_up
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInput, match=r"letter\.txt"):
        embedstore.restore(file, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_a_restored_store_notices_the_loss_of_its_database(backed_up, tmp_path):
    embedstore.restore(tmp_path / "file.backup", tmp_path / "restored")
    assert (tmp_path / "restored" / "HEAD").exists()
    (tmp_path / "restored" / "store.db").write_bytes(b"")
    for left in (tmp_path / "restored").glob("store.db-*"):
        left.unlink()
    with embedstore.open(tmp_path / "restored") as store, pytest.raises(StoreDamaged, match="was acknowledged here"):
        store.collection("c").count()


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "a" * 250])
def test_a_path_that_no_file_system_takes_is_refused_before_anything_is_done(backed_up, tmp_path, name):
    with embedstore.open(tmp_path / "store") as store:
        with pytest.raises(InvalidInput, match="has over 255 bytes|holds a NUL"):
            store.backup(tmp_path / name)
        with pytest.raises(InvalidInput, match="has over 255 bytes|holds a NUL"):
            embedstore.repair(tmp_path / "store", tmp_path / name)
    if len(name) != 250:
        with pytest.raises(InvalidInput, match="has over 255 bytes|holds a NUL"):
            embedstore.open(tmp_path / name)
        with pytest.raises(InvalidInput, match="has over 255 bytes|holds a NUL"):
            embedstore.restore(tmp_path / "file.backup", tmp_path / name)


def test_a_place_where_nothing_can_be_made_is_told_in_the_stores_own_errors(backed_up, tmp_path):
    for place in ("/etc/passwd/x", "/proc/nope/x"):
        with pytest.raises(embedstore.EmbedstoreError, match=place.rsplit("/", 1)[0]):
            embedstore.repair(tmp_path / "store", place)
