"""Search against brute force: every recipe and metric, through deletes, updates, filters and restarts."""

import numpy as np
import pytest
from shared import brute_force, needs_gpu

import embedstore
from embedstore import InvalidInput, SpaceMismatch, SpaceNotFound
from embedstore.indexing.recipes import all_recipes
from embedstore.searching import plan, search

METRICS = ["cosine", "dot", "euclidean"]
SERVED = [
    pytest.param(
        recipe.name, metric.value,
        marks=[pytest.mark.skipif(needs_gpu(recipe), reason="FAISS finds no GPU here, on which this index is built")],
    )
    for recipe in all_recipes().values() for metric in recipe.metrics
]  # fmt: skip
SCORE_TOLERANCE = 2e-5  # of scores near 1: float32 sums of 32 products


def clustered(n: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around centres, of unequal lengths."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((20, dim))
    rows = centres[random.integers(0, 20, n)] + 0.4 * random.standard_normal((n, dim))
    return (rows * random.uniform(0.5, 2.0, (n, 1))).astype(np.float32)


def assert_is_brute_force(hits, rows: dict[str, np.ndarray], query: np.ndarray, metric: str, k: int) -> None:
    """The hits are the ``k`` best of ``rows``; keys may differ only where scores are equal within the tolerance."""
    keys = list(rows)
    scores = brute_force(np.stack([rows[key] for key in keys]), query, metric)
    order = np.argsort(-scores, kind="stable")[:k]
    found = np.array([hit.score for hit in hits])
    scale = max(1.0, float(np.abs(scores[order]).max(initial=0)))
    assert len(hits) == min(k, len(rows))
    np.testing.assert_allclose(found, scores[order], atol=SCORE_TOLERANCE * scale)
    by_key = dict(zip(keys, scores, strict=True))
    np.testing.assert_allclose([by_key[hit.key] for hit in hits], found, atol=SCORE_TOLERANCE * scale)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert len(set(hits.keys)) == len(hits)


@pytest.mark.parametrize(("recipe", "metric"), SERVED)
def test_every_recipe_and_metric_is_right_through_a_collections_life(tmp_path, recipe, metric, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)  # wherever there is an index, it is used
    dim = 32
    matrix = clustered(1500, dim, 1)
    queries = matrix[::125] + 0.1
    rows: dict[str, np.ndarray] = {}
    store = embedstore.open(tmp_path / "store")
    collection = store.collection("c", encoder="none", metric=metric)

    def check(where: str | None = None, k: int = 10) -> None:
        kept = {key: row for key, row in rows.items() if where is None or int(key) % 7 == 3}
        n_right = n_all = 0
        for query in queries:
            hits = collection.search(query, k, where=where)
            if hits.exact:
                assert_is_brute_force(hits, kept, query, metric, k)
                continue
            keys = list(kept)
            scores = brute_force(np.stack([kept[key] for key in keys]), query, metric)
            best = {keys[i] for i in np.argsort(-scores, kind="stable")[:k]}
            n_right += len(best & set(hits.keys))
            n_all += len(best)
            assert len(hits) == min(k, len(kept))
            by_key = dict(zip(keys, scores, strict=True))
            np.testing.assert_allclose(
                [hit.score for hit in hits], [by_key[hit.key] for hit in hits], rtol=1e-4, atol=1e-3
            )
        if n_all:
            assert n_right / n_all >= 0.95

    def put(first: int, last: int, source: np.ndarray) -> None:
        collection.upsert({"key": str(i), "vector": source[i], "rest": i % 7, "text": "x"} for i in range(first, last))
        rows.update({str(i): source[i] for i in range(first, last)})

    put(0, 1000, matrix)
    check()
    collection.index(recipe=recipe)
    hits = collection.search(queries[0])
    assert hits.plan.startswith("exact scan" if recipe in ("flat", "gpu-flat") else f"{recipe} over 1,000 vectors")
    check()
    check("rest = 3")
    put(1000, 1500, matrix)  # after the index was built
    check()
    gone = [str(i) for i in range(0, 1500, 5)]
    collection.delete(gone)
    for key in gone:
        rows.pop(key)
    check()
    check("rest = 3")
    moved = matrix[::-1].copy()
    put(601, 604, moved)
    check()
    check(k=5000)
    check("rest = 3", k=5000)
    store.close()
    collection = embedstore.open(tmp_path / "store").collection("c")
    check()
    check("rest = 3")
    collection.index()
    check()
    check("rest = 3")
    collection.store.close()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("n", [1, 2, 9, 64, 65, 700, 1000])
def test_small_collections_and_every_k(store, n, metric):
    matrix = clustered(n, 5, n)
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    rows = {str(i): row for i, row in enumerate(matrix)}
    for k in (1, 2, 10, n, n + 1, 10**9):
        assert_is_brute_force(collection.search(matrix[0], k), rows, matrix[0], metric, k)


def test_an_empty_collection_has_no_hits(store):
    collection = store.collection("c", encoder="none")
    assert len(collection.search([1.0, 2.0])) == 0
    collection.add([{"key": "a", "vector": [1.0, 2.0]}])
    collection.delete(["a"])
    assert len(collection.search([1.0, 2.0])) == 0
    assert collection.search_batch([[1.0, 2.0]])[0].keys == []


def test_equal_vectors_come_in_the_order_in_which_they_were_added(store):
    collection = store.collection("c", encoder="none")
    collection.add({"key": f"{i}", "vector": [1.0, 1.0]} for i in range(200))
    assert collection.search([2.0, 2.0], k=5).keys == ["0", "1", "2", "3", "4"]


def test_a_query_scaled_by_ten_finds_the_same(store):
    matrix = clustered(300, 16, 4)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    once, scaled = collection.search(matrix[7] + 1), collection.search(10 * (matrix[7] + 1))
    assert once.keys == scaled.keys
    np.testing.assert_allclose([h.score for h in once], [h.score for h in scaled], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
@pytest.mark.parametrize("metric", METRICS)
def test_very_long_and_very_short_vectors_are_compared_rightly(store, metric, scale):
    matrix = clustered(50, 8, 5) * np.float32(scale)
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    expected = np.argsort(-brute_force(matrix, matrix[3], metric), kind="stable")[:5]
    assert collection.search(matrix[3], k=5).keys == [str(i) for i in expected]


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_gives_what_single_searches_give(store, metric):
    matrix = clustered(400, 16, 6)
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row, "even": i % 2 == 0} for i, row in enumerate(matrix))
    queries = clustered(30, 16, 7)
    for where in (None, "even = true"):
        batch = collection.search_batch(queries, k=7, where=where)
        for query, hits in zip(queries, batch, strict=True):
            assert hits.keys == collection.search(query, k=7, where=where).keys


