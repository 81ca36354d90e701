"""Recipes as files, and the indexes they make: their layout is known to the byte, and what is not theirs is refused."""

import numpy as np
import pytest
from shared import needs_gpu

import embedstore
from embedstore import InvalidInput
from embedstore.indexing import recipes
from embedstore.indexing.cachefile import DamagedCache
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_file import Expected, layout_fault, list_places
from embedstore.indexing.faiss_index import FaissIndex, build_index, file_kind, open_faiss, write_faiss
from embedstore.indexing.recipes import all_recipes, read_recipe
from embedstore.indexing.selection import Selection
from embedstore.model import Metric
from embedstore.optional import load_faiss
from embedstore.searching import plan

N, DIM = 1200, 20
BUILT = [
    pytest.param(recipe, metric, id=f"{recipe.name}-{metric.value}")
    for recipe in all_recipes().values() for metric in recipe.metrics
    if not recipe.exact and not needs_gpu(recipe)
]  # fmt: skip
FIELDS = {"name": "x", "summary": "s", "use": "u", "factory": "HNSW32,Flat", "metrics": ["cosine"],
          "search": {"efSearch": 10}}  # fmt: skip


def vectors(n=N, dim=DIM, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, dim))
    return (centres[random.integers(0, 20, n)] + 0.4 * random.standard_normal((n, dim))).astype(np.float32)


