"""Many queries at once give what each would give alone: by number, or with records that are checked when seen."""

import numpy as np
import pytest

import embedstore
from embedstore import InvalidInput, SpaceMismatch, StoreDamaged
from embedstore.searching import plan

N, DIM = 1500, 16


@pytest.fixture(autouse=True)
def index_is_used(monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)


def vectors(n=N, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((30, DIM))
    return (centres[random.integers(0, 30, n)] + 0.5 * random.standard_normal((n, DIM))).astype(np.float32)


def filled(store, recipe="flat", metric="cosine"):
    collection = store.collection("c", encoder="none", recipe=recipe, metric=metric)
    collection.add({"key": str(i), "vector": row, "text": f"t{i}", "n": i} for i, row in enumerate(vectors()))
    collection.index()
    return collection


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("recipe", ["flat", "hnsw", "ivf-sq8", "ivf-pq-refine", "ivf-disk", "flat-fp16"])
@pytest.mark.parametrize("where", [None, "n < 700", "n < 3"])
def test_a_batch_gives_what_each_query_gives_alone(store, recipe, metric, where):
    collection = filled(store, recipe, metric)
    collection.delete(["5", "10"])
    collection.add([{"key": "late", "vector": vectors()[3] * 1.001, "n": 1, "text": "l"}])
    queries = vectors(40, 0) + 0.05
    alone = [collection.search(query, 7, where=where) for query in queries]
    together = collection.search_batch(queries, 7, where=where)
    numbers = collection.neighbours(queries, 7, where=where)
    same = 0
    for one, other, line, scores in zip(alone, together, numbers.numbers, numbers.scores, strict=True):
        assert len(one) == len(other) == (line >= 0).sum()
        np.testing.assert_allclose([hit.score for hit in other], scores[: len(other)], rtol=1e-6)
        assert other.keys == [key for key in collection.keys_of(line) if key is not None]
        assert [hit.rank for hit in other] == list(range(1, len(other) + 1))
        same += one.keys == other.keys
        assert (scores[len(other) :] == -np.inf).all()
    assert same >= 38  # an index may look at other candidates for many at once


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("n_queries", [3, 70])
@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_an_exact_batch_is_the_same_to_the_last_bit(store, metric, n_queries, offset):
    """Also of vectors so near to each other that single precision hardly tells them apart."""
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors() + offset))
    collection.index()
    collection.add({"key": f"late{i}", "vector": row} for i, row in enumerate(vectors(60, 1) + offset))
    queries = vectors(n_queries, 2) + offset
    together = collection.search_batch(queries, 400)
    for query, other in zip(queries, together, strict=True):
        one = collection.search(query, 400)
        assert one.exact and other.exact
        assert one.keys == other.keys
        assert [hit.score for hit in one] == [hit.score for hit in other]


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_newer_vectors_that_are_longer_than_all_before_are_ranked_rightly_in_a_batch(store, metric):
    """How far a product may be off depends on the longest vector."""
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(vectors()))
    collection.index()
    collection.search_batch(vectors(40, 2), 5)
    long = 1e4 + vectors(200, 1)
    collection.add({"key": f"long{i}", "vector": row} for i, row in enumerate(long))
    queries = long[:40] + vectors(40, 2)
    for query, hits in zip(queries, collection.search_batch(queries, 20), strict=True):
        assert hits.keys == collection.search(query, 20).keys


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize(
    "recipe", ["hnsw", "hnsw-sq8", "ivf", "ivf-sq8", "ivf-pq-refine", "ivf-rabitq-refine", "flat-fp16"]
)
def test_a_batch_over_an_index_that_covers_all_is_compared_exactly_too(store, recipe, metric):
    collection = filled(store, recipe, metric)
    collection.add([{"key": f"twin{i}", "vector": vectors()[7], "n": 0, "text": "t"} for i in range(12)])
    collection.index()
    queries = np.concatenate([vectors(40, 0) + 0.05, vectors()[7:8]])
    alone = [collection.search(query, 9) for query in queries]
    together = collection.search_batch(queries, 9)
    assert all("newer" not in hits.plan for hits in alone)
    assert sum(one.keys == other.keys for one, other in zip(alone, together, strict=True)) >= 39
    for hits in (*alone, *together):
        stored = collection.vectors(hits.keys)
        query = queries[(alone if hits in alone else together).index(hits)]
        if metric == "cosine":
            stored, query = (one / np.linalg.norm(one, axis=-1, keepdims=True) for one in (stored, query))
        scores = -np.linalg.norm(stored - query, axis=1) if metric == "euclidean" else stored @ query
        np.testing.assert_allclose([hit.score for hit in hits], scores, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("recipe", ["flat", "hnsw", "ivf", "hnsw-sq8", "ivf-pq-refine"])
def test_equal_scores_are_in_the_order_in_which_records_were_added(store, recipe):
    collection = store.collection("c", encoder="none", recipe=recipe)
    rows = vectors()
    rows[500:530] = rows[500]
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(rows))
    collection.index()
    expected = [str(i) for i in range(500, 508)]
    assert collection.search(rows[500], 8).keys == expected
    assert collection.search_batch([rows[500]], 8)[0].keys == expected