@pytest.mark.parametrize("way", ["flat", "hnsw", "hnsw by the index alone"])
def test_a_filter_never_makes_the_answer_shorter(store, way, monkeypatch):
    if way == "hnsw by the index alone":
        monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    n, dim = 6000, 24
    matrix = clustered(n, dim, 8)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(matrix))
    collection.index(recipe=way.split()[0])
    units = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    random = np.random.default_rng(0)
    for n_allowed in (6000, 3000, 600, 60, 11, 10, 9, 1):
        n_right = n_all = 0
        for i in random.integers(0, n, 20):
            query = matrix[i] + 0.2 * random.standard_normal(dim).astype(np.float32)
            hits = collection.search(query, k=10, where=f"n < {n_allowed}")
            assert len(hits) == min(10, n_allowed)
            assert all(hit.record.metadata["n"] < n_allowed for hit in hits)
            best = np.argsort(-(units[:n_allowed] @ query), kind="stable")[:10]
            n_right += len({str(i) for i in best} & set(hits.keys))
            n_all += len(best)
        assert n_right / n_all >= 0.99, n_allowed


def test_pages_follow_each_other(store):
    matrix = clustered(100, 8, 9)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row, "text": f"word{i % 3}"} for i, row in enumerate(matrix))
    whole = collection.search(matrix[0], k=30)
    second = collection.search(matrix[0], k=10, offset=10)
    assert second.keys == whole.keys[10:20]
    assert second[0].rank == 11
    assert (
        collection.search("word1", k=5, offset=5, mode="text").keys
        == collection.search("word1", k=10, mode="text").keys[5:]
    )


