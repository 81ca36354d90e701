"""A full disk refuses what needs room, says where, and costs nothing that was acknowledged."""

import os

import pytest

import embedstore
from embedstore import StorageFull
from faults.diskfull import Disk, mounted, trial_of


@pytest.fixture
def disk():
    try:
        with mounted() as opened:
            yield opened
    except OSError as error:
        pytest.skip(f"no small disk can be mounted: {error}")


@pytest.mark.parametrize("n_bytes", [0, 8192, 120_000, 450_000, 1_030_000, 1_660_000, 2_400_000, 3_930_000, 5_160_000])
def test_nothing_is_lost_on_a_full_disk_and_all_goes_on_with_more_space(disk, n_bytes):
    trial = trial_of(disk, n_bytes)
    assert trial.violations == []
    assert trial.refused, "the disk was never full"


def test_a_write_to_a_full_disk_says_what_is_full_and_leaves_the_store_as_it_was(disk):
    with embedstore.open(disk.folder / "store") as store:
        collection = store.collection("c", encoder="none")
        collection.add([{"key": "a", "vector": [1.0, 0.0], "text": "first"}])
        disk.leave(0)
        with pytest.raises(StorageFull, match="store.db"):
            collection.add([{"key": "b", "vector": [0.0, 1.0], "text": "x" * 1_000_000}])
        assert collection.search([0.0, 1.0]).keys == ["a"]
        assert collection.search("first", mode="text").keys == ["a"]
        disk.free()
        collection.add([{"key": "b", "vector": [0.0, 1.0]}])
        assert collection.search([0.0, 1.0], 1).keys == ["b"]
        assert store.verify().ok


def test_a_search_by_words_needs_no_space(disk):
    with embedstore.open(disk.folder / "store") as store:
        collection = store.collection("c", encoder="none")
        collection.add({"key": f"k{i}", "vector": [1.0], "text": f"word{i} {'filling ' * 2000}"} for i in range(50))
        disk.leave(20_000)
        assert collection.search("word7", mode="text").keys == ["k7"]
        disk.free()
        store.close()
        assert collection.search("word7", mode="text").keys == ["k7"]
        assert store.verify().ok


def full_calls(store: embedstore.Store, disk: Disk):
    target = disk.folder
    return {
        "backup": lambda: store.backup(target / "a.backup"),
        "export": lambda: store.collection("c").export(str(target / "a.parquet")),
        "index": lambda: store.collection("c").index(recipe="hnsw"),
        "compact": store.compact,
        "repair": lambda: embedstore.repair(store.path, target / "repaired"),
        "restore": lambda: embedstore.restore(os.environ["A_BACKUP"], target / "restored"),
    }


@pytest.mark.parametrize("name", ["backup", "export", "index", "compact", "repair", "restore"])
def test_what_fails_on_a_full_disk_leaves_no_file_behind(disk, tmp_path, monkeypatch, name):
    monkeypatch.setenv("A_BACKUP", str(tmp_path / "whole.backup"))
    with embedstore.open(disk.folder / "store") as store:
        collection = store.collection("c", encoder="none")
        collection.add({"key": f"k{i}", "vector": [i, 1.0], "text": f"word{i} {'filling ' * 500}"} for i in range(200))
        collection.index(recipe="hnsw")
        store.backup(tmp_path / "whole.backup")
        call = full_calls(store, disk)[name]
        before = names(disk)
        for n_bytes in (0, 12_288):
            disk.leave(n_bytes)
            with pytest.raises(StorageFull):
                call()
            disk.free()
            assert names(disk) == before
        call()
        assert store.verify().ok


def names(disk: Disk) -> list[str]:
    held = {str(path.relative_to(disk.folder)) for path in disk.folder.rglob("*")}
    return sorted(name for name in held if not name.endswith((".lock", "-wal", "-shm")))
