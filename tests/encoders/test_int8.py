"""Claims about minilm-int8, whose products are in eight bits."""

import json
import logging

import numpy as np
import pytest

from embedstore.encoders import describe_runtime, int8_products, load_encoder, onnx_export
from embedstore.encoders.fidelity import SAMPLE, measure_fidelity
from embedstore.encoders.weights import INT8_SPEC, MINILM_SPEC
from embedstore.errors import EncoderMismatch, EncoderUnavailable

from .conftest import SENTENCES


@pytest.fixture
def int8(cached, minilm_folder):
    encoder = load_encoder("minilm-int8")
    yield encoder
    encoder.close()


def test_its_vectors_are_near_minilms_but_not_the_same(int8):
    exact, found = (encoder.encode(SENTENCES).vectors for encoder in (load_encoder("minilm"), int8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cosines = (exact * found).sum(axis=1)
    assert cosines.min() > 0.97 and cosines.max() < 0.9999


def test_a_vector_does_not_depend_on_the_texts_beside_it(int8):
    together = int8.encode(SENTENCES * 4).vectors
    for position, text in enumerate(SENTENCES):
        np.testing.assert_allclose(int8.encode([text]).vectors[0], together[position], atol=1e-5)
        np.testing.assert_allclose(int8.encode_query(text), together[position], atol=1e-5)


def test_it_is_never_mixed_with_minilm(int8):
    assert int8.spec.fingerprint != MINILM_SPEC.fingerprint and int8.spec.dim == MINILM_SPEC.dim
    for name, pinned in (("minilm", int8.spec), ("minilm-int8", load_encoder("minilm").spec)):
        with pytest.raises(EncoderMismatch):
            load_encoder(name, pinned=pinned)
    assert load_encoder("minilm-int8", pinned=int8.spec).spec == int8.spec


def test_its_fingerprint_never_changes():
    assert INT8_SPEC.fingerprint == "0a9dbc49aec0fafbea941e6c3676b144"


def test_it_runs_on_onnxruntime_however_much_is_encoded(int8, monkeypatch):
    from embedstore.encoders import race

    monkeypatch.setattr(race, "OPENVINO_TOKENS", 0)
    monkeypatch.setattr(race, "TORCH_TOKENS", 0)
    int8.encode(SENTENCES)
    assert list(int8._bulk._runners) == [race.Runtime.ONNX]


def test_its_fidelity_is_measured_at_the_export_and_shown(isolated, minilm_folder):
    assert describe_runtime(verify=False)["int8"]["fidelity"] is None
    encoder = load_encoder("minilm-int8")
    found, exact = (one.encode(SAMPLE).vectors for one in (encoder, load_encoder("minilm")))
    shown = describe_runtime(verify=False)["int8"]
    assert shown["cached"] and shown["folder"] == str(onnx_export.export_folder(encoder.spec))
    fidelity = shown["fidelity"]
    assert fidelity["n_texts"] == len(SAMPLE) == len(set(SAMPLE))
    assert fidelity["mean_cosine"] == pytest.approx((found * exact).sum(axis=1).mean(), abs=1e-4)
    assert fidelity["least_cosine"] <= fidelity["mean_cosine"]
    assert 0.9 < fidelity["top_10_overlap"] < 1


def test_fidelity_counts_shared_neighbours():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = measure_fidelity(vectors, vectors)
    assert (same.mean_cosine, same.least_cosine, same.top_10_overlap, same.n_texts) == (1, 1, 1, 60)
    unlike = measure_fidelity(generator.permutation(vectors), vectors)
    assert unlike.top_10_overlap < 0.4 and unlike.mean_cosine < 0.5
    scores, others = vectors @ vectors.T, generator.permutation(vectors, axis=1)
    nearest = [set(np.argsort(-np.delete(row, i))[:10]) for i, row in enumerate(scores)]
    turned = [set(np.argsort(-np.delete(row, i))[:10]) for i, row in enumerate(others @ others.T)]
    assert nearest == turned  # the same turn of all vectors leaves their neighbours
    assert measure_fidelity(others, vectors).top_10_overlap == 1


def test_weights_are_within_half_a_step_and_cannot_overflow_sixteen_bits():
    matrix = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    matrix[:, 3] = 0
    whole, scales = int8_products.quantised_weights(matrix)
    assert whole.dtype == np.int8 and scales.shape == (48,)
    assert (np.abs(whole * scales - matrix) <= scales * 0.5001).all()
    assert (np.abs(whole).max(axis=0) == [0 if column == 3 else 63 for column in range(48)]).all()
    assert 2 * 255 * int(np.abs(whole).max()) < 2**15


def test_a_wrong_graph_is_refused_and_no_other_runtime_takes_its_place(isolated, minilm_folder, monkeypatch, caplog):
    real = int8_products.quantised_weights

    def halved(matrix):
        whole, scales = real(matrix)
        return whole // 16, scales

    monkeypatch.setattr(int8_products, "quantised_weights", halved)
    encoder = load_encoder("minilm-int8")
    with caplog.at_level(logging.WARNING), pytest.raises(EncoderUnavailable, match="minilm-int8 cannot run"):
        encoder.encode(["text"])
    assert "mean cosine" in caplog.text


def test_its_export_is_smaller_than_minilms(int8):
    int8.encode_query("x")
    load_encoder("minilm").encode_query("x")
    sizes = [
        json.loads((onnx_export.export_folder(spec) / "export.json").read_text())["files"]["weights.bin"]["size"]
        for spec in (INT8_SPEC, MINILM_SPEC)
    ]
    assert sizes[0] < 0.7 * sizes[1]
