"""``repair`` brings what is whole into a new store, lists the rest, and leaves the damaged store as it is."""

import sqlite3
import struct
from contextlib import closing

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput, StoreNotFound
from embedstore.model import Metric
from embedstore.storage.sqlite_creation import PAGE_BYTES

DIM = 4


@pytest.fixture
def filled(store):
    """A closed store: its folder, and its records and vectors by key."""
    matrix = np.random.default_rng(0).standard_normal((400, DIM)).astype(np.float32)
    collection = store.collection("films", encoder="none", metric="euclidean", recipe="hnsw")
    collection.add(
        {"key": f"k{i}", "vector": row, "text": f"text {i} " + "long " * (i % 50), "n": i, "uri": f"file:{i}"}
        for i, row in enumerate(matrix)
    )
    collection.delete(["k0", "k1"])
    held = {one.key: (one.content, one.metadata, one.uri) for one in collection.records()}
    store.close()
    return store.path, held, matrix


def altered(path, statement):
    with closing(sqlite3.connect(path / "store.db")) as database, database:
        database.execute(statement)


def read(path):
    with embedstore.open(path) as store:
        assert store.verify().ok
        return {
            name: {one.key: (one.content, one.metadata, one.uri) for one in store.collection(name).records()}
            for name in store.collections()
        }


def test_a_whole_store_is_brought_over_completely(filled, tmp_path):
    path, held, matrix = filled
    report = embedstore.repair(path, tmp_path / "new")
    assert (report.lost, report.n_records, report.n_vectors) == ([], 398, 398)
    assert read(tmp_path / "new") == {"films": held}
    with embedstore.open(path) as old, embedstore.open(tmp_path / "new") as new:
        first, second = (one.collection("films") for one in (old, new))
        assert first.stats()["digest"] == second.stats()["digest"]
        assert second.space().metric is Metric.EUCLIDEAN
        assert second.search(matrix[7], 3).keys == first.search(matrix[7], 3).keys
        assert old.stats()["uuid"] != new.stats()["uuid"]
        second.add([{"key": "more", "vector": matrix[0]}])


@pytest.mark.parametrize(
    ("statement", "lost"),
    [
        ("UPDATE records SET content = 'x' WHERE key = 'k9'", {"k9"}),
        ("UPDATE records SET metadata = '{' WHERE key = 'k9'", {"k9"}),
        ("UPDATE records SET row_hash = 'x' WHERE key IN ('k9', 'k10')", {"k9", "k10"}),
        ("UPDATE records SET modality = 'smell' WHERE key = 'k9'", {"k9"}),
        ("UPDATE records SET metadata = NULL WHERE 0", set()),
    ],
)
def test_exactly_what_is_damaged_is_lost_and_listed(filled, tmp_path, statement, lost):
    path, held, _ = filled
    altered(path, statement)
    before = (path / "store.db").read_bytes()
    report = embedstore.repair(path, tmp_path / "new")
    assert (path / "store.db").read_bytes() == before
    assert read(tmp_path / "new") == {"films": {key: one for key, one in held.items() if key not in lost}}
    assert bool(report.lost) == bool(lost)
    if lost:
        assert any(f"{len(held) - len(lost)} of its {len(held)} records" in str(one) for one in report.lost)


def test_a_damaged_vector_is_left_out_and_its_record_kept(filled, tmp_path):
    path, held, matrix = filled
    altered(path, "UPDATE vectors SET vec = zeroblob(16) WHERE vector_id = (SELECT max(vector_id) FROM vectors)")
    report = embedstore.repair(path, tmp_path / "new")
    assert (report.n_records, report.n_vectors) == (398, 397)
    assert [one.part for one in report.lost] == ["vector", "space"]
    with embedstore.open(tmp_path / "new") as store:
        assert store.verify().ok
        assert store.collection("films").get("k399").content == held["k399"][0]
        assert "k399" not in store.collection("films").search(matrix[399], 400).keys


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("DELETE FROM spaces", "its name and settings are lost; its vectors are kept"),
        ("UPDATE spaces SET dim = 5", "they have 4"),
        ("UPDATE spaces SET dim = NULL", "they have 4"),
        ("UPDATE spaces SET collection_id = 77", ""),
        ("UPDATE spaces SET recipe = 'hnsv'", "its recipe is lost"),
        ("UPDATE spaces SET name = 'a' || char(1)", "its name is lost"),
        ("UPDATE spaces SET fingerprint = 'abc'", "what its encoder was is lost"),
        ("UPDATE spaces SET encoder = '{]', fingerprint = 'abc'", "what its encoder was is lost"),
        ("UPDATE spaces SET metric = 'cosime'", "compared by cosine"),
    ],
)
def test_vectors_survive_the_loss_of_what_describes_them(filled, tmp_path, statement, what):
    path, held, matrix = filled
    altered(path, statement)
    report = embedstore.repair(path, tmp_path / "new")
    assert what == "" or any(what in str(one) for one in report.lost), report.lost
    assert report.n_vectors == 398
    assert read(tmp_path / "new") == {"films": held}
    with embedstore.open(tmp_path / "new") as store:
        assert np.array_equal(store.collection("films").vectors(["k7"])[0], matrix[7])


