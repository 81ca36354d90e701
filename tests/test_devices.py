"""A processor is chosen by a word; a GPU that is asked for by name and is not there is an error, never a fallback."""

import pytest
from shared import needs_gpu

import embedstore
from embedstore import DeviceUnavailable, InvalidInput
from embedstore.devices import Device, DeviceKind, choose_device
from embedstore.indexing.gpus import chosen_gpus, n_gpus
from embedstore.indexing.recipes import find_recipe
from embedstore.optional import load_faiss

no_gpu = pytest.mark.skipif(n_gpus(load_faiss()) > 0, reason="FAISS finds a GPU here, so nothing is missing")


@pytest.mark.parametrize(
    ("word", "device"),
    [
        ("auto", Device()), ("cpu", Device(DeviceKind.CPU)), ("cuda", Device(DeviceKind.CUDA)),
        ("cuda:1", Device(DeviceKind.CUDA, 1)), ("all", Device(DeviceKind.ALL)),
    ],
)  # fmt: skip
def test_words_are_devices_and_devices_are_their_words(word, device):
    assert choose_device(word) == device
    assert str(device) == word


@pytest.mark.parametrize("word", ["", "gpu", "cuda:", "cuda:x", "CUDA", "cuda:-1", "cpu:0"])
def test_another_word_is_refused_with_those_there_are(word):
    with pytest.raises(InvalidInput, match="it must be auto, cpu, cuda, cuda:NUMBER or all"):
        choose_device(word)
    with pytest.raises(InvalidInput):
        embedstore.open("nowhere", device=word)


@no_gpu
@pytest.mark.parametrize("word", ["cuda", "cuda:1", "all"])
def test_a_gpu_that_is_not_there_is_an_error(word, tmp_path):
    with pytest.raises(DeviceUnavailable, match=rf"device '{word}' was asked for, but FAISS .*embedstore doctor"):
        chosen_gpus(choose_device(word))
    with pytest.raises(DeviceUnavailable, match="torch finds 0 GPUs"):
        embedstore.open(tmp_path / "store", device=word)
    assert not (tmp_path / "store").exists()


@no_gpu
@pytest.mark.parametrize("word", ["auto", "cpu"])
def test_without_a_gpu_a_gpu_recipe_that_has_a_form_on_the_cpu_is_searched_there(word, tmp_path):
    assert chosen_gpus(choose_device(word)) == []
    with embedstore.open(tmp_path / "store", device=word) as store:
        collection = store.collection("c", encoder="none", recipe="gpu-flat")
        collection.add([{"key": str(i), "vector": [float(i), 1.0]} for i in range(5)])
        collection.index()
        hits = collection.search([4.0, 1.0], k=1)
        assert (hits.keys, hits.exact) == (["4"], True)


@no_gpu
@pytest.mark.parametrize("recipe", ["gpu-cagra", "gpu-ivf-pq"])
def test_a_collection_is_not_made_with_an_index_that_cannot_be_built_here(recipe, store):
    with pytest.raises(DeviceUnavailable, match="finds none here"):
        store.collection("c", encoder="none", recipe=recipe)


@no_gpu
@pytest.mark.parametrize("recipe", ["gpu-cagra", "gpu-ivf-pq"])
def test_an_index_that_only_a_gpu_builds_is_refused_before_anything_is_changed(recipe, store):
    assert needs_gpu(find_recipe(recipe))
    collection = store.collection("c", encoder="none")
    collection.add([{"key": str(i), "vector": [float(i), 1.0]} for i in range(5)])
    with pytest.raises(DeviceUnavailable, match=f"the recipe '{recipe}' is built on a GPU, and FAISS finds none here"):
        collection.index(recipe=recipe)
    assert collection.space().describe()["recipe"] == "flat"