@pytest.mark.parametrize(("recipe", "metric"), BUILT)
@pytest.mark.parametrize("dim", [DIM, 31])
def test_the_file_of_every_recipe_is_known_to_the_byte(tmp_path, recipe, metric, dim):
    built, shape = build_index(prepared(vectors(dim=dim), metric), recipe, metric)
    file, _ = write_faiss(built, tmp_path, recipe)
    content = np.fromfile(tmp_path / file.name, np.uint8)
    expected = Expected(file_kind(recipe), metric, shape.index_dim, N)
    assert layout_fault(content, expected) is None
    for cut in (0, 3, 10, 40, len(content) // 2, len(content) - 1):
        assert layout_fault(content[:cut], expected) is not None
    assert "follow it" in layout_fault(np.append(content, np.uint8(0)), expected)
    other = "HNSW32,Flat" if expected.factory == "Binary" else "Binary"
    for wrong in (
        Expected(expected.factory, metric, shape.index_dim + 8, N),
        Expected(expected.factory, metric, shape.index_dim, N + 1),
        Expected(other, metric, shape.index_dim, N),
    ):
        assert layout_fault(content, wrong) is not None


@pytest.mark.parametrize(("recipe", "metric"), [one for one in BUILT if one.id.endswith("cosine")])
def test_lengths_that_claim_more_than_the_file_holds_are_refused(tmp_path, recipe, metric):
    built, shape = build_index(prepared(vectors(), metric), recipe, metric)
    file, _ = write_faiss(built, tmp_path, recipe)
    content = np.fromfile(tmp_path / file.name, np.uint8)
    expected = Expected(file_kind(recipe), metric, shape.index_dim, N)
    random = np.random.default_rng(0)
    refused = 0
    for offset in random.integers(4, min(len(content), 4000) - 8, 150):
        forged = content.copy()
        forged[offset : offset + 8] = np.frombuffer((2**34 + int(offset)).to_bytes(8, "little"), np.uint8)
        refused += layout_fault(forged, expected) is not None
    assert refused  # those places that are lengths; others are numbers of vectors, of which any may be


@pytest.mark.parametrize(("recipe", "metric"), BUILT)
def test_an_opened_index_answers_as_the_one_that_was_built(tmp_path, recipe, metric):
    matrix = prepared(vectors(), metric)
    built, shape = build_index(matrix, recipe, metric)
    file, sums = write_faiss(built, tmp_path, recipe)
    from embedstore.indexing.cachefile import write_sums

    opened = open_faiss(tmp_path, file, shape, N, write_sums(tmp_path, sums) if recipe.mapped else None)
    half = Selection(np.arange(N) % 2 == 0)
    for selection in (None, half):
        ours = opened.search(matrix[:50], 5, selection=selection, settings=recipe.search)
        first = FaissIndex(built, shape).search(matrix[:50], 5, selection=selection, settings=recipe.search)
        np.testing.assert_array_equal(ours[0], first[0])
        np.testing.assert_allclose(ours[1], first[1], rtol=1e-6)
        one_by_one = [
            opened.search(row[None], 5, selection=selection, settings=recipe.search)[0][0] for row in matrix[:50]
        ]
        assert np.mean(np.stack(one_by_one) == ours[0]) > 0.99  # ties of codes may fall either way
        if selection is not None:
            assert (ours[0][ours[0] >= 0] % 2 == 0).all()


def forged(tmp_path, name, change, metric=Metric.COSINE):
    """What is said of the file of a recipe after a change of its bytes."""
    recipe = all_recipes()[name]
    built, shape = build_index(prepared(vectors(), metric), recipe, metric)
    file, _ = write_faiss(built, tmp_path, recipe)
    content = np.fromfile(tmp_path / file.name, np.uint8)
    expected = Expected(file_kind(recipe), metric, shape.index_dim, N)
    assert layout_fault(content, expected) is None
    change(content, expected)
    return layout_fault(content, expected)


def put(content, offset, kind, value):
    content[offset : offset + np.dtype(kind).itemsize] = np.array([value], kind).view(np.uint8)


@pytest.mark.parametrize("name", ["ivf", "ivf-sq8", "ivf-rabitq-refine", "ivf-disk"])
@pytest.mark.parametrize("value", [2**40, -1, N, "another"])
def test_lists_that_name_a_vector_they_cannot_hold_are_refused(tmp_path, name, value):
    def change(content, expected):
        places = list_places(content, expected)
        line = int(np.argmax(places.n_bytes))
        end = int(places.offsets[line] + places.n_bytes[line])
        put(content, end - 8, "<i8", content[end - 16 : end - 8].view("<i8")[0] if value == "another" else value)

    assert forged(tmp_path, name, change) == "its lists do not hold each vector once"


def graph_places(content):
    """Where the levels, the offsets and the neighbours of a graph begin, and where its entry point is."""
    offset, found = 4 + 33, []
    for n_bytes in (8, 4, 4, 8, 4):
        found.append(offset + 8)
        offset += 8 + n_bytes * int(content[offset : offset + 8].view("<u8")[0])
    return (*found[2:], offset)


@pytest.mark.parametrize("name", ["hnsw", "hnsw-sq8"])
def test_a_graph_without_a_way_in_or_with_ways_that_lead_nowhere_is_refused(tmp_path, name):
    def entry_too_low(content, _):
        levels, _, _, entry = graph_places(content)
        lowest = int(np.argmin(content[levels : levels + 4 * N].view("<i4")))
        put(content, entry, "<i4", lowest)

    def beyond(content, _):
        put(content, graph_places(content)[2], "<i4", N)

    def off_the_level(content, _):
        levels, offsets, neighbours, _ = graph_places(content)
        of_nodes = content[levels : levels + 4 * N].view("<i4")
        node = int(np.argmax(of_nodes >= 2))
        first = int(content[offsets + 8 * node : offsets + 8 * node + 8].view("<u8")[0])
        put(content, neighbours + 4 * (first + 64), "<i4", int(np.argmin(of_nodes)))  # behind those of level 0

    def highest(content, _):
        entry = graph_places(content)[3]
        put(content, entry + 4, "<i4", 40)

    assert "no way in" in forged(tmp_path, name, entry_too_low)
    assert "vectors that it does not have" in forged(tmp_path, name, beyond)
    assert "not on the level" in forged(tmp_path, name, off_the_level)
    assert "no way in" in forged(tmp_path, name, highest)


def test_an_index_that_fails_while_it_is_searched_is_a_damaged_cache_not_a_traceback(store, monkeypatch, caplog):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    collection = store.collection("c", encoder="none", recipe="ivf")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
    collection.index()
    assert collection.search(vectors()[3], 1).keys == ["3"]
    index = store.search.space_cache(1)._view.approximate.index

    class Failing:  # FAISS's own objects take no other search
        nlist = index.n_lists

        def search_c(self, *_, **__):
            raise RuntimeError("Error in faiss: no such thing")

    index.built = Failing()
    assert collection.search(vectors()[3], 1).keys == ["3"]
    assert "cannot be searched" in caplog.text


def test_a_search_leaves_the_number_of_threads_as_it_was(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    collection = store.collection("c", encoder="none", recipe="hnsw")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
    collection.index()
    try:
        faiss.omp_set_num_threads(2)
        collection.search(vectors()[0])
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"search": {}}, "lacks efSearch"), ({"metrics": ["near"]}, "a recipe's metric is 'near'"),
        ({"search": {"efSearch": 1, "nprobe": 2}}, "has nprobe in"), ({"other": 1}, "is not a recipe"),
        ({"dims": 8}, "has dims 8"), ({"placement": "moon"}, "a recipe's placement is 'moon'"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_recipe_is_refused_with_its_name(changes, words):
    with pytest.raises(InvalidInput, match=words):
        read_recipe({**FIELDS, **changes}, "x.toml")
    with pytest.raises(InvalidInput, match="is not a recipe: 'metrics'"):
        read_recipe({"name": "x"}, "x.toml")


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_an_index_over_the_first_numbers_proposes_and_all_numbers_decide(store, monkeypatch, metric):
    fields = {"name": "first-8", "metrics": [metric], "dims": 8, "rescore": 20, "search": {"efSearch": 200}}
    truncated = read_recipe({**FIELDS, **fields}, "x.toml")
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    held = {**all_recipes(), "first-8": truncated}
    monkeypatch.setattr(recipes, "all_recipes", lambda: held)
    matrix = vectors()
    matrix[:, 8:] *= 0.3  # as models that are trained so, whose first numbers say most
    collection = store.collection("c", encoder="none", metric=metric, recipe="first-8")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    collection.index()
    rows = prepared(matrix, Metric(metric))
    right = 0
    for i in range(0, 200, 10):
        hits = collection.search(matrix[i] * 1.01, 5)
        assert hits.plan.startswith("first-8 over")
        scores = -np.linalg.norm(rows - matrix[i] * 1.01, axis=1) if metric == "euclidean" else rows @ prepared(
            matrix[i : i + 1] * np.float32(1.01), Metric(metric)
        )[0]
        np.testing.assert_allclose([hit.score for hit in hits], [scores[int(hit.key)] for hit in hits], rtol=1e-4)
        right += len({int(key) for key in hits.keys} & set(np.argsort(-scores)[:5].tolist()))
    assert right / 100 >= 0.9


def test_fewer_vectors_than_a_recipe_needs_are_scanned(store):
    collection = store.collection("c", encoder="none", recipe="ivf")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()[:999]))
    collection.index()
    hits = collection.search(vectors()[3], 1)
    assert (hits.keys, hits.exact) == (["3"], True)
    assert collection.stats()["spaces"][0]["n_unindexed"] == 0


def test_an_index_built_again_keeps_the_exact_file_that_is_whole_and_never_copies_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    folder = tmp_path / "store" / "cache" / "space-1"
    with embedstore.open(tmp_path / "store") as store:
        collection = store.collection("c", encoder="none", recipe="hnsw")
        collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
        collection.index()
        (exact,) = folder.glob("exact-*.f32")
        collection.index(recipe="ivf")
        assert list(folder.glob("exact-*.f32")) == [exact]
        content = bytearray(exact.read_bytes())
        content[5000] ^= 1
        exact.write_bytes(content)
        collection.index(recipe="hnsw")
        (fresh,) = folder.glob("exact-*.f32")
        assert fresh != exact
        assert store.verify().ok
        np.testing.assert_array_equal(
            np.fromfile(fresh, "<f4").reshape(N, DIM), prepared(vectors(), Metric.COSINE)
        )
    assert issubclass(DamagedCache, Exception)