def test_like_and_unlike_move_the_query_and_leave_themselves_out(store):
    collection = store.collection("c", encoder="none")
    collection.add([
        {"key": "east", "vector": [1.0, 0.0]}, {"key": "north", "vector": [0.0, 1.0]},
        {"key": "north-east", "vector": [1.0, 1.0]}, {"key": "south-east", "vector": [1.0, -1.0]},
    ])  # fmt: skip
    assert collection.search(like=["east"], k=9).keys[-1] == "north"
    assert collection.search(like=["east", "north"], k=1).keys == ["north-east"]
    assert collection.search(like=["east"], unlike=["north"], k=1).keys == ["south-east"]
    assert collection.search([0.0, 1.0], like=["east"], k=1).keys == ["north-east"]
    with pytest.raises(InvalidInput, match="cancel each other"):
        collection.search(like=["east"], unlike=["east"])
    with pytest.raises(InvalidInput, match="lists of keys"):
        collection.search(like="east")


def test_by_distance_unlike_leads_as_far_away_again_wherever_zero_is(store):
    places = {"a": (0, 0), "b": (1, 0), "beyond": (2, 0), "aside": (0, 3), "origin": (-500, -500)}
    collection = store.collection("c", encoder="none", metric="euclidean")
    collection.add({"key": key, "vector": (x + 500, y + 500)} for key, (x, y) in places.items())
    assert collection.search(like=["b"], unlike=["a"], k=1).keys == ["beyond"]
    assert collection.search([501.0, 500.0], unlike=["a"], k=2).keys == ["beyond", "b"]
    assert collection.search(like=["b"], unlike=["b"], k=1).keys == ["a"]
    with pytest.raises(InvalidInput, match="unlike leads away from something"):
        collection.search(unlike=["a"])


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_mmr_measures_variety_as_nearness_is_measured(store, metric, scale):
    """So that the same data in other units give the same hits."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((4, 8)) + 3
    rows = (centres.repeat(30, axis=0) + 0.1 * random.standard_normal((120, 8))) * scale
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    query = rows[5] * 0.9 + rows[40] * 0.1

    def groups(hits):
        return len({int(key) // 30 for key in hits.keys})

    plain, varied = collection.search(query, 8), collection.search(query, 8, mmr=0.2)
    assert collection.search(query, 8, mmr=1.0).keys == plain.keys
    assert groups(plain) == 1 and groups(varied) > 1
    assert varied.keys == collection.search(query.astype(np.float64), 8, mmr=0.2).keys
    assert varied[0].key == plain[0].key or metric == "dot"


def test_mmr_trades_nearness_for_variety(store):
    collection = store.collection("c", encoder="none")
    near = [{"key": f"near{i}", "vector": [1.0, 0.01 * i, 0.0]} for i in range(5)]
    collection.add([*near, {"key": "other", "vector": [0.6, 0.0, 0.8]}])
    query = [1.0, 0.0, 0.1]
    assert "other" not in collection.search(query, k=3, mmr=1.0).keys
    assert collection.search(query, k=3, mmr=1.0).keys == collection.search(query, k=3).keys
    assert "other" in collection.search(query, k=3, mmr=0.3).keys


def test_keywords_find_words_and_their_forms_and_phrases(any_store):
    collection = any_store.collection("c", encoder="none")
    texts = {
        "a": "Fungal diseases of rice", "b": "The disease was fungal", "c": "Stars and galaxies",
        "d": "rice rice rice", "e": "Café society",
    }  # fmt: skip
    collection.add({"key": key, "text": text, "vector": [1.0]} for key, text in texts.items())
    assert set(collection.search("fungal disease", mode="text").keys) == {"a", "b"}
    assert collection.search('"fungal disease"', mode="text").keys == ["a"]
    assert collection.search('galaxy OR "unclosed ( * AND :', mode="text").keys == ["c"]
    assert len(collection.search("?!", mode="text")) == 0
    assert len(collection.search("nothingofthekind", mode="text")) == 0
    collection.upsert([{"key": "c", "text": "Planets", "vector": [1.0]}])
    assert len(collection.search("galaxies", mode="text")) == 0
    assert collection.search("planet", mode="text").keys == ["c"]


def test_keywords_under_a_filter_still_fill_the_answer(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "text": "rice " * (i % 9 + 1), "vector": [1.0], "n": i} for i in range(3000))
    hits = collection.search("rice", mode="text", k=10, where="n >= 2985")
    assert len(hits) == 10
    assert all(hit.record.metadata["n"] >= 2985 for hit in hits)


def test_hybrid_is_reciprocal_rank_fusion_of_both_answers(store):
    collection = store.collection("c", encoder="letters")
    collection.add({"key": f"k{i}", "text": f"{'a' * (i + 1)} {'zebra' if i % 4 == 0 else 'horse'}"} for i in range(40))
    query = "aaaaaaaa zebra"
    by_vector = collection.search(query, k=100).keys
    by_words = collection.search(query, k=100, mode="text").keys
    fused: dict[str, float] = {}
    for ranked in (by_vector, by_words):
        for rank, key in enumerate(ranked, start=1):
            fused[key] = fused.get(key, 0) + 1 / (60 + rank)
    hits = collection.search(query, k=10, mode="hybrid")
    assert [hit.score for hit in hits] == pytest.approx(sorted(fused.values(), reverse=True)[:10])
    assert all(hit.score == pytest.approx(fused[hit.key]) for hit in hits)


@pytest.mark.parametrize("k", [0, -1, 1.5, "ten", True])
def test_a_k_that_is_no_count_is_refused(store, k):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    with pytest.raises(InvalidInput, match="k is"):
        collection.search([1.0], k=k)


def test_a_query_that_cannot_be_compared_is_refused_in_one_line(store):
    collection = store.collection("papers", encoder="letters")
    collection.add([{"key": "a", "text": "abc"}])
    numbers = store.collection("numbers", encoder="none")
    numbers.add([{"key": "a", "vector": [1.0, 2.0]}])
    cases = [
        (
            collection,
            [1.0, 2.0],
            SpaceMismatch,
            "query has 2 numbers; the space 'papers/text' holds 6, made by letters",
        ),
        (numbers, [1.0, float("nan")], InvalidInput, "NaN or infinity"),
        (numbers, [0.0, 0.0], InvalidInput, "no direction"),
        (numbers, "words", InvalidInput, "has no encoder"),
        (collection, "  ", InvalidInput, "the query is empty"),
        (collection, None, InvalidInput, "nothing to search for"),
    ]
    for searched, query, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            searched.search(query)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpaceNotFound, match="no space 'nope'; it has: text"):
        collection.search("abc", space="nope")
    with pytest.raises(InvalidInput, match="mode is 'fuzzy'; it must be one of vector, text, hybrid"):
        collection.search("abc", mode="fuzzy")
    with pytest.raises(InvalidInput, match="mmr is 2"):
        collection.search("abc", mmr=2)


def test_vectors_know_their_space_and_arithmetic_is_right(store):
    collection = store.collection("c", encoder="letters")
    collection.add([{"key": "a", "text": "aaa"}, {"key": "b", "text": "bbb"}, {"key": "ab", "text": "aaabbb"}])
    text = collection.space("text")
    v = text["a"] - text.encode("c") + 2 * text.encode("bb") / 4
    np.testing.assert_array_equal(np.asarray(v), [3, 1, -1, 0, 0, 0.5])
    np.testing.assert_array_equal((np.float32(2) * v).array, [6, 2, -2, 0, 0, 1])
    assert (text["a"] + text["b"]).nearest(5).keys == ["ab"]
    assert (text["a"] + text["b"]).nearest(5, include_sources=True).keys[0] == "ab"
    np.testing.assert_allclose(text["a"].lerp(text["b"], 0.25).array, [2.25, 0.75, 0, 0, 0, 1])
    middle = text["a"].slerp(text["b"], 0.5)
    assert middle.cosine(text["a"]) == pytest.approx(middle.cosine(text["b"]))
    assert middle.norm() == pytest.approx(text["a"].norm())
    other = collection.add_space("other", encoder="letters:5")
    with pytest.raises(SpaceMismatch, match="'c/text' and 'c/other' cannot be added"):
        text["a"] + other["a"]
    with pytest.raises(SpaceMismatch, match="belongs to the space 'c/other'"):
        collection.search(other["a"], space="text")
    assert collection.search(other["a"], k=1).keys == ["a"]  # in its own space
    with pytest.raises(InvalidInput, match="zero"):
        text["a"] / 0


def test_slerp_keeps_its_digits_near_the_ends(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "x", "vector": [1.0, 0.0]}])
    space = collection.space()
    start = space.vector([1.0, 0.0])
    for angle in (1e-7, 1e-3, 1.0, 3.0):
        end = space.vector([np.cos(angle), np.sin(angle)])
        np.testing.assert_allclose(start.slerp(end, 0.5).array, [np.cos(angle / 2), np.sin(angle / 2)], atol=1e-6)
    with pytest.raises(InvalidInput, match="opposite"):
        start.slerp(space.vector([-1.0, 0.0]), 0.5)


def test_a_plan_says_how_the_answer_was_found(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)  # what is measured depends on who else is at work
    matrix = clustered(12000, 128, 3)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(matrix))
    assert collection.search(matrix[0]).exact
    collection.index(recipe="hnsw")
    hits = collection.search(matrix[0])
    assert not hits.exact
    assert hits.plan == "hnsw over 12,000 vectors, efSearch 96"
    narrow = collection.search(matrix[0], where="n < 40")
    assert narrow.exact
    assert narrow.plan == "exact scan of 40 allowed vectors"


def test_hits_become_tables(store):
    collection = store.collection("c", encoder="none")
    collection.add(
        [{"key": "a", "vector": [1.0], "text": "x", "n": 1, "m": "s"}, {"key": "b", "vector": [2.0], "m": 1}]
    )
    hits = collection.search([1.0])
    assert hits.to_arrow().to_pydict() == {
        "rank": [1, 2], "key": ["a", "b"], "score": [1.0, 1.0], "text": ["x", None], "m": ["s", "1"], "n": [1, None],
    }  # fmt: skip
    assert list(hits.to_pandas()["key"]) == ["a", "b"]
    assert repr(hits).startswith("2 hits (exact scan of 2 vectors)")
    assert "<td>a</td>" in hits._repr_html_()


@pytest.mark.parametrize("recipe", ["flat", "hnsw", "hnsw-sq8", "ivf-pq-refine", "binary-refine"])
@pytest.mark.parametrize("mmr", [None, 0.9])
def test_pages_follow_each_other_by_whatever_index(store, monkeypatch, recipe, mmr):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    random = np.random.default_rng(0)
    rows = random.standard_normal((4000, 32)).astype(np.float32)
    collection = store.collection("c", encoder="none", recipe=recipe)
    collection.add({"key": str(i), "vector": row, "half": i % 2} for i, row in enumerate(rows))
    collection.index()
    for where in (None, "half = 1"):
        for query in random.standard_normal((5, 32)).astype(np.float32):
            pages = [collection.search(query, 10, offset=at, mmr=mmr, where=where) for at in range(0, 150, 10)]
            seen = [key for hits in pages for key in hits.keys]
            assert len(seen) == len(set(seen)) == 150
            assert [hit.rank for hits in pages for hit in hits] == list(range(1, 151))


def test_the_last_page_holds_what_is_left(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    rows = np.random.default_rng(0).standard_normal((1203, 16)).astype(np.float32)
    collection = store.collection("c", encoder="none", recipe="ivf-sq8")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    collection.index()
    pages = [collection.search(rows[0], 100, offset=at) for at in range(0, 1400, 100)]
    assert [len(hits) for hits in pages] == [100] * 12 + [3, 0]
    assert len({key for hits in pages for key in hits.keys}) == 1203


def test_a_plan_names_no_more_lists_than_there_are(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    rows = np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float32)
    collection = store.collection("c", encoder="none", recipe="ivf")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    collection.index()
    found = collection.search(rows[0], 2900)
    n_lists = store.search.space_cache(1)._view.approximate.index.n_lists
    assert len(found) == 2900 and found.plan == f"ivf over 3,000 vectors, nprobe {n_lists}"


def test_complex_numbers_are_no_vector_and_large_ones_give_no_warning(store):
    collection = store.collection("c", encoder="none")
    with pytest.raises(InvalidInput, match="a vector must be a list of numbers, not complex numbers"):
        collection.add([{"key": "a", "vector": np.array([1 + 5j, 2])}])
    collection.add([{"key": "a", "vector": [1.0, 2.0]}])
    with pytest.raises(InvalidInput, match="not complex numbers"):
        collection.search([1 + 2j, 0])
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        collection.search([1e300, 1.0])


def test_rows_without_what_they_are_to_be_unlike_are_not_kept(store):
    rows = np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(rows))
    for i in range(20):
        assert str(i) not in collection.search(like=[str(i)]).keys
    cache = store.search.space_cache(1)
    assert len(cache._selections) == 0 and not cache._view.searches
    collection.search(rows[0], where="n < 5")
    assert len(cache._selections) == 1


def test_a_far_page_of_an_exact_search_takes_two_scans_however_far_it_is(store, monkeypatch):
    rows = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float32)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    asked = []
    monkeypatch.setattr(search, "nearest", lambda *given: asked.append(given[2]) or plan.nearest(*given))
    page = collection.search(rows[0], 10, offset=4000)
    assert asked == [10, 4010]
    assert page.exact and page.keys == collection.search(rows[0], 4010).keys[4000:]
