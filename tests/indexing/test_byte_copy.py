"""The copy of a space in bytes: its bounds hold, and a scan by it finds just what a scan of the vectors finds."""

import copy
import hashlib
import json
import shutil
import weakref
from dataclasses import replace

import numpy as np
import pytest

import embedstore
from embedstore.indexing import byte_copy, space_cache
from embedstore.indexing.byte_copy import ByteCopy, is_worthwhile, width_of, write_copy
from embedstore.indexing.cachefile import DamagedCache, page_hash, read_manifest, write_manifest
from embedstore.indexing.costs import IndexCosts, ScanCosts
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_index import FaissIndex, build_index
from embedstore.indexing.recipes import all_recipes
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.indexing.steps import Steps
from embedstore.model import Metric
from embedstore.optional import load_faiss
from embedstore.searching import byte_scan, plan

N = 6_000


@pytest.fixture(autouse=True)
def faiss_is_there():
    """A process's first scan does not wait for FAISS, and so has no use for the bytes."""
    load_faiss()


def clustered(dim, seed=0):
    """Vectors in clusters, away from zero, whose numbers differ much in size."""
    random = np.random.default_rng(seed)
    centres = 3 * random.standard_normal((40, dim))
    sizes = np.exp(random.standard_normal(dim))
    return ((centres[random.integers(0, 40, N)] + random.standard_normal((N, dim)) + 2) * sizes).astype(np.float32)


def with_far_ones(dim):
    matrix = clustered(dim)
    matrix[::2000] *= 1_000
    return matrix


def with_equals(dim):
    """Vectors of which many are there again and again."""
    matrix = clustered(dim)
    matrix[:3_000] = np.repeat(matrix[:30], 100, axis=0)
    return matrix[np.random.default_rng(1).permutation(N)]


def tiny(dim):
    return clustered(dim) * np.float32(1e-6)


