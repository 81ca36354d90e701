"""What is searched on a GPU: by FAISS's classes for GPUs where there is one, else by those of the CPU in their place.

The classes of the GPU and of the CPU are asked in the same way, so all but the copy to the GPU runs everywhere.
"""

import os
import threading

import numpy as np
import pytest

import embedstore
from embedstore import DeviceUnavailable
from embedstore.devices import Device, DeviceKind
from embedstore.indexing import gpu, gpus
from embedstore.indexing.gpu import GpuFlat, GpuIndex
from embedstore.indexing.gpus import n_gpus
from embedstore.indexing.recipes import all_recipes
from embedstore.optional import load_faiss

N, DIM = 3000, 24
FAISS = load_faiss()
has_gpu = pytest.mark.skipif(not n_gpus(FAISS), reason="FAISS finds no GPU here")


class InPlaceOfGpu(GpuIndex):
    """An index on the CPU, asked as one on so many GPUs is."""

    def __init__(self, index, gpus):
        self._index, self._gpus, self._parts = index, gpus, [index.built] * len(gpus)
        self._resources, self.required = [], False
        self._is_graph = False
        self.most_hits = gpu._MOST_HITS
        self._guard = threading.Lock()


class FlatInPlaceOfGpu(GpuFlat):
    """Vectors on the CPU, in half precision, spread as over so many GPUs."""

    def __init__(self, matrix, metric, gpus):
        self._gpus, self._guard, self._parts, self._resources = gpus, threading.Lock(), [], []
        self.required = False
        self._fill(matrix, metric)

    def _new_part(self, place, dim, kind):
        part = FAISS.IndexScalarQuantizer(dim, FAISS.ScalarQuantizer.QT_fp16, kind)
        part.train(np.zeros((1, dim), np.float32))
        return part


def clustered(n=N, seed=0):
    random = np.random.default_rng(seed)
    centres = random.standard_normal((40, DIM))
    return (centres[random.integers(0, 40, n)] + 0.3 * random.standard_normal((n, DIM))).astype(np.float32)


def filled(store, recipe, metric):
    collection = store.collection("c", encoder="none", recipe=recipe, metric=metric)
    collection.add({"key": str(i), "vector": row, "n": i} for i, row in enumerate(clustered()))
    collection.index()
    return collection


def put_on_gpus(collection, n):
    """Have the view of a collection's space answer by what stands for so many GPUs."""
    collection.search(clustered(1)[0])
    cache = collection.store.search.space_cache(collection.space().space_id)
    view, gpus = cache._view, list(range(n))
    if view.approximate is None:
        object.__setattr__(view, "gpu", FlatInPlaceOfGpu(view.base, view.metric, gpus))
    else:
        object.__setattr__(view, "gpu", InPlaceOfGpu(view.approximate.index, gpus))
    return cache


def brute(matrix, queries, metric, k):
    if metric == "euclidean":
        scores = -np.linalg.norm(matrix[None] - queries[:, None], axis=2)
    else:
        scores = queries @ matrix.T
        if metric == "cosine":
            scores /= np.linalg.norm(matrix, axis=1) * np.linalg.norm(queries, axis=1)[:, None]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(scores, order, 1)