@pytest.mark.parametrize("recipe", ["flat", "hnsw-sq8"])
def test_counts_may_be_numbers_of_numpy(store, recipe):
    collection = filled(store, recipe)
    k = np.int64(3)
    assert len(collection.search(vectors()[0], k, offset=np.int32(1))) == 3
    assert len(collection.search_batch(vectors()[:2], k)[1]) == 3
    assert collection.neighbours(vectors()[:2], k).numbers.shape == (2, 3)


def test_more_neighbours_than_anything_holds_are_refused(store):
    collection = filled(store)
    with pytest.raises(InvalidInput, match="2 queries with k 1,000,0.* ask for 268,435,456 at most"):
        collection.neighbours(vectors()[:2], 10**30)


def test_numbers_of_records_that_are_no_more_have_no_key(store):
    collection = filled(store)
    numbers = collection.neighbours(vectors(2), 2).numbers
    (first, *_) = collection.keys_of(numbers[0])
    collection.delete([first])
    assert collection.keys_of(numbers[0])[0] is None
    assert collection.keys_of([]) == []


def test_a_batch_of_nothing_and_of_an_empty_collection(store):
    collection = store.collection("c", encoder="none", dim=3)
    collection.add([{"key": "a", "text": "no vector"}])
    assert collection.search_batch([], 3) == []
    assert collection.neighbours(np.empty((0, 3), np.float32)).numbers.shape == (0, 10)
    assert (collection.neighbours([[1.0, 2.0, 3.0]], 4).numbers == -1).all()


def test_what_is_no_query_is_refused(store):
    collection = filled(store)
    with pytest.raises(SpaceMismatch, match="the query has 3 numbers"):
        collection.neighbours([[1.0, 2.0, 3.0]])
    with pytest.raises(InvalidInput, match="NaN"):
        collection.search_batch(np.full((2, DIM), np.nan, np.float32))
    with pytest.raises(InvalidInput, match="all zeros"):
        collection.search_batch(np.zeros((2, DIM), np.float32))
    with pytest.raises(InvalidInput, match="k is 0"):
        collection.neighbours(vectors(1), 0)


@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("where", [None, "n < 4900"])
@pytest.mark.parametrize("dim", [2, 4, 8, 48])
def test_a_batch_ranks_equal_vectors_by_their_row_however_many_there_are(store, metric, where, dim):
    random = np.random.default_rng(0)
    matrix = random.standard_normal((5001, dim)).astype(np.float32)
    matrix[4999:] = matrix[3]
    matrix[1000:1040], matrix[3000:3005], matrix[100:4900:50] = matrix[7], matrix[9], matrix[11]
    collection = store.collection("c", encoder="none", metric=metric)
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(matrix))
    queries = np.concatenate([matrix[:30], matrix[:20] + np.float32(0.01)])
    together = collection.search_batch(queries, 10, where=where)
    neighbours = collection.neighbours(queries, 10, where=where)
    for line, query in enumerate(queries):
        alone = collection.search(query, 10, where=where)
        assert together[line].keys == alone.keys == collection.keys_of(neighbours.numbers[line])
        assert [hit.score for hit in together[line]] == pytest.approx([hit.score for hit in alone], abs=2e-6)
        rows = [int(key) for key in alone.keys]
        scores = [hit.score for hit in alone]
        assert sorted(zip((-score for score in scores), rows, strict=True)) == [
            (-score, row) for score, row in zip(scores, rows, strict=True)
        ]


def test_a_cosine_is_never_beyond_one(store):
    matrix = np.random.default_rng(0).standard_normal((2000, 384)).astype(np.float32)
    collection = store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(np.concatenate([matrix, -matrix])))
    scores = [collection.search(row, 1)[0].score for row in matrix[:300]]
    scores += [hits[0].score for hits in collection.search_batch(matrix, 1)]
    scores += collection.neighbours(matrix, 1).scores[:, 0].tolist()
    scores += collection.neighbours(matrix[:9], 4000).scores[:, -1].tolist()
    assert max(scores) == 1 and min(scores) >= -1