def half_alike(dim):
    """Vectors of which every second differs from the others of its kind by less than a step."""
    random = np.random.default_rng(2)
    matrix = random.standard_normal((N, dim))
    matrix[::2] = 1 + 1e-4 * random.standard_normal((N // 2, dim))
    return matrix.astype(np.float32)


def view_of(folder, matrix, metric, *, n_delta=0):
    """A view of vectors, of which the last are not in the cache yet."""
    matrix = prepared(matrix, metric)
    n, dim = matrix.shape
    base = matrix[: n - n_delta]
    made = write_copy(folder, base)
    assert made is not None
    numbers = np.arange(n)
    return SpaceView(
        space_id=1, metric=metric, dim=dim, change=1, last_seq=n, base=base, delta=matrix[n - n_delta :],
        seqs=numbers + 1, record_ids=numbers, alive=None, n_alive=n,
        byte_copy=ByteCopy(folder, *made, base.shape, metric),
    )  # fmt: skip


def queries_of(view, n=25, seed=3):
    """Some of the vectors, some near them, some elsewhere."""
    random = np.random.default_rng(seed)
    rows = np.concatenate([view.base, view.delta])[random.integers(0, view.n_rows, n)]
    spread = np.float32(rows.std())
    near = rows + 0.1 * spread * random.standard_normal(rows.shape).astype(np.float32)
    elsewhere = spread * random.standard_normal(rows.shape).astype(np.float32)
    return prepared(np.concatenate([rows, near, elsewhere, 1e6 * elsewhere]), view.metric)


def scan_bytes(view, query, k, selection):
    """A scan by the bytes, whatever it costs."""
    asked = byte_scan.asked_of_bytes(view, ScanCosts.guessed(view.dim), k, selection)
    return None if asked is None else byte_scan.scan_bytes(view, query, k, selection, asked)


def true_scores(matrix, query, metric):
    matrix, query = matrix.astype(np.float64), query.astype(np.float64)
    return -np.linalg.norm(matrix - query, axis=1) if metric is Metric.EUCLIDEAN else matrix @ query


KINDS = [clustered, with_far_ones, with_equals, tiny]


@pytest.mark.parametrize("dim", [64, 75, 384])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", list(Metric))
def test_no_score_is_further_from_that_of_the_bytes_than_is_told(tmp_path, kind, metric, dim):
    view = view_of(tmp_path, kind(dim), metric)
    near = np.ones(N, np.bool_)
    near[view.byte_copy.far] = False
    for query in queries_of(view, 6):
        found = view.byte_copy.candidates(query, 200)
        scores = true_scores(view.base, query, metric)
        kept = near[found.rows]
        assert (np.abs(scores[found.rows] - found.scores)[kept] <= found.within).all()
        others = near.copy()
        others[found.rows] = False
        assert scores[others].max() <= found.bound
        assert (np.diff(found.scores) <= 0).all()


@pytest.mark.parametrize("metric", list(Metric))
def test_the_bounds_are_of_use(tmp_path, metric):
    """They are far smaller than what scores differ by, so a bound that is always true does not pass."""
    view = view_of(tmp_path, clustered(384), metric)
    for query in queries_of(view, 5)[:10]:
        found = view.byte_copy.candidates(query, 200)
        assert found.within < 0.1 * np.ptp(true_scores(view.base, query, metric))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", list(Metric))
def test_a_scan_by_the_bytes_finds_what_a_scan_finds(tmp_path, kind, metric):
    view = view_of(tmp_path, kind(75), metric, n_delta=300)
    random = np.random.default_rng(4)
    most = random.random(N) < 0.5
    most[5_900:] = True
    n_told = n_asked = 0
    for selection in (None, Selection(most), Selection(random.random(N) < 0.999)):
        for k in (1, 10, 100):
            for query in queries_of(view, 8):
                n_asked += 1
                found = scan_bytes(view, query, k, selection)
                if found is None:
                    continue
                n_told += 1
                rows, scores = view.scan(query, k, selection)
                assert found.rows.tolist() == rows.tolist()
                np.testing.assert_array_equal(found.scores, scores)
    assert n_told > 0.4 * n_asked  # far queries are hard to tell of by distance


@pytest.mark.parametrize("metric", list(Metric))
def test_rows_that_are_asked_for_again_are_kept_together_and_searched_alone(tmp_path, metric):
    view = view_of(tmp_path, with_far_ones(75), metric, n_delta=300)
    half = Selection(np.random.default_rng(4).random(N) < 0.5)
    queries = queries_of(view, 8)
    expected = [view.scan(query, 10, half) for query in queries]
    for _ in range(2):
        for query, (rows, scores) in zip(queries, expected, strict=True):
            found = scan_bytes(view, query, 10, half)
            if found is not None:
                assert found.rows.tolist() == rows.tolist()
                np.testing.assert_array_equal(found.scores, scores)
    part = view.byte_copy.kept_part(half)
    assert part.rows.tolist() == [row for row in half.rows.tolist() if row < N - 300]
    assert view.byte_copy.kept_part(None) is None


def test_what_is_kept_of_rows_has_a_bound_and_goes_with_the_selection(tmp_path):
    view = view_of(tmp_path, clustered(64), Metric.COSINE)
    random = np.random.default_rng(4)
    thirds = [Selection(random.random(N) < 0.3) for _ in range(6)]
    for _ in range(2):
        for selection in thirds:
            for _ in range(4):
                scan_bytes(view, view.base[0], 10, selection)
    kept = [selection for selection in thirds if view.byte_copy.kept_part(selection) is not None]
    assert kept == thirds[-3:]  # as many as the copy has bytes
    gone = weakref.ref(view.byte_copy.kept_part(thirds[-1]).content)
    thirds.clear(), kept.clear()
    del selection
    assert gone() is None
    assert view.byte_copy.kept_part(None) is None
    rows, scores = view.scan(view.base[0], 10, None)
    everywhere = scan_bytes(view, view.base[0], 10, None)
    assert everywhere.rows.tolist() == rows.tolist()

    for unfit in (Selection(random.random(N) < 0.9), Selection(random.random(N) < 0.05),
                  Selection(random.random(N) < 0.3, lasting=False)):  # fmt: skip
        for _ in range(6):
            assert view.byte_copy.part(unfit) is None


def test_few_vectors_are_compared_in_full(tmp_path):
    view = view_of(tmp_path, clustered(384), Metric.COSINE)
    compared = [scan_bytes(view, query, 10, None).n_compared for query in queries_of(view, 10)[:20]]
    assert max(compared) < 200


def test_where_the_bytes_do_not_tell_the_vectors_apart_they_are_not_asked_for_long(tmp_path, monkeypatch):
    view = view_of(tmp_path, half_alike(64), Metric.EUCLIDEAN)
    asked = []
    candidates = ByteCopy.candidates
    monkeypatch.setattr(ByteCopy, "candidates", lambda *given: asked.append(1) or candidates(*given))
    for _ in range(100):
        alike = plan.nearest(view, view.base[100], 10, None)
        assert alike.plan == "exact scan of 6,000 vectors"
        assert alike.rows.tolist() == view.scan(view.base[100], 10, None)[0].tolist()
    assert len(asked) < 25
    easy = [plan.nearest(view, view.base[101], 1, None) for _ in range(100)]
    assert [one.rows.tolist() for one in easy] == [[101]] * 100
    assert all("by a byte a number" in one.plan for one in easy[-50:])


@pytest.mark.parametrize(
    ("k", "share", "by_bytes"), [(10, 1, True), (10, 0.5, True), (900, 1, False), (10, 0.05, False)]
)
def test_the_bytes_are_asked_where_that_takes_less(tmp_path, k, share, by_bytes):
    view = view_of(tmp_path, clustered(384), Metric.COSINE)
    selection = None if share == 1 else Selection(np.random.default_rng(0).random(N) < share)
    found = plan.nearest(view, view.base[100], k, selection)
    assert ("by a byte a number" in found.plan) is by_bytes


@pytest.mark.parametrize(("n_cores", "n", "by_bytes"), [(2, 3, True), (2, 16, False), (64, 3, False), (2, 40, False)])
def test_few_queries_at_once_go_by_the_bytes_where_that_takes_less(tmp_path, monkeypatch, n_cores, n, by_bytes):
    monkeypatch.setattr(plan, "usable_cores", lambda: n_cores)
    view = view_of(tmp_path, clustered(256), Metric.COSINE)
    view.byte_copy._doubts, view.byte_copy._levels = {}, {size: (1, 7) for size in range(12)}
    queries = queries_of(view, n)[:n]
    batch = plan.nearest_batch(view, queries, 5, None)
    assert ("by a byte a number" in batch.plan) == by_bytes
    assert ("queries at once" in batch.plan) != by_bytes
    if not by_bytes:  # to weigh it is not to ask
        assert set(view.byte_copy._levels.values()) == {(1, 7)}
    for line, query in enumerate(queries):
        alone = plan.nearest(view, query, 5, None)
        assert np.array_equal(batch.rows[line], alone.rows) and np.array_equal(batch.scores[line], alone.scores)


def test_how_many_it_takes_is_learnt(tmp_path, monkeypatch):
    """Where the first few are never enough, more are asked for at once, and now and then fewer again."""
    random = np.random.default_rng(0)
    matrix = random.standard_normal((30, 64))[random.integers(0, 30, N)] + 0.02 * random.standard_normal((N, 64))
    view = view_of(tmp_path, matrix.astype(np.float32), Metric.EUCLIDEAN)
    wanted = []
    candidates = ByteCopy.candidates
    monkeypatch.setattr(ByteCopy, "candidates", lambda *given: wanted.append(given[2]) or candidates(*given))
    for query in view.base[:150]:
        found = scan_bytes(view, query, 10, None)
        assert found.rows.tolist() == view.scan(query, 10, None)[0].tolist()
    assert wanted[:2] == [64, 256]
    assert wanted[2:52] == [256] * 50
    assert 2 <= wanted.count(64) <= 5
    assert len(wanted) < 160


def test_where_the_bytes_tell_too_little_an_index_is_asked_rather_than_every_vector(tmp_path):
    recipe = all_recipes()["flat-fp16"]
    view = view_of(tmp_path, half_alike(64), Metric.EUCLIDEAN)
    built, shape = build_index(view.base, recipe, view.metric)
    costs = IndexCosts(60.0 * N, 0.0, 1.0, ScanCosts(100.0, 110.0))  # less than a scan, more than one by bytes
    view = replace(view, approximate=Approximate.of_rows(FaissIndex(built, shape), view.base, {}, costs))
    assert "by a byte a number" in plan.nearest(view, view.base[101], 1, None).plan
    assert plan.nearest(view, view.base[100], 10, None).plan.startswith("flat-fp16 over 6,000 vectors")
    assert plan.nearest(view, view.base[101], 1_000, None).plan.startswith("flat-fp16 over 6,000 vectors")


def test_a_vector_of_zeros_is_told_nothing_of(tmp_path):
    view = view_of(tmp_path, clustered(64), Metric.DOT)
    assert scan_bytes(view, np.zeros(64, np.float32), 3, None) is None


def test_vectors_that_are_all_the_same_or_beyond_all_measure_have_no_copy(tmp_path):
    ones = np.ones((N, 64), np.float32)
    assert write_copy(tmp_path, ones) is None
    assert write_copy(tmp_path, clustered(64) * np.float32(1e-30)) is None
    assert write_copy(tmp_path, clustered(64) * np.float32(1e30)) is None
    assert list(tmp_path.iterdir()) == []


def test_the_bytes_are_those_that_faiss_makes(tmp_path):
    faiss = load_faiss()
    matrix = clustered(75)
    made, steps = write_copy(tmp_path, matrix)
    content = np.fromfile(tmp_path / made.name, np.uint8)
    width = width_of(75)
    assert width == 96
    bytes_ = content[: N * width].reshape(N, width)
    centre = content[N * width : N * width + 4 * 75].view("<f4")
    numbers = np.zeros((N, width), np.float32)
    numbers[:, :75] = np.clip(np.rint((matrix - centre) / np.float32(steps.scale)), -128, 127)
    index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_L2)
    index.add(numbers)
    np.testing.assert_array_equal(faiss.vector_to_array(index.codes).reshape(N, width), bytes_)


def test_only_recipes_that_compare_every_vector_of_a_large_space_have_one():
    recipes = all_recipes()
    with_copy = {name for name, recipe in recipes.items() if is_worthwhile(recipe, 60_000, 384)}
    assert with_copy == {"flat", "flat-fp16", "gpu-flat"}
    flat = recipes["flat"]
    assert not is_worthwhile(flat, 10_000, 384)
    assert not is_worthwhile(flat, 1_000_000, 32)


# ---- in a store

STORED, DIM = 1_500, 64


@pytest.fixture
def copied(monkeypatch):
    """Spaces of these tests are large enough for a copy, and written to their cache at once."""
    monkeypatch.setattr(byte_copy, "_FEWEST_NUMBERS", STORED * DIM // 2)
    monkeypatch.setattr(space_cache, "_BUILD_BYTES", 0)
    asked = plan.asked_of_bytes

    def for_nothing(*given):
        found = asked(*given)
        return None if found is None else found._replace(cost=0.0)

    monkeypatch.setattr(plan, "asked_of_bytes", for_nothing)


@pytest.fixture
def stored(copied, tmp_path):
    """A collection of clustered vectors in three spaces, one for each metric, and the vectors."""
    matrix = clustered(DIM)[:STORED]
    with embedstore.open(tmp_path / "store") as store:
        collection = store.collection("c", encoder="none", metric="cosine")
        for metric in ("dot", "euclidean"):
            collection.add_space(metric, encoder="none", dim=DIM, metric=metric)
        collection.add(
            {"key": f"k{i}", "vectors": {"vector": row, "dot": row, "euclidean": row}, "even": i % 2 == 0}
            for i, row in enumerate(matrix)
        )
        yield collection, matrix


def truth(matrix, query, metric, allowed, k=10):
    found = prepared(np.vstack([matrix, query]), Metric(metric))
    scores = true_scores(found[:-1], found[-1], Metric(metric))
    scores[~allowed] = -np.inf
    return [f"k{row}" for row in np.argsort(-scores, kind="stable")[:k]]


SPACES = {"vector": "cosine", "dot": "dot", "euclidean": "euclidean"}


def assert_searched_rightly(collection, matrix, alive, *, damaged=None):
    random = np.random.default_rng(5)
    even = np.arange(len(matrix)) % 2 == 0
    for space, metric in SPACES.items():
        for query in matrix[random.integers(0, len(matrix), 6)] + random.standard_normal((6, DIM)).astype(np.float32):
            plain = collection.search(query, space=space)
            assert plain.exact
            assert ("by a byte a number" in plain.plan) is (space != damaged)
            assert [hit.record.key for hit in plain] == truth(matrix, query, metric, alive)
            halved = collection.search(query, space=space, where="even = true")
            assert halved.exact
            assert [hit.record.key for hit in halved] == truth(matrix, query, metric, alive & even)


def test_searches_go_by_the_bytes_and_are_right_after_changes_and_restarts(stored):
    collection, matrix = stored
    alive = np.ones(STORED, np.bool_)
    assert_searched_rightly(collection, matrix, alive)
    for i in range(0, 300, 3):
        collection.delete([f"k{i}"])
        alive[i] = False
    assert_searched_rightly(collection, matrix, alive)
    for i in range(1, 40, 3):
        matrix[i] += 5
        vectors = dict.fromkeys(SPACES, matrix[i])
        collection.upsert([{"key": f"k{i}", "vectors": vectors, "even": i % 2 == 0}])
    assert_searched_rightly(collection, matrix, alive)
    collection.store.close()
    assert_searched_rightly(embedstore.open(collection.store.path).collection("c"), matrix, alive)


def test_an_index_instead_of_the_scan_takes_the_copy_away_and_a_scan_brings_it_back(stored):
    collection, matrix = stored
    folder = collection.store.path / "cache" / "space-1"
    collection.search(matrix[0])
    assert list(folder.glob("bytes-*.u8"))
    collection.index(recipe="hnsw")
    assert not list(folder.glob("bytes-*"))
    collection.index(recipe="flat")
    collection.search(matrix[0])
    assert list(folder.glob("bytes-*.u8"))
    assert "by a byte a number" in collection.search(matrix[0]).plan


def test_the_half_precision_recipe_is_scanned_by_the_bytes_too(stored):
    collection, matrix = stored
    collection.index(recipe="flat-fp16")
    assert_searched_rightly(collection, matrix, np.ones(STORED, np.bool_))


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_copy_is_noticed_and_made_anew(stored, damage, caplog):
    collection, matrix = stored
    collection.search(matrix[0])
    collection.store.close()
    folder = collection.store.path / "cache" / "space-1"
    (path,) = folder.glob("bytes-*.u8")
    content = bytearray(path.read_bytes())
    content[1000] ^= 64
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content if damage == "changed" else content[:-8])
    alive = np.ones(STORED, np.bool_)
    with embedstore.open(collection.store.path) as store:
        assert [problem.part for problem in store.verify().problems] == ["cache"]
        assert_searched_rightly(store.collection("c"), matrix, alive, damaged="vector")
        told = [record.message for record in caplog.records if "every vector is compared" in record.message]
        assert len(told) == 1 and path.name in told[0]
        store.collection("c").index()
        assert_searched_rightly(store.collection("c"), matrix, alive)
        assert store.verify().problems == []


@pytest.mark.parametrize("missing", ["damaged", "never made", "cannot be made"])
def test_the_end_of_an_ingest_makes_a_copy_that_is_not_there(stored, missing, monkeypatch):
    collection, matrix = stored
    collection.search(matrix[0])
    folder = collection.store.path / "cache" / "space-1"
    (path,) = folder.glob("bytes-*.u8")
    collection.store.close()
    if missing == "damaged":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        path.unlink()
        without = {} if missing == "never made" else {"bytes": None}
        rewrite(folder, lambda told: (told.pop("bytes"), told["files"].pop("bytes"), told.update(without)))
    with embedstore.open(collection.store.path) as store:
        again = store.collection("c")
        assert again.search(matrix[0]).plan == "exact scan of 1,500 vectors"
        again.refresh()  # as an ingest does at its end
        assert len(list(folder.glob("bytes-*.u8"))) == (missing != "cannot be made")
        assert ("by a byte a number" in again.search(matrix[0]).plan) is (missing != "cannot be made")


def test_a_copy_that_another_process_mended_is_used(stored):
    collection, matrix = stored
    collection.search(matrix[0])
    collection.store.close()
    folder = collection.store.path / "cache" / "space-1"
    (path,) = folder.glob("bytes-*.u8")
    path.write_bytes(bytes(path.stat().st_size))
    with embedstore.open(collection.store.path) as reader, embedstore.open(collection.store.path) as mender:
        for _ in range(4):  # by the last look, too
            assert reader.collection("c").search(matrix[0]).plan == "exact scan of 1,500 vectors"
        mender.collection("c").index()
        for _ in range(4):
            assert "by a byte a number" in reader.collection("c").search(matrix[0]).plan


def test_a_space_with_a_copy_is_searched_where_nothing_can_be_written_and_the_copy_is_damaged(stored, monkeypatch):
    collection, matrix = stored
    assert_searched_rightly(collection, matrix, np.ones(STORED, np.bool_))
    (path,) = (collection.store.path / "cache" / "space-1").glob("bytes-*.u8")
    collection.store.close()
    path.write_bytes(bytes(path.stat().st_size))

    def refused(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr(space_cache, "write_cache", refused)
    monkeypatch.setattr(space_cache.cachefile, "set_aside", lambda _: None)
    alive = np.ones(STORED, np.bool_)
    assert_searched_rightly(embedstore.open(collection.store.path).collection("c"), matrix, alive, damaged="vector")


def rewrite(folder, change_fields=None, change_content=None):
    """Change what a manifest tells of a copy, or the copy, so that all hashes fit again."""
    manifest = copy.deepcopy(read_manifest(folder))
    if change_fields is not None:
        change_fields(manifest)
    if change_content is not None:
        file = manifest["files"]["bytes"]
        content = bytearray((folder / file["name"]).read_bytes())
        change_content(content)
        (folder / file["name"]).write_bytes(content)
        file["sha256"] = hashlib.sha256(content).hexdigest()
        file["page_hash"] = page_hash(np.frombuffer(bytes(content), np.uint8))
    write_manifest(folder, manifest)


FIELDS = {
    "no steps": lambda told: told["bytes"].pop("scale"),
    "something else": lambda told: told["bytes"].update(more=1),
    "a step of zero": lambda told: told["bytes"].update(scale=0.0),
    "a step that is a word": lambda told: told["bytes"].update(scale="1"),
    "a negative error": lambda told: told["bytes"].update(error=-1.0),
    "no number": lambda told: told["bytes"].update(longest=float("nan")),
    "a negative count": lambda told: told["bytes"].update(n_far=-1),
    "more far ones than there is room for": lambda told: told["bytes"].update(n_far=7),
    "a list": lambda told: told.update(bytes=[]),
    "a file that nothing is told of": lambda told: told.pop("bytes"),
    "no file": lambda told: told["files"].pop("bytes"),
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_what_cannot_be_told_of_a_copy_is_damage(stored, change):
    collection, matrix = stored
    collection.search(matrix[0])
    collection.store.close()
    folder = collection.store.path / "cache" / "space-1"
    rewrite(folder, change)
    with pytest.raises(DamagedCache):
        read_manifest(folder)
    with embedstore.open(collection.store.path) as store:
        assert_searched_rightly(store.collection("c"), matrix, np.ones(STORED, np.bool_))


def test_a_copy_of_other_vectors_and_far_ones_that_there_are_not_are_found_by_verify(copied, tmp_path):
    matrix = clustered(DIM)[:STORED]
    matrix[7] *= 1000
    with embedstore.open(tmp_path / "store") as store:
        store.collection("c", encoder="none", metric="dot").add(
            {"key": str(i), "vector": row} for i, row in enumerate(matrix)
        )
        store.collection("c").search(matrix[0])
        assert store.verify().problems == []
    folder = tmp_path / "store" / "cache" / "space-1"
    whole = shutil.copytree(folder, tmp_path / "whole")
    assert json.loads((folder / "MANIFEST").read_text())["manifest"]["bytes"]["n_far"] == 1

    def change_far(content):
        content[-8:] = (STORED).to_bytes(8, "little")

    def change_row(content):
        content[5 * DIM] = 255 if content[5 * DIM] < 128 else 0

    for change in (change_far, change_row):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        rewrite(folder, change_content=change)
        with embedstore.open(tmp_path / "store") as store:
            assert [problem.part for problem in store.verify().problems] == ["cache"]
            if change is change_far:
                hits = store.collection("c").search(matrix[3], k=3)
                assert [hit.record.key for hit in hits] == truth_of_dot(matrix, matrix[3])


def truth_of_dot(matrix, query):
    return [str(row) for row in np.argsort(-true_scores(matrix, query, Metric.DOT), kind="stable")[:3]]


def test_steps_are_read_as_they_were_written():
    steps = Steps(0.1, 1e-3, 2.5, 4)
    assert Steps.from_json(json.loads(json.dumps(steps.to_json()))) == steps
    assert steps.n_bytes(10, 65) == 10 * 96 + 4 * 65 + 8 * 4