@pytest.mark.parametrize("n_parts", [1, 3])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("recipe", ["gpu-flat", "ivf-sq8", "ivf"])
def test_batches_are_answered_by_gpus_with_exact_scores_and_newer_records(store, recipe, metric, n_parts):
    collection = filled(store, recipe, metric)
    new = clustered(40, 1)
    queries = np.concatenate([clustered(60, 2), new])
    cache = put_on_gpus(collection, n_parts)
    collection.add({"key": f"new{i}", "vector": row, "n": -1} for i, row in enumerate(new))
    answers = collection.search_batch(queries, 10)
    assert ("GPU scan of" if recipe == "gpu-flat" else f"{recipe} on a GPU over 3,000 vectors") in answers[0].plan
    assert cache._view.gpu is not None and not answers[0].exact
    order, scores = brute(np.concatenate([clustered(), new]), queries, metric, 10)
    names = [*map(str, range(N)), *(f"new{i}" for i in range(len(new)))]
    right = 0
    for line, hits in enumerate(answers):
        right += len({*hits.keys} & {names[i] for i in order[line]})
        by_name = dict(zip((names[i] for i in order[line]), scores[line], strict=True))
        for hit in hits:
            if hit.key in by_name:
                assert hit.score == pytest.approx(by_name[hit.key], abs=2e-5)
        assert len(hits) == 10
    assert right / (10 * len(queries)) > (0.999 if recipe == "gpu-flat" else 0.9)
    single = collection.search(queries[0], 10)
    assert ("GPU" in single.plan) == (recipe == "gpu-flat")


def test_half_precision_tells_vectors_far_from_zero_by_distance(store):
    collection = store.collection("c", encoder="none", recipe="gpu-flat", metric="euclidean")
    far = clustered() + 5000
    collection.add({"key": str(i), "vector": row} for i, row in enumerate(far))
    collection.index()
    put_on_gpus(collection, 2)
    queries = clustered(40, 1) + 5000
    answers = collection.search_batch(queries, 10)
    assert "GPU scan of" in answers[0].plan
    order, _ = brute(far.astype(np.float64), queries.astype(np.float64), "euclidean", 10)
    right = sum(len({*hits.keys} & {*map(str, line)}) for hits, line in zip(answers, order, strict=True))
    assert right / 400 > 0.999


def test_filters_and_deleted_records_are_the_cpus(store):
    collection = filled(store, "ivf-sq8", "cosine")
    put_on_gpus(collection, 2)
    queries = clustered(50, 3)
    for hits in collection.search_batch(queries, 5, where="n < 100"):
        assert "GPU" not in hits.plan and all(int(key) < 100 for key in hits.keys)
    collection.delete([str(i) for i in range(0, N, 2)])
    for hits in collection.search_batch(queries, 5):
        assert "GPU" not in hits.plan and all(int(key) % 2 for key in hits.keys)


def test_more_hits_than_a_gpu_gives_are_the_cpus(store):
    collection = filled(store, "gpu-flat", "cosine")
    put_on_gpus(collection, 1)
    assert "GPU" in collection.search_batch(clustered(40, 3), 1024)[0].plan
    assert "GPU" not in collection.search_batch(clustered(40, 3), 1025)[0].plan


def test_threads_share_a_gpu_by_turns(store):
    collection = filled(store, "gpu-flat", "cosine")
    cache = put_on_gpus(collection, 1)
    flat, inside = cache._view.gpu, []
    part = flat._parts[0]

    class Watched:
        ntotal = part.ntotal

        def search(self, *asked):
            inside.append(1)
            assert len(inside) == 1
            found = part.search(*asked)
            inside.pop()
            return found

    flat._parts[0] = Watched()
    failed = []

    def ask(seed):
        try:
            for query in clustered(30, seed):
                collection.search(query, 3)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.parametrize("recipe", ["gpu-flat", "ivf-sq8"])
def test_many_newer_records_join_what_a_gpu_found(store, recipe):
    collection = filled(store, recipe, "euclidean")
    put_on_gpus(collection, 1)
    new = clustered(1500, 7)
    collection.add({"key": f"new{i}", "vector": row, "n": -1} for i, row in enumerate(new))
    queries = clustered(50, 8)
    order, _ = brute(np.concatenate([clustered(), new]), queries, "euclidean", 10)
    names = [*map(str, range(N)), *(f"new{i}" for i in range(len(new)))]
    answers = collection.search_batch(queries, 10)
    assert "GPU" in answers[0].plan
    right = sum(len({*hits.keys} & {names[i] for i in line}) for hits, line in zip(answers, order, strict=True))
    assert right / order.size > 0.95


