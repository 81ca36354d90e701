"""Files that stay on the disk are checked page by page: what is damaged is noticed when it is read, and made anew."""

import numpy as np
import pytest

import embedstore
from embedstore.indexing import cachefile
from embedstore.indexing.cachefile import CacheWriter, DamagedCache, Pages, open_pages, page_sums, write_sums
from embedstore.searching import plan

N, DIM = 4000, 32


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)


def pages_of(n_bytes, damaged=()):
    content = np.random.default_rng(0).integers(0, 256, n_bytes).astype(np.uint8)
    sums = page_sums(content)
    for offset in damaged:
        content[offset] ^= 1
    return Pages("file", content, sums)


@pytest.mark.parametrize("n_bytes", [1, 4095, 4096, 4097, 100_000])
def test_whole_pages_pass_however_they_are_asked_for(n_bytes):
    pages = pages_of(n_bytes)
    pages.check_ranges(np.array([0, n_bytes - 1]), np.array([n_bytes, 1]))
    pages.check_rows(np.arange(n_bytes // 100), 100)
    pages.check_all()


def test_a_damaged_page_is_noticed_by_whatever_touches_it_and_by_nothing_else():
    for offset in (0, 4095, 4096, 50_000, 99_999):
        pages = pages_of(100_000, [offset])
        row = offset // 100
        untouched = np.array([one for one in range(1000) if (one * 100) // 4096 != offset // 4096
                              and (one * 100 + 99) // 4096 != offset // 4096])  # fmt: skip
        pages.check_rows(untouched, 100)
        with pytest.raises(DamagedCache, match="file does not hold what was written"):
            pages.check_rows(np.array([row]), 100)
        with pytest.raises(DamagedCache):
            pages.check_ranges(np.array([offset]), np.array([1]))
        with pytest.raises(DamagedCache):
            pages.check_all()


def test_sums_of_another_file_are_refused(tmp_path):
    with CacheWriter(tmp_path, "exact", ".f32") as writer:
        writer.write(b"x" * 10_000)
    with CacheWriter(tmp_path, "exact", ".f32") as other:
        other.write(b"y" * 10_000)
    assert open_pages(tmp_path, writer.written, write_sums(tmp_path, writer.sums)).content.size == 10_000
    with pytest.raises(DamagedCache, match="does not hold the sums of"):
        open_pages(tmp_path, writer.written, write_sums(tmp_path, other.sums))


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(cachefile, "CHECKED_WHOLE", 0)  # as if these files were large
    matrix = np.random.default_rng(1).standard_normal((N, DIM)).astype(np.float32)
    store = embedstore.open(tmp_path / "store")
    collection = store.collection("c", encoder="none", recipe="ivf-disk")
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(matrix))
    collection.index()
    store.close()
    return store, matrix, tmp_path / "store" / "cache" / "space-1"


def damage(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("pattern", ["exact-*.f32", "ivf-disk-*.faiss"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
@pytest.mark.parametrize("whole", [0, 1 << 30], ids=["page by page", "whole"])
def test_damage_in_a_file_on_the_disk_never_reaches_an_answer(on_disk, caplog, pattern, share, whole, monkeypatch):
    monkeypatch.setattr(cachefile, "CHECKED_WHOLE", whole)
    store, matrix, folder = on_disk
    (path,) = folder.glob(pattern)
    damage(path, int(path.stat().st_size * share))
    collection = store.collection("c")
    for i in range(0, N, 7):
        assert collection.search(matrix[i], 1).keys == [str(i)]
    assert collection.search_batch(matrix[:300], 1)[299].keys == ["299"]
    assert collection.search(matrix[5], 3, where="n < 50").keys[0] == "5"
    assert "cache damaged, rebuilding from the database" in caplog.text
    store.close()


@pytest.mark.parametrize("pattern", ["sums-*.sums", "labels-*.i64"])
def test_damage_in_what_a_file_is_checked_by_is_noticed_at_once(on_disk, caplog, pattern):
    store, matrix, folder = on_disk
    for path in folder.glob(pattern):
        damage(path, path.stat().st_size // 2)
    assert store.verify().problems
    assert store.collection("c").search(matrix[9], 1).keys == ["9"]
    assert "cache damaged" in caplog.text
    store.close()


def test_a_search_of_lists_on_the_disk_reads_few_pages(on_disk):
    store, matrix, _ = on_disk
    collection = store.collection("c")
    assert collection.search(matrix[3], 1).plan.startswith("ivf-disk")
    view = store.search.space_cache(1)._view
    assert view.pages is not None
    assert 0 < view.pages._checked.sum() < 0.6 * view.pages._checked.size
    store.close()


def test_small_files_are_checked_when_they_are_opened_and_searched_in_one_step(on_disk, monkeypatch):
    store, matrix, _ = on_disk
    by_page = [store.collection("c").search(row + np.float32(0.1), 5) for row in matrix[:50]]
    store.close()
    monkeypatch.setattr(cachefile, "CHECKED_WHOLE", 1 << 30)
    collection = store.collection("c")
    whole = [collection.search(row + np.float32(0.1), 5) for row in matrix[:50]]
    view = store.search.space_cache(1)._view
    assert view.pages is None and view.approximate.refined.searched is not None
    for one, other in zip(whole, by_page, strict=True):
        assert one.plan == other.plan and one.plan.startswith("ivf-disk")
        assert [(hit.key, hit.score) for hit in one] == [(hit.key, hit.score) for hit in other]
    store.close()


def test_a_damaged_file_that_was_replaced_meanwhile_does_not_cost_the_new_cache(on_disk):
    store, matrix, folder = on_disk
    with embedstore.open(store.path) as first, embedstore.open(store.path) as other:
        collection = first.collection("c")
        assert "ivf-disk" in collection.search(matrix[0], 3).plan
        (exact,) = folder.glob("exact-*.f32")
        with exact.open("r+b") as file:
            file.seek(4096)
            file.write(bytes(exact.stat().st_size - 8192))
        other.collection("c").upsert([{"key": "new", "vector": matrix[0], "n": -1}])
        other.collection("c").index()
        manifest = (folder / "MANIFEST").read_bytes()
        for row in (1000, 2000, 3000):
            hits = collection.search(matrix[row], 3)
            assert hits.keys[0] == str(row) and "ivf-disk" in hits.plan
        assert (folder / "MANIFEST").read_bytes() == manifest and not list(folder.glob("*.corrupt"))
