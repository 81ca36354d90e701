"""Cache files that fit their manifest but are none of embedstore's: refused before FAISS reads them, made anew."""

import copy
import hashlib
import json
import shutil
import sqlite3
import struct
from contextlib import closing

import numpy as np
import pytest

import embedstore
from embedstore.indexing import cachefile, faiss_index, space_cache
from embedstore.indexing.cachefile import DamagedCache, page_hash, read_manifest, write_manifest
from embedstore.optional import load_faiss
from embedstore.searching import plan

N, DIM = 300, 8
HEADER = struct.Struct("<4siqqqBi")


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A store with a space searched by HNSW, and its vectors."""
    path = tmp_path_factory.mktemp("crafted") / "store"
    matrix = np.random.default_rng(0).standard_normal((N, DIM)).astype(np.float32)
    with embedstore.open(path) as store:
        collection = store.collection("c", encoder="none", recipe="hnsw")
        collection.add({"key": str(i), "vector": row, "text": f"word{i}"} for i, row in enumerate(matrix))
        collection.index()
        collection.search("word1", mode="text")
    return path, matrix


@pytest.fixture
def indexed(written, tmp_path):
    """A copy of that store, not yet opened; the folder of its cache, and its vectors."""
    path, matrix = written
    copied = shutil.copytree(path, tmp_path / "store")
    return embedstore.open(copied), copied / "cache" / "space-1", matrix


def put_file(folder, kind, content):
    """Replace a file of the cache, and make the manifest fit it."""
    manifest = read_manifest(folder)
    file = manifest["files"][kind]
    (folder / file["name"]).write_bytes(content)
    file |= {
        "n_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
        "page_hash": page_hash(np.fromfile(folder / file["name"], np.uint8)),
    }  # fmt: skip
    write_manifest(folder, manifest)


def content_of(folder, kind="index"):
    return bytearray((folder / read_manifest(folder)["files"][kind]["name"]).read_bytes())


def assert_refused_unread(store, matrix, monkeypatch, caplog):
    """The cache is made anew, and FAISS is not asked to read anything on the way."""

    def read(*_):
        raise AssertionError("FAISS was asked to read the file")

    assert [one.part for one in store.verify().problems] == ["cache"]

    with monkeypatch.context() as patched:
        patched.setattr(load_faiss(), "read_index", read)
        assert_answers_rightly(store, matrix, caplog)
    assert_indexed_again(store, matrix)


def assert_answers_rightly(store, matrix, caplog):
    caplog.clear()
    collection = store.collection("c")
    for i in range(0, N, 29):
        assert collection.search(matrix[i], k=1).keys == [str(i)]
    assert "cache damaged, rebuilding" in caplog.text
    assert store.verify().ok


def assert_indexed_again(store, matrix):
    collection = store.collection("c")
    collection.index()
    assert collection.search(matrix[0]).plan.startswith("hnsw")


def with_header(content, **changes):
    """An index whose header claims something else."""
    names = ("code", "dim", "n_vectors", "first", "second", "is_trained", "metric")
    fields = dict(zip(names, HEADER.unpack_from(content), strict=True)) | changes
    content[: HEADER.size] = HEADER.pack(*fields.values())
    return bytes(content)


@pytest.mark.parametrize(
    "changes",
    [{"n_vectors": 2**34}, {"n_vectors": -1}, {"n_vectors": N - 1}, {"dim": 2**30}, {"dim": -8}, {"metric": 1},
     {"metric": 23}, {"is_trained": 0}, {"code": b"IxF2"}, {"code": b"IwFl"}],
)  # fmt: skip
def test_a_header_that_claims_something_else_is_refused(indexed, monkeypatch, caplog, changes):
    store, folder, matrix = indexed
    put_file(folder, "index", with_header(content_of(folder), **changes))
    assert_refused_unread(store, matrix, monkeypatch, caplog)


@pytest.mark.parametrize("n_bytes", [0, 3, 37, 45, 300, -4])
def test_an_index_that_ends_too_early_is_refused(indexed, monkeypatch, caplog, n_bytes):
    store, folder, matrix = indexed
    put_file(folder, "index", bytes(content_of(folder)[:n_bytes]))
    assert_refused_unread(store, matrix, monkeypatch, caplog)


def test_an_index_with_something_behind_it_is_refused(indexed, monkeypatch, caplog):
    store, folder, matrix = indexed
    put_file(folder, "index", bytes(content_of(folder)) + bytes(4))
    assert_refused_unread(store, matrix, monkeypatch, caplog)


@pytest.mark.parametrize("array", range(5))
@pytest.mark.parametrize("claimed", [0, 2**34, 2**61 + 6, 2**64 - 1])
def test_an_array_of_another_length_than_the_vectors_demand_is_refused(
    indexed, monkeypatch, caplog, array, claimed
):
    store, folder, matrix = indexed
    content = content_of(folder)
    offset = HEADER.size
    for n_bytes in (8, 4, 4, 8, 4)[:array]:
        offset += 8 + n_bytes * struct.unpack_from("<Q", content, offset)[0]
    content[offset : offset + 8] = struct.pack("<Q", claimed)
    put_file(folder, "index", bytes(content))
    assert_refused_unread(store, matrix, monkeypatch, caplog)


def nested(faiss, matrix):
    index = faiss.IndexFlatIP(DIM)
    index.add(matrix)
    for _ in range(50):
        index = faiss.IndexPreTransform(index)
    return index


@pytest.mark.parametrize(
    "make",
    [
        lambda faiss, matrix: faiss.index_factory(DIM, "Flat", faiss.METRIC_INNER_PRODUCT),
        lambda faiss, matrix: faiss.index_factory(DIM, "IDMap2,HNSW32,Flat", faiss.METRIC_INNER_PRODUCT),
        lambda faiss, matrix: faiss.index_factory(DIM, "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT),
        lambda faiss, matrix: faiss.index_factory(DIM, "HNSW32,Flat", faiss.METRIC_L2),
        nested,
    ],
    ids=["flat", "map", "quantised", "euclidean", "nested"],
)
def test_an_index_that_the_recipe_does_not_make_is_refused(indexed, monkeypatch, caplog, make):
    store, folder, matrix = indexed
    faiss = load_faiss()
    index = make(faiss, matrix)
    if not index.is_trained:
        index.train(matrix)
    if index.ntotal == 0:
        try:
            index.add(matrix)
        except RuntimeError:
            index.add_with_ids(matrix, np.arange(N))
    put_file(folder, "index", faiss.serialize_index(index).tobytes())
    assert_refused_unread(store, matrix, monkeypatch, caplog)


def test_a_graph_that_leads_out_of_the_index_is_refused(indexed, caplog):
    store, folder, matrix = indexed
    content = content_of(folder)
    offset = HEADER.size
    for n_bytes in (8, 4, 4, 8):
        offset += 8 + n_bytes * struct.unpack_from("<Q", content, offset)[0]
    content[offset + 8 : offset + 12] = struct.pack("<i", 2**30)
    put_file(folder, "index", bytes(content))
    assert_answers_rightly(store, matrix, caplog)
    assert_indexed_again(store, matrix)


def test_faiss_may_not_allocate_much_more_than_the_file_has(indexed):
    store, folder, _ = indexed
    faiss = load_faiss()
    faiss.set_deserialization_vector_byte_limit(1)
    n_bytes = len(content_of(folder))
    assert store.collection("c").search(np.ones(DIM)).plan.startswith("hnsw")
    assert faiss.get_deserialization_vector_byte_limit() <= 4 * n_bytes + 4096
    assert faiss_index._LOOP_LIMIT == faiss.get_deserialization_loop_limit()


def altered(path, value):
    """A change of a manifest: the field at ``path`` gets ``value``, or is removed where that is None."""

    def change(manifest):
        inner = manifest
        for name in path[:-1]:
            inner = inner[name]
        if value is None:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    return change


FIELDS = [("store",), ("space",), ("metric",), ("dim",), ("fingerprint",), ("change",), ("commit_id",), ("hi_seq",),
          ("n_vectors",), ("files",), ("files", "exact"), ("files", "labels"), ("files", "index_labels"),
          ("files", "index"), ("index", "recipe"), ("index", "n_vectors"), ("index", "hi_seq"),
          ("files", "exact", "name"), ("files", "labels", "n_bytes"), ("files", "index", "sha256"),
          ("files", "index", "page_hash")]  # fmt: skip


VALUES = [None, [], {"a": 1}, -1, 2**70, 1.5, True, "../../store.db", "x\0y"]


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_a_manifest_with_a_wrong_field_is_never_believed(indexed, path):
    store, folder, matrix = indexed
    manifest = read_manifest(folder)
    for value in VALUES:
        crafted = copy.deepcopy(manifest)
        altered(path, value)(crafted)
        write_manifest(folder, crafted)
        with embedstore.open(store.path) as fresh:
            assert all(one.cached for one in fresh.verify().problems)
            assert fresh.collection("c").search(matrix[60], k=1).keys == ["60"]
            assert fresh.verify().ok
            fresh.collection("c").index()


@pytest.mark.parametrize(
    "name", ["../../store.db", "/etc/passwd", "..", ".", "", "MANIFEST", "exact-0.f32", "a" * 5000]
)
def test_a_manifest_that_names_another_file_is_refused(indexed, name):
    store, folder, _ = indexed
    manifest = read_manifest(folder)
    manifest["files"]["exact"]["name"] = name
    write_manifest(folder, manifest)
    with pytest.raises(DamagedCache):
        read_manifest(folder)


@pytest.mark.parametrize(
    "text", [b"", b"null", b"[]", b"3", b"{}", b'"x"', b"[" * 100_000, b'{"manifest": []}', b"\xff\xfe", b"1" * 10_000]
)
def test_what_is_no_manifest_at_all_is_refused(indexed, caplog, text):
    store, folder, matrix = indexed
    (folder / "MANIFEST").write_bytes(text)
    assert store.verify().problems
    assert_answers_rightly(store, matrix, caplog)
    assert_indexed_again(store, matrix)


def test_a_manifest_of_another_store_is_passed_over(indexed):
    store, folder, matrix = indexed
    manifest = read_manifest(folder)
    manifest["store"] = "00000000-0000-0000-0000-000000000000"
    write_manifest(folder, manifest)
    assert store.verify().ok
    assert store.collection("c").search(matrix[3], k=1).keys == ["3"]


def test_a_manifest_of_a_newer_format_is_passed_over(indexed):
    store, folder, matrix = indexed
    write_manifest(folder, {"format": cachefile.MANIFEST_FORMAT + 1, "other": "fields"})
    assert store.verify().ok
    assert store.collection("c").search(matrix[3], k=1).keys == ["3"]


# ---- keyword indexes


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET value = 'many' WHERE name = 'change'",
        "UPDATE state SET value = '-1' WHERE name = 'last_record'",
        "DELETE FROM state WHERE name = 'commit_id'",
        "DELETE FROM state",
        "DROP TABLE state",
        "DELETE FROM words_data",
        "UPDATE state SET value = x'00ff' WHERE name = 'store'",
    ],
)
def test_a_keyword_index_that_was_altered_and_sealed_is_made_anew(indexed, statement):
    store, folder, _ = indexed
    path = folder.parent / "keywords-1.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    seal = {"n_bytes": path.stat().st_size, "page_hash": page_hash(np.fromfile(path, np.uint8))}
    path.with_suffix(".seal").write_text(json.dumps(seal))
    assert all(one.cached for one in store.verify().problems)
    assert store.collection("c").search("word7", mode="text").keys == ["7"]
    assert store.verify().ok


@pytest.mark.parametrize("seal", [b"", b"[]", b"null", b"[" * 100_000, b'{"n_bytes": "x", "page_hash": []}', b"\xff"])
def test_a_keyword_index_whose_seal_is_none_is_made_anew(indexed, seal):
    store, folder, _ = indexed
    (folder.parent / "keywords-1.seal").write_bytes(seal)
    assert [one.part for one in store.verify().problems] == ["cache"]
    assert store.collection("c").search("word7", mode="text").keys == ["7"]
    assert store.verify().ok


def test_the_manifest_that_is_written_is_sound(indexed):
    store, folder, _ = indexed
    assert cachefile.manifest_is_sound(read_manifest(folder))