@pytest.mark.parametrize("recipe", ["gpu-flat", "ivf-sq8"])
def test_where_a_gpu_fails_the_cpu_answers_and_says_so_unless_a_gpu_was_named(store, recipe, caplog):
    class Full:
        ntotal = N

        def search(self, *asked, **options):
            raise RuntimeError("Error in virtual void* allocMemory: out of memory\nmore")

    collection = filled(store, recipe, "cosine")
    on_gpu = put_on_gpus(collection, 1)._view.gpu
    on_gpu._parts = [Full()]
    on_gpu.required = True
    with pytest.raises(DeviceUnavailable, match="the GPU cannot search: Error in virtual .* out of memory$"):
        collection.search_batch(clustered(40, 3), 5)
    on_gpu.required = False
    for _ in range(2):
        answers = collection.search_batch(clustered(40, 3), 5)
        assert len(answers[0]) == 5 and "GPU" not in answers[0].plan
    assert caplog.text.count("searching on the CPU: the GPU cannot search") == 1


def in_child(ask):
    """What a function says in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            words = ask()
        except BaseException as error:
            words = f"{type(error).__name__}: {error}"
        os.write(writing, words.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return answer.read()


def test_a_forked_process_asks_nothing_of_gpus_that_were_used_before(store, monkeypatch):
    def ask():
        FAISS.StandardGpuResources = FAISS.get_num_gpus = None  # to be called is an error
        assert n_gpus(FAISS) == 0
        try:
            store.__class__(store.path, device="cuda")
        except DeviceUnavailable as error:
            return str(error)
        return "no error"

    monkeypatch.setattr(gpus, "_used", True)
    assert "a forked process cannot use the GPU of its parent" in in_child(ask)


@pytest.mark.parametrize("kind", [DeviceKind.AUTO, DeviceKind.CUDA])
def test_a_forked_process_leaves_the_gpu_of_its_parent_alone(store, kind, monkeypatch):
    collection = filled(store, "gpu-flat", "cosine")
    cache = put_on_gpus(collection, 1)
    monkeypatch.setattr(gpus, "_used", True)
    cache._device = Device(kind)
    (part,) = cache._view.gpu._parts

    def ask():
        if part.thisown:
            return "it would be freed here"
        return collection.search(clustered(1)[0], 3).plan

    told = in_child(ask)
    if kind is DeviceKind.AUTO:
        assert told.startswith("exact scan of 3,000 vectors")
    else:
        assert "cannot use the GPU of its parent" in told
    cache._device = Device()
    assert "GPU" in collection.search(clustered(1)[0], 3).plan


@has_gpu
@pytest.mark.parametrize("recipe", [one.name for one in all_recipes().values() if one.name.startswith("gpu-")])
@pytest.mark.parametrize("metric", ["cosine", "dot", "euclidean"])
def test_on_a_gpu_batches_find_what_is_near(tmp_path, recipe, metric):
    if recipe == "gpu-cagra" and not hasattr(FAISS, "GpuIndexCagra"):
        pytest.skip("this FAISS was built without cuVS")
    matrix, queries = clustered(20_000), clustered(200, 5)
    with embedstore.open(tmp_path / "store", device="cuda") as store:
        collection = store.collection("c", encoder="none", recipe=recipe, metric=metric)
        collection.add({"key": str(i), "vector": row} for i, row in enumerate(matrix))
        collection.index()
        answers = collection.search_batch(queries, 10)
        assert "GPU" in answers[0].plan
        order, scores = brute(matrix, queries, metric, 10)
        right = sum(len({*hits.keys} & set(map(str, line))) for hits, line in zip(answers, order, strict=True))
        assert right / order.size > 0.9
        assert answers[0][0].score == pytest.approx(scores[0, 0], abs=1e-4)
    with embedstore.open(tmp_path / "store", device="cpu") as store:  # what was kept is an index of the CPU
        assert "GPU" not in store.collection("c").search_batch(queries, 10)[0].plan
        assert store.verify().ok
