"""The cache is only a cache: deleted, damaged, foreign or late, the answers come from the database."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import embedstore
from embedstore.indexing import space_cache
from embedstore.indexing.cachefile import CacheWriter, DamagedCache, open_checked
from embedstore.storage.sqlite import SQLiteDatabase

N, DIM = 400, 16


@pytest.fixture
def filled(store, monkeypatch):
    """A collection whose cache is written to files at once, however small."""
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 0)
    collection = store.collection("c", encoder="none")
    matrix = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    collection.add({"key": str(i), "vector": row, "text": f"word{i}"} for i, row in enumerate(matrix))
    collection.search(matrix[0])
    collection.search("word1", mode="text")
    store.close()
    return store.path, matrix


def self_search(path, matrix, rows=range(0, N, 37)):
    """Every asked row is at rank 1 for its own vector; gives the plans."""
    with embedstore.open(path) as store:
        collection = store.collection("c")
        hits = [collection.search(matrix[i], k=3) for i in rows]
        assert [one.keys[0] for one in hits] == [str(i) for i in rows]
        assert collection.search("word7", mode="text").keys == ["7"]
        return hits


def cache_files(path):
    return sorted(one for one in (path / "cache").rglob("*") if one.is_file() and one.suffix != ".lock")


def test_a_deleted_cache_is_made_again(filled):
    path, matrix = filled
    shutil.rmtree(path / "cache")
    self_search(path, matrix)
    assert (path / "cache").is_dir()


@pytest.mark.parametrize("damage", ["flip", "zero", "truncate", "empty", "grow", "remove"])
def test_damage_to_any_cache_file_is_noticed_and_mended(filled, damage, caplog):
    path, matrix = filled
    random = np.random.default_rng(1)
    names = [one.relative_to(path) for one in cache_files(path) if "keywords" not in one.name]
    assert any(name.suffix == ".f32" for name in names)
    assert any(name.name == "MANIFEST" for name in names)
    for name in names:
        if not (path / name).exists() or name.suffix in (".holder",):
            continue
        data = bytearray((path / name).read_bytes())
        place = int(random.integers(len(data))) if data else 0
        if damage == "flip":
            data[place] ^= 1 << int(random.integers(8))
        elif damage == "zero":
            start = place // 4096 * 4096
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
        elif damage == "truncate":
            del data[place:]
        elif damage == "empty":
            data.clear()
        elif damage == "grow":
            data += b"x"
        os.remove(path / name)
        if damage != "remove":
            (path / name).write_bytes(data)
        self_search(path, matrix)
    assert "cache damaged, rebuilding from the database" in caplog.text or damage == "remove"


@pytest.mark.parametrize("place", [0, 100, 5000, 20000])
def test_a_damaged_keyword_index_is_made_again(filled, place):
    path, matrix = filled
    (file,) = (path / "cache").glob("keywords-*.db")
    data = bytearray(file.read_bytes())
    data[place : place + 3000] = os.urandom(3000)
    file.write_bytes(data)
    self_search(path, matrix)


def test_a_flipped_bit_anywhere_changes_the_page_hash(tmp_path):
    random = np.random.default_rng(2)
    content = random.integers(0, 256, 3 * 4096 + 123, dtype=np.uint8).tobytes()
    with CacheWriter(tmp_path, "exact", ".f32") as writer:
        writer.write(content)
    file = writer.written
    assert open_checked(tmp_path, file).tobytes() == content
    for place in [*range(0, len(content), 997), len(content) - 1]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(random.integers(8))
        (tmp_path / file.name).write_bytes(flipped)
        with pytest.raises(DamagedCache):
            open_checked(tmp_path, file)
    swapped = content[4096:8192] + content[:4096] + content[8192:]
    (tmp_path / file.name).write_bytes(swapped)
    with pytest.raises(DamagedCache):
        open_checked(tmp_path, file)


@pytest.mark.parametrize("bit", [0, 31, 62, 63])
@pytest.mark.parametrize("words", [(1, 2), (0, 511), (512, 1030)])
def test_damage_that_leaves_the_sum_of_the_words_as_it_was_is_noticed(tmp_path, words, bit):
    numbers = np.random.default_rng(3).integers(0, 2**63, 1100).astype("<u8")
    one, other = words
    numbers[one] &= ~np.uint64(1 << bit)
    numbers[other] |= np.uint64(1 << bit)
    with CacheWriter(tmp_path, "labels", ".i64") as writer:
        writer.write(numbers.tobytes())
    file = writer.written
    flipped, swapped = numbers.copy(), numbers.copy()
    flipped[[one, other]] ^= np.uint64(1 << bit)
    swapped[[one, other]] = swapped[[other, one]]
    for damaged in (flipped, swapped):
        assert damaged.sum() == numbers.sum()
        (tmp_path / file.name).write_bytes(damaged.tobytes())
        with pytest.raises(DamagedCache):
            open_checked(tmp_path, file)


def test_a_cache_of_another_store_is_not_believed(filled, tmp_path):
    path, matrix = filled
    with embedstore.open(tmp_path / "other") as store:
        collection = store.collection("c", encoder="none")
        collection.add({"key": str(i), "vector": -row, "text": f"word{i}"} for i, row in enumerate(matrix))
    shutil.rmtree(tmp_path / "other" / "cache", ignore_errors=True)
    shutil.copytree(path / "cache", tmp_path / "other" / "cache")
    self_search(tmp_path / "other", -matrix)


def test_a_cache_newer_than_the_database_is_not_believed(filled, tmp_path):
    path, matrix = filled
    older = tmp_path / "older.db"
    shutil.copy(path / "store.db", older)
    with embedstore.open(path) as store:
        collection = store.collection("c")
        collection.upsert({"key": str(i), "vector": -row, "text": f"word{i}"} for i, row in enumerate(matrix))
        collection.search(matrix[0])
        collection.search("word1", mode="text")
    shutil.copy(older, path / "store.db")  # a backup is put back by hand; the cache is of the future
    (path / "HEAD").unlink()
    self_search(path, matrix)
    with embedstore.open(path) as store:  # and another history reaches the same change number
        collection = store.collection("c")
        swapped = np.roll(matrix, 1, axis=0)
        collection.upsert({"key": str(i), "vector": row, "text": f"word{i}"} for i, row in enumerate(swapped))
    self_search(path, swapped)


def test_a_manifest_that_names_files_elsewhere_is_refused(filled):
    path, matrix = filled
    manifest = next((path / "cache").glob("space-*/MANIFEST"))
    outer = json.loads(manifest.read_text())
    outer["manifest"]["files"]["exact"]["name"] = "../../store.db"
    import hashlib

    body = json.dumps(outer["manifest"], sort_keys=True)
    outer["sha256"] = hashlib.sha256(body.encode()).hexdigest()
    manifest.write_text(json.dumps(outer))
    self_search(path, matrix)


@pytest.mark.parametrize("threshold", [0, 1 << 40])
def test_another_processes_write_is_in_the_next_answer(store, monkeypatch, threshold):
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", threshold)
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "first", "vector": [1.0, 0.0], "text": "one", "n": 1}])
    script = (
        "import embedstore, sys\n"
        "c = embedstore.open(sys.argv[1]).collection('c')\n"
        "for line in sys.stdin:\n"
        "    exec(line)\n"
        "    print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(store.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:

        def there(line: str) -> None:
            writer.stdin.write(line + "\n")
            writer.stdin.flush()
            assert writer.stdout.readline() == "done\n"

        for i in range(20):
            there(f"c.add([{{'key': 'k{i}', 'vector': [{i + 2}.0, 1.0], 'text': 'word{i}', 'n': {i}}}])")
            assert collection.search([i + 2.0, 1.0], k=1, where=f"n = {i}").keys == [f"k{i}"]
            assert collection.search(f"word{i}", mode="text").keys == [f"k{i}"]
            there(f"c.update([{{'key': 'k{i}', 'n': {i + 1000}}}])")
            assert len(collection.search([1.0, 0.0], where=f"n = {i + 1000}")) == 1
            if i % 2:
                there(f"c.delete(['k{i}'])")
                assert f"k{i}" not in collection.search([i + 2.0, 1.0], k=100).keys
                assert len(collection.search(f"word{i}", mode="text")) == 0
        writer.stdin.close()
        assert writer.wait() == 0


def test_a_reader_that_closes_last_leaves_the_log_alone(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    log = store.path / "store.db-wal"
    assert log.stat().st_size > 0
    reader = SQLiteDatabase(store.path, lock_timeout=1)
    with reader.read() as transaction:
        assert transaction.one("SELECT count(*) FROM records") == (1,)
    before = log.stat().st_size
    reader.close()
    assert log.stat().st_size == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not write")
def test_a_read_only_folder_can_be_searched(filled):
    path, matrix = filled
    shutil.rmtree(path / "cache")
    listed = sorted(one.name for one in path.iterdir())
    script = (
        "import os, sys, numpy, faiss, filelock, embedstore\n"
        "query = numpy.load(sys.argv[2])\n"
        "with embedstore.open(sys.argv[3]) as other:\n"  # imports all that a search and a write need
        "    c = other.collection('c', encoder='none')\n"
        "    c.add([{'key': 'a', 'text': 'x', 'vector': query}])\n"
        "    c.search(query), c.search('x', mode='text')\n"
        "os.setegid(65534), os.seteuid(65534)\n"
        "c = embedstore.open(sys.argv[1]).collection('c')\n"
        "print(c.search(query).keys[0], c.search('word7', mode='text').keys[0])\n"
        "try:\n"
        "    c.delete(['0'])\n"
        "except embedstore.StorageFailed as error:\n"
        "    print(error)\n"
    )
    np.save(path.parent / "query.npy", matrix[5])
    for one in (path, path / "store.db", *path.parents):
        if one.stat().st_uid == 0 and "pytest" in str(one):
            os.chmod(one, 0o755 if one.is_dir() else 0o444)
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(path.parent / "query.npy"), str(path.parent / "other")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("5 7\n"), done.stderr
    assert "cannot be taken" in done.stdout
    assert sorted(one.name for one in path.iterdir()) == listed
