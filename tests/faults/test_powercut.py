"""After a power cut at any system call a store holds what was acknowledged; and where it would not, that is noticed."""

import logging

import numpy as np
import pytest

from faults import powercut
from faults.disk import MODELS, ROOT, Disk

missing = powercut.why_not()
traced = pytest.mark.skipif(missing is not None, reason=missing or "")


@pytest.fixture
def root(caplog):
    caplog.set_level(logging.ERROR, "embedstore")  # damaged caches are expected
    with powercut.scratch() as folder:
        yield folder


@traced
@pytest.mark.parametrize("seed", [1, 2])
def test_a_power_cut_at_any_system_call_loses_nothing_that_was_acknowledged(root, seed):
    counts, faults = powercut.judged(root, powercut.short_plan(seed), seed, n_sampled=100)
    assert faults == []
    assert sum(counts.values()) == 100
    assert sum(n_states > 0 for n_states in counts.values()) >= 4  # of the models; the others gave the same states


@traced
def test_a_power_cut_while_a_store_is_made_leaves_none_or_a_whole_one(root):
    plan = [{"verb": "create", "collection": "first", "dim": 8, "metric": "cosine"}]
    counts, faults = powercut.judged(root, plan, 1)
    assert faults == []
    assert sum(counts.values()) > 100


@traced
def test_a_power_cut_in_compact_backup_restore_and_repair_loses_nothing(root):
    plan = powercut.upkeep_plan(3, root / "real")
    counts, faults = powercut.judged(root, plan, 3, after="compact", n_sampled=80)
    assert faults == []
    assert sum(counts.values()) == 80


@traced
def test_commits_that_are_not_synced_are_noticed(root):
    plan = powercut.short_plan(1, 4)
    _, faults = powercut.judged(root, plan, 1, breaks=["commits unsynced"], models=["nothing unsynced"])
    assert any("the store is in none of the states it may be in" in fault for fault in faults)


@traced
def test_caches_that_are_not_synced_give_wrong_answers_only_where_hashes_are_not_checked(root):
    plan = [one for one in powercut.short_plan(1, 3) if one["verb"] != "index"]
    options = {"breaks": ["caches unsynced"], "models": ["torn data"] * 4, "after": "refresh", "n_sampled": 90}
    with powercut.scratch() as other, powercut.unchecked_hashes():
        _, faults = powercut.judged(other, plan, 1, **options)
    assert any("nearest" in fault for fault in faults)
    counts, faults = powercut.judged(root, plan, 1, **options)
    assert faults == []
    assert counts == {"torn data": 90}


# ---- the disk


def images(disk, model, n=40):
    rng = np.random.default_rng(0)
    return [disk.image(MODELS[model], rng) for _ in range(n)]


def test_what_was_synced_survives_every_cut():
    disk = Disk()
    file = disk.make("a")
    disk.files[file].write(0, b"x" * 1000)
    disk.sync(file)
    disk.sync(ROOT)
    for model in MODELS:
        assert [image.files for image in images(disk, model, 3)] == [{"a": b"x" * 1000}] * 3


def test_a_synced_file_is_lost_with_a_name_that_is_not():
    disk = Disk()
    disk.sync(disk.make("a"))
    assert images(disk, "nothing unsynced", 1)[0].files == {}
    assert {len(image.files) for image in images(disk, "some names")} == {0, 1}


def test_a_rename_survives_whole_or_not_at_all():
    disk = Disk()
    for name, content in (("new", b"new"), ("old", b"old")):
        file = disk.make(name)
        disk.files[file].write(0, content)
        disk.sync(file)
    disk.sync(ROOT)
    disk.rename("new", "old")
    found = [image.files for image in images(disk, "some names")]
    assert {tuple(sorted(files.items())) for files in found} == {
        (("old", b"new"),), (("new", b"new"), ("old", b"old")),
    }  # fmt: skip


def test_sectors_are_torn_apart_and_each_is_from_one_moment():
    disk = Disk()
    file = disk.make("a")
    disk.sync(ROOT)
    disk.files[file].write(0, b"1" * 1024)
    disk.files[file].sync()
    disk.files[file].write(0, b"2" * 1024)
    disk.files[file].write(256, b"3" * 256)
    halves = {(image.files["a"][:512], image.files["a"][512:]) for image in images(disk, "torn data", 300)}
    firsts = {b"1" * 512, b"2" * 512, b"2" * 256 + b"3" * 256}
    assert halves == {(first, second) for first in firsts for second in (b"1" * 512, b"2" * 512)}
