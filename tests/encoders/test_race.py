"""Claims about the choice between runtimes."""

import json

import numpy as np
import pytest

from embedstore.encoders import bulk, load_encoder, race
from embedstore.encoders.race import Race, Runtime, contenders, fastest, remember_ratios, remembered_ratios

from .conftest import SENTENCES

TOLERANCE = 1e-5
ONNX, OPENVINO, TORCH = Runtime.ONNX, Runtime.OPENVINO, Runtime.TORCH


class Clock:
    """Stands still but for the work of runtimes whose speed is known."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(race.time, "perf_counter", lambda: self.now)

    def encoder(self, seconds_per_token, *, disturbed_calls=(), factor=1.0):
        calls = []

        def encode(texts):
            calls.append(1)
            self.now += sum(map(len, texts)) * seconds_per_token * (50 if len(calls) in disturbed_calls else 1)
            return np.array([[len(text), factor] for text in texts], np.float32)

        return encode


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def texts():
    lengths = np.random.default_rng(0).integers(3, 256, size=3000)
    return [[1] * int(length) for length in lengths]


def all_of(running, texts):
    """Vectors of all texts; what the race leaves over is filled as the caller would."""
    vectors, left_over = running.encode(texts, 2)
    for position in left_over:
        vectors[position] = len(texts[position]), 1
    return vectors, left_over


def test_the_runtime_with_the_least_time_for_a_token_wins(clock, texts):
    running = Race({ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(0.9), TORCH: clock.encoder(1.2)})
    all_of(running, texts)
    assert running.is_over
    assert running.ratios() == pytest.approx({ONNX: 1.0, OPENVINO: 0.9, TORCH: 1.2})
    assert fastest(running.ratios(), (ONNX, OPENVINO, TORCH)) is OPENVINO


def test_a_disturbance_of_two_heats_does_not_change_the_winner(clock, texts):
    encoders = {ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(0.9, disturbed_calls=(3, 5))}
    running = Race(encoders)
    all_of(running, texts)
    assert running.ratios()[OPENVINO] == pytest.approx(0.9)


def test_every_text_is_encoded_once_by_the_race_or_left_over(clock, texts):
    running = Race({ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(0.9)})
    vectors, left_over = all_of(running, texts)
    assert 0 < len(left_over) < len(texts)
    assert vectors[:, 0].tolist() == [len(text) for text in texts]


def test_heats_are_gathered_over_small_calls(clock, texts):
    running = Race({ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(1.1)})
    n_calls = 0
    while not running.is_over:
        n_calls += 1
        vectors, left_over = all_of(running, texts[:40])
        assert left_over == [] and vectors[:, 0].tolist() == [len(text) for text in texts[:40]]
    assert n_calls == race.N_HEATS


def test_too_few_texts_are_left_over_whole(clock):
    running = Race({ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(1.1)})
    assert running.encode([[1, 2], [3]], 2)[1] == [0, 1]
    assert not running.is_over


def test_a_runtime_with_other_vectors_is_out_and_none_of_its_vectors_are_kept(clock, texts, caplog):
    running = Race({ONNX: clock.encoder(1.0), OPENVINO: clock.encoder(0.1, factor=1.5)})
    vectors, _ = all_of(running, texts)
    assert set(vectors[:, 1].tolist()) == {1.0}
    assert running.is_over and running.ratios() == {ONNX: 1.0}
    assert "openvino is not used, since its vectors differ" in caplog.text


def test_onnxruntime_stays_where_another_is_hardly_faster():
    assert fastest({ONNX: 1.0, OPENVINO: 0.99}, (ONNX, OPENVINO)) is ONNX
    assert fastest({ONNX: 1.0, OPENVINO: 0.9, TORCH: 0.8}, (ONNX, OPENVINO)) is OPENVINO
    assert fastest({}, (ONNX,)) is ONNX


@pytest.mark.parametrize(
    ("n_tokens", "n_cores", "expected"),
    [
        (0, 2, (ONNX,)), (39_999, 2, (ONNX,)), (40_000, 2, (ONNX, OPENVINO)), (499_999, 2, (ONNX, OPENVINO)),
        (500_000, 2, (ONNX, OPENVINO, TORCH)), (500_000, 64, (ONNX,)), (16_000_000, 64, (ONNX, OPENVINO, TORCH)),
    ],
)  # fmt: skip
def test_what_takes_time_to_open_is_opened_for_large_jobs_only(n_tokens, n_cores, expected):
    assert contenders(n_tokens, n_cores, [ONNX, OPENVINO, TORCH]) == expected
    assert contenders(n_tokens, n_cores, [ONNX]) == (ONNX,)


def test_the_outcome_is_remembered_for_this_machine_and_these_versions(tmp_path, monkeypatch):
    assert remembered_ratios(tmp_path) == ({}, ())
    remember_ratios(tmp_path, {ONNX: 1.0, OPENVINO: 0.93}, (ONNX, OPENVINO, TORCH))
    assert remembered_ratios(tmp_path) == ({ONNX: 1.0, OPENVINO: 0.93}, (ONNX, OPENVINO, TORCH))
    here = race._machine()
    for change in ({"n_cores": 64}, {"openvino": "1999.1"}, {"cpu": "another"}):
        monkeypatch.setattr(race, "_machine", lambda change=change: here | change)
        assert remembered_ratios(tmp_path) == ({}, ())
        remember_ratios(tmp_path, {ONNX: 1.0}, (ONNX,))
    monkeypatch.setattr(race, "_machine", lambda: here)
    assert remembered_ratios(tmp_path)[0] == {ONNX: 1.0, OPENVINO: 0.93}, "machines that share a cache keep their own"


@pytest.mark.parametrize("damage", ["", "[]", '{"machine": 1}', "null"])
def test_a_damaged_memory_is_no_memory(tmp_path, damage):
    remember_ratios(tmp_path, {ONNX: 1.0}, (ONNX,))
    (path,) = tmp_path.iterdir()
    path.write_text(damage)
    assert remembered_ratios(tmp_path) == ({}, ())
    machine = json.dumps(race._machine())
    path.write_text(f'{{"machine": {machine}, "ratios": {{"abacus": 1}}, "raced": []}}')
    assert remembered_ratios(tmp_path) == ({}, ())


# ---- with real runtimes


@pytest.fixture
def minilm(isolated, minilm_folder):
    encoder = load_encoder("minilm", device="cpu")
    yield encoder
    encoder.close()


def forget_thresholds(monkeypatch):
    monkeypatch.setattr(race, "OPENVINO_TOKENS", 0)
    monkeypatch.setattr(race, "TORCH_TOKENS", 0)
    monkeypatch.setattr(race, "HAND_TOKENS", 64)


def test_a_bulk_that_races_has_the_same_vectors_and_the_winner_is_kept(minilm, monkeypatch):
    texts = [f"{sentence[:200]} {number}" for number in range(16) for sentence in SENTENCES]
    expected = minilm.encode(texts).vectors
    minilm.close()
    forget_thresholds(monkeypatch)
    np.testing.assert_allclose(minilm.encode(texts).vectors, expected, atol=TOLERANCE)
    ratios, raced = remembered_ratios(minilm._export.folder)
    assert set(raced) == set(bulk.installed_runtimes()) == set(ratios)
    monkeypatch.setattr(bulk, "Race", None)  # a second race would fail
    minilm.close()
    np.testing.assert_allclose(minilm.encode(texts).vectors, expected, atol=TOLERANCE)


@pytest.mark.parametrize("winner", list(Runtime))
def test_whichever_runtime_won_the_vectors_are_the_same(minilm, monkeypatch, winner):
    if winner not in bulk.installed_runtimes():
        pytest.skip(f"{winner.value} is not installed")
    expected = minilm.encode(SENTENCES).vectors
    remember_ratios(minilm._export.folder, {ONNX: 1.0, winner: 0.5 if winner is not ONNX else 1.0}, tuple(Runtime))
    forget_thresholds(monkeypatch)
    minilm.close()
    np.testing.assert_allclose(minilm.encode(SENTENCES).vectors, expected, atol=TOLERANCE)
    assert set(minilm._bulk._runners) == {ONNX, winner}


def test_a_runtime_that_cannot_be_opened_is_left_out(minilm, monkeypatch, caplog):
    from embedstore.errors import EncoderUnavailable

    def broken(*_, **__):
        raise EncoderUnavailable("broken")

    expected = minilm.encode(SENTENCES).vectors
    minilm.close()
    forget_thresholds(monkeypatch)
    monkeypatch.setattr(bulk, "has_openvino", lambda: True)
    monkeypatch.setattr(bulk, "OpenVinoText", broken)
    monkeypatch.setattr(bulk, "TorchText", broken)
    for _ in range(2):
        np.testing.assert_allclose(minilm.encode(SENTENCES).vectors, expected, atol=TOLERANCE)