@pytest.mark.parametrize("statement", ["DELETE FROM collections", "UPDATE collections SET name = 'a' || char(7)"])
def test_records_survive_the_loss_of_their_collections_name(filled, tmp_path, statement):
    path, held, _ = filled
    altered(path, statement)
    report = embedstore.repair(path, tmp_path / "new")
    assert read(tmp_path / "new") == {"salvaged-1": held}
    assert report.lost[0].name == "salvaged-1"


def test_spaces_of_an_encoder_stay_with_it(store, tmp_path):
    store.collection("c", encoder="letters").add([{"key": "a", "text": "abba"}, {"key": "b", "text": "cede"}])
    store.close()
    altered(store.path, "UPDATE commits SET digest = zeroblob(16)")
    embedstore.repair(store.path, tmp_path / "new")
    with embedstore.open(tmp_path / "new") as new:
        assert new.collection("c").search("ab", 1).keys == ["a"]
        new.collection("c").add([{"key": "c", "text": "aaaa"}])
        assert new.verify().ok


def test_commits_that_are_only_in_the_log_are_brought_over(store, tmp_path):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    store.close()
    with embedstore.open(store.path) as again:
        again.collection("c").add([{"key": "b", "vector": [2.0]}])
        again.collection("c").delete(["a"])
        assert (store.path / "store.db-wal").stat().st_size > 0
        report = embedstore.repair(store.path, tmp_path / "new")
    assert report.lost == []
    assert list(read(tmp_path / "new")["c"]) == ["b"]


def test_a_lost_log_is_listed(store, tmp_path):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    store.close()
    copy = (store.path / "store.db").read_bytes()
    collection.add([{"key": "b", "vector": [2.0]}])
    store.close()
    (store.path / "store.db").write_bytes(copy)
    report = embedstore.repair(store.path, tmp_path / "new")
    assert ["was acknowledged" in str(one) for one in report.lost] == [True]
    assert list(read(tmp_path / "new")["c"]) == ["a"]


def test_what_is_no_store_and_what_is_in_the_way_is_refused(filled, tmp_path):
    path, _, _ = filled
    with pytest.raises(StoreNotFound):
        embedstore.repair(tmp_path / "nothing", tmp_path / "new")
    with pytest.raises(InvalidInput, match="exists"):
        embedstore.repair(path, tmp_path)
    with pytest.raises(InvalidInput, match="in the store itself"):
        embedstore.repair(path, path / "new")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["store"]


def test_a_damaged_list_of_free_pages_makes_no_page_in_use_be_left_out(filled, tmp_path):
    folder, held, _ = filled
    with embedstore.open(folder) as store:
        store.collection("films").delete(where="n >= 200")
    kept = {key: one for key, one in held.items() if int(key[1:]) < 200}
    content = bytearray((folder / "store.db").read_bytes())
    trunk, n_free = struct.unpack(">2I", content[32:40])
    assert n_free  # or there is no list to damage
    claimed = [page for page in range(2, len(content) // PAGE_BYTES + 1) if page != trunk]
    start = (trunk - 1) * PAGE_BYTES
    content[start : start + 8 + 4 * len(claimed)] = struct.pack(f">{2 + len(claimed)}I", 0, len(claimed), *claimed)
    (folder / "store.db").write_bytes(content)
    report = embedstore.repair(folder, tmp_path / "new")
    assert any("list of free pages" in problem.what for problem in report.lost)
    assert kept.items() <= read(tmp_path / "new")["films"].items()


def test_what_has_no_vector_any_more_and_what_has_no_record_is_listed_one_by_one(filled, tmp_path):
    path, _, _ = filled
    altered(path, "UPDATE vectors SET vec = zeroblob(16) WHERE vector_id % 1099511627776 = 7")
    altered(path, "DELETE FROM vectors WHERE vector_id % 1099511627776 = 9")
    altered(path, "UPDATE records SET content = 'other' WHERE key = 'k20'")
    report = embedstore.repair(path, tmp_path / "new")
    lines = [str(problem) for problem in report.lost]
    assert "vector films/vector/'k6': it is not what was written" in lines
    assert "record films, number 21: its row was not found, though a vector of it was" in lines
    assert any(line.startswith("record 'k20': ") for line in lines)
    assert "vector films/'k8': it has no vector in 'vector' now; if it had one, that was lost" in lines


def test_what_was_measured_when_a_space_was_tuned_is_brought_over_the_newest_of_it(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((700, 8)).astype(np.float32)
    with embedstore.open(tmp_path / "old") as store:
        collection = store.collection("c", encoder="none")
        collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
        collection.tune(recall=0.9, recipes=["hnsw"])
        collection.tune(recall=0.8, recipes=["hnsw"])
        kept = collection.space().tuning()
        curve = collection.space().tuning_curve()
        assert kept["recall"] >= 0.8 and curve
    report = embedstore.repair(tmp_path / "old", tmp_path / "new")
    assert report.lost == []
    with embedstore.open(tmp_path / "new") as store:
        assert store.verify().ok
        assert store.collection("c").space().tuning() == kept
        assert store.collection("c").space().tuning_curve() == curve