def test_many_hits_of_an_index_of_lists_are_looked_for_in_more_lists(store, monkeypatch):
    monkeypatch.setattr(plan, "index_cost", lambda *_, **__: 0.0)
    random = np.random.default_rng(0)
    matrix = random.standard_normal((6000, 24)).astype(np.float32)
    collection = store.collection("c", encoder="none", recipe="ivf")
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
    collection.index()
    unit = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    recalls = {}
    for k in (10, 100, 300):
        hits = [collection.search(query + np.float32(0.1), k) for query in matrix[:40]]
        assert all("nprobe" in one.plan for one in hits)
        exact = [
            {str(row) for row in np.argsort(-(unit @ (query + np.float32(0.1))), kind="stable")[:k]}
            for query in matrix[:40]
        ]
        recalls[k] = np.mean([len({*one.keys} & true) / k for one, true in zip(hits, exact, strict=True)])
    assert recalls[100] > recalls[10] - 0.03 and recalls[300] > recalls[10] - 0.05


def test_the_query_that_is_wrong_is_named(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 2.0]}])
    for queries, words in (
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "query 2 of 2: the query has 3 numbers"),
        ([[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]], "query 2 of 3: the query vector is all zeros"),
        (np.array([[1.0, 2.0], [np.nan, 0.0]], np.float32), "query 2 of 2: .* NaN or infinity"),
    ):  # fmt: skip
        for ask in (collection.search_batch, collection.neighbours):
            with pytest.raises(embedstore.InvalidInput, match=words):
                ask(queries, 1)
    words = store.collection("words", encoder="letters")
    words.add([{"key": "a", "text": "bad cab"}])
    with pytest.raises(embedstore.InvalidInput, match="query 2 of 2 is empty"):
        words.search_batch(["cab", " "], 1)


def test_one_vector_is_no_batch_and_pixels_are_numbers_where_no_encoder_reads_pictures(store):
    collection = filled(store)
    with pytest.raises(InvalidInput, match="one vector of 16 numbers: search takes one"):
        collection.search_batch(vectors(1)[0], 3)
    with pytest.raises(InvalidInput, match="query 2 of 2: a vector must be a list of numbers"):
        collection.search_batch([vectors(1)[0], {"a": 1}.keys()], 3)
    assert collection.search_batch(np.array([]), 3) == []
    with pytest.raises(InvalidInput, match="a list or a matrix"):
        collection.search_batch(np.array(3.0), 3)
    pixels = np.arange(32, dtype=np.uint8).reshape(2, 16)
    assert collection.search(pixels[0], 3).keys == collection.search_batch(pixels, 3)[0].keys
    with pytest.raises(InvalidInput, match=r"one row of numbers; this has shape \(2, 16\)"):
        collection.search(pixels, 3)


def test_a_plan_counts_the_vectors_that_there_are(store):
    collection = filled(store)
    collection.delete([str(i) for i in range(1000)])
    batch = collection.search_batch(vectors(20, 1), 3)
    assert batch[0].plan == "exact scan of 500 vectors, 20 queries at once"
    assert collection.search(vectors(1)[0], 3).plan == "exact scan of 500 vectors"


def test_a_damaged_record_in_a_batch_is_told_when_it_is_looked_at(store):
    collection = filled(store)
    with store.database.write() as transaction:
        transaction.run("UPDATE records SET content = 'other' WHERE key = '7'")
    hits = collection.search_batch(vectors()[[3, 7]], 1)
    assert hits[0].keys == ["3"]
    with pytest.raises(StoreDamaged, match=r"store\.db.*'7'.*embedstore verify"):
        len(hits[1])
    with pytest.raises(StoreDamaged):
        collection.search(vectors()[7], 1)


def test_answers_of_a_batch_are_of_the_commit_they_were_asked_at(store):
    collection = filled(store)
    hits = collection.search_batch(vectors()[[7]], 1)
    collection.upsert([{"key": "7", "vector": -vectors()[7], "text": "new"}])
    assert hits[0][0].record.content == "t7"


def test_texts_in_a_batch_are_encoded(store):
    collection = store.collection("words", encoder="letters")
    collection.add([{"key": "a", "text": "bad cab"}, {"key": "b", "text": "deed feed"}])
    assert [hits.keys[0] for hits in collection.search_batch(["cab", "feed"], 1)] == ["a", "b"]
    assert collection.keys_of(collection.neighbours(["feed"], 1).numbers[0]) == ["b"]
    assert isinstance(collection.search_batch(["cab"], 1)[0], embedstore.Hits)
