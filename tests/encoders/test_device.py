"""Claims about the processor that texts are encoded on."""

import numpy as np
import pytest

from embedstore.devices import Device, DeviceKind, choose_device
from embedstore.encoders import load_encoder
from embedstore.encoders.threads import Plan
from embedstore.encoders.torch_device import choose_gpus, may_have_gpu, torch_gpus
from embedstore.encoders.torch_text import TorchText
from embedstore.errors import DeviceUnavailable, InvalidInput

from .conftest import SENTENCES

HALF = 2e-3
"""The greatest difference of a number between half and single precision, in vectors of length one."""


def has_gpu():
    import torch

    return torch.cuda.is_available()


@pytest.fixture
def no_gpu():
    if has_gpu():
        pytest.skip("there is a GPU here, so its absence is no error")


@pytest.fixture
def gpu():
    if not has_gpu():
        pytest.skip("torch finds no GPU here")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", "all"])
def test_a_gpu_that_is_not_there_is_an_error_in_one_line_and_no_fallback(no_gpu, cached, minilm_folder, device):
    said = f"device '{device.removesuffix(':0')}' needs a GPU, and torch .*, or take device='cpu'$"
    with pytest.raises(DeviceUnavailable, match=said) as caught:
        load_encoder("minilm", device=device)
    assert "\n" not in str(caught.value)


def test_the_error_says_what_to_install_where_torch_is_a_build_for_the_cpu(no_gpu):
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        pytest.skip("torch is a build for GPUs")
    with pytest.raises(DeviceUnavailable, match="built for the CPU alone; install a build for CUDA"):
        torch_gpus(Device(DeviceKind.CUDA))


def test_a_gpu_beyond_those_that_are_there_is_refused():
    assert choose_gpus(choose_device("cuda"), 2) == ["cuda:0"]
    assert choose_gpus(choose_device("cuda:1"), 2) == ["cuda:1"]
    assert choose_gpus(choose_device("all"), 2) == ["cuda:0", "cuda:1"]
    assert choose_gpus(choose_device("auto"), 2) == ["cuda:0"]
    with pytest.raises(DeviceUnavailable, match="'cuda:2' does not exist: torch finds 2 GPUs, counted from cuda:0"):
        choose_gpus(choose_device("cuda:2"), 2)
    with pytest.raises(DeviceUnavailable, match="torch finds 1 GPU,"):
        choose_gpus(choose_device("cuda:1"), 1)


def test_the_cpu_is_no_gpu():
    with pytest.raises(DeviceUnavailable, match="'cpu' is not a GPU"):
        torch_gpus(Device(DeviceKind.CPU))


def test_a_word_that_means_no_device_is_refused(cached, minilm_folder):
    with pytest.raises(InvalidInput, match="device is 'tpu'"):
        load_encoder("minilm", device="tpu")
    with pytest.raises(InvalidInput, match="device is 'tpu'"):
        load_encoder("none", device="tpu")


def test_int8_is_refused_on_a_gpu_whether_there_is_one_or_not(cached, minilm_folder):
    with pytest.raises(DeviceUnavailable, match="minilm-int8 runs on the CPU alone, not on device 'cuda'"):
        load_encoder("minilm-int8", device="cuda")


@pytest.mark.parametrize("device", ["auto", "cpu", Device(DeviceKind.CPU)])
def test_without_a_gpu_auto_is_the_cpu(no_gpu, cached, minilm_folder, device):
    expected = load_encoder("minilm").encode(SENTENCES).vectors
    np.testing.assert_array_equal(load_encoder("minilm", device=device).encode(SENTENCES).vectors, expected)


def test_auto_asks_torch_for_a_gpu_only_where_there_may_be_one(cached, minilm_folder, monkeypatch, caplog):
    from embedstore.encoders import bulk, text_encoder

    asked = []
    monkeypatch.setattr(bulk, "GPU_TOKENS", 0)
    monkeypatch.setattr(bulk, "torch_gpus", lambda device: asked.append(device) or torch_gpus(device))
    expected = load_encoder("minilm", device="cpu").encode(SENTENCES).vectors
    assert asked == []
    monkeypatch.setattr(text_encoder, "may_have_gpu", lambda: True)  # a driver, but perhaps no GPU
    encoder = load_encoder("minilm", device="auto")
    for _ in range(2):
        np.testing.assert_allclose(encoder.encode(SENTENCES).vectors, expected, atol=HALF)
    assert asked == [Device()], "it is asked once"


def test_a_cpu_build_of_torch_is_known_without_importing_it(no_gpu):
    import torch

    if torch.version.cuda is None and torch.version.hip is None and "+cpu" in torch.__version__:
        assert not may_have_gpu()


def test_fingerprints_do_not_tell_devices_apart(cached, minilm_folder):
    assert load_encoder("minilm", device="cpu").spec.fingerprint == load_encoder("minilm").spec.fingerprint


def test_vectors_go_to_a_gpu_only_where_there_is_one(no_gpu, cached, minilm_folder):
    for device in ("auto", "cpu"):
        with pytest.raises(DeviceUnavailable):
            load_encoder("minilm", device=device).encode_to_device(["text"])


# ---- half precision and several devices, with torch's CPU in the place of GPUs


@pytest.fixture
def minilm(cached, minilm_folder):
    return load_encoder("minilm", device="cpu")


def test_half_precision_makes_nearly_the_same_vectors_in_single_precision(minilm):
    ids, _ = minilm._tokens().encode_all(SENTENCES)
    halved = TorchText(minilm._model, half=True)
    assert halved.is_half
    found = halved.encode(ids)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, minilm.encode(SENTENCES).vectors, atol=HALF)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)  # so the norm was not halved


def test_a_model_that_half_precision_would_change_computes_in_single(minilm, monkeypatch, caplog):
    import logging

    from embedstore.encoders import torch_text

    monkeypatch.setattr(torch_text, "LEAST_HALF_COSINE", 1.1)
    with caplog.at_level(logging.INFO):
        single = TorchText(minilm._model, half=True)
    ids, _ = minilm._tokens().encode_all(SENTENCES)
    assert not single.is_half and "single precision" in caplog.text
    np.testing.assert_allclose(single.encode(ids), minilm.encode(SENTENCES).vectors, atol=1e-5)


def test_batches_are_shared_out_among_devices(minilm, monkeypatch):
    ids, _ = minilm._tokens().encode_all(SENTENCES * 4)
    twice = TorchText(minilm._model, devices=("cpu", "cpu"))
    monkeypatch.setattr(twice, "_plan", lambda: Plan(2, 256))
    np.testing.assert_allclose(twice.encode(ids), minilm.encode(SENTENCES * 4).vectors, atol=1e-5)


def test_a_tensor_has_the_vectors_of_the_array(minilm):
    import torch

    ids, _ = minilm._tokens().encode_all(SENTENCES)
    on_cpu = TorchText(minilm._model)
    tensor = on_cpu.encode_to_device(ids)
    assert tensor.dtype is torch.float32 and tensor.shape == (len(SENTENCES), 384)
    np.testing.assert_array_equal(tensor.numpy(), on_cpu.encode(ids))


# ---- on a GPU


def test_a_gpu_makes_nearly_the_same_vectors(gpu, minilm):
    on_gpu = load_encoder("minilm", device="cuda")
    expected = minilm.encode(SENTENCES).vectors
    np.testing.assert_allclose(on_gpu.encode(SENTENCES).vectors, expected, atol=HALF)
    np.testing.assert_allclose(on_gpu.encode_query(SENTENCES[0]), expected[0], atol=HALF)


def test_vectors_stay_on_the_gpu(gpu, minilm):
    tensor = load_encoder("minilm", device="cuda").encode_to_device(SENTENCES)
    assert tensor.is_cuda
    np.testing.assert_allclose(tensor.cpu().numpy(), minilm.encode(SENTENCES).vectors, atol=HALF)
