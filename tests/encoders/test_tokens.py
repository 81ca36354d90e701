"""Claims about tokenizing beside encoding."""

import subprocess
import sys

import numpy as np
import pytest

from embedstore.encoders import load_encoder, text_encoder
from embedstore.errors import InvalidInput


@pytest.fixture
def small_windows(cached, minilm_folder, monkeypatch):
    """minilm with windows of ten texts, tokenized four at a time."""
    monkeypatch.setattr(text_encoder, "_TEXTS_AT_ONCE", 4)
    monkeypatch.setattr(text_encoder, "window_texts", lambda *_, **__: 10)
    encoder = load_encoder("minilm", device="cpu")
    yield encoder
    encoder.close()


TEXTS = [f"{'word ' * (number * 37 % 90)}number {number}" for number in range(47)]


@pytest.mark.parametrize("n_texts", [0, 1, 4, 9, 10, 11, 20, 47])
def test_windows_change_no_vector(small_windows, n_texts):
    found = small_windows.encode(TEXTS[:n_texts])
    assert found.vectors.shape == (n_texts, 384)
    for position in range(0, n_texts, 5):
        np.testing.assert_allclose(found.vectors[position], small_windows.encode_query(TEXTS[position]), atol=1e-5)


def test_truncated_texts_are_counted_over_all_windows(small_windows):
    texts = list(TEXTS)
    for position in (0, 9, 10, 46):
        texts[position] = "word " * 300
    assert small_windows.encode(texts).n_truncated == 4


@pytest.mark.parametrize("position", [0, 13, 46])
@pytest.mark.parametrize("wrong", [None, "\ud800"])
def test_what_cannot_be_encoded_is_refused_by_its_position_among_all(small_windows, position, wrong):
    texts = list(TEXTS)
    texts[position] = wrong
    with pytest.raises(InvalidInput, match=f"position {position} "):
        small_windows.encode(texts)


def test_a_window_is_tokenized_while_the_one_before_is_encoded(small_windows):
    import threading

    small_windows.encode(TEXTS[:1])
    tokenizer, runner = small_windows._tokens(), small_windows._bulk
    real_tokenize, real_encode = tokenizer.encode_all, runner.encode
    tokenized = {start: threading.Event() for start in range(0, 40, 10)}
    n_encoded = []

    def tokenize(texts, *, first, **options):
        found = real_tokenize(texts, first=first, **options)
        if first in tokenized:
            tokenized[first].set()
        return found

    def encode(ids):
        n_encoded.append(len(ids))
        following = sum(n_encoded)
        assert following >= 40 or tokenized[following].wait(10), "the next window waits for this one"
        assert all(not tokenized[start].is_set() for start in tokenized if start > following)
        return real_encode(ids)

    tokenizer.encode_all, runner.encode = tokenize, encode
    small_windows.encode(TEXTS[:40])
    assert n_encoded == [10, 10, 10, 10]


def test_a_fork_after_encoding_warns_of_nothing_and_the_child_encodes(cached, minilm_folder):
    code = (
        "import os, sys\n"
        "os.environ.pop('TOKENIZERS_PARALLELISM', None)\n"
        "from embedstore.encoders import load_encoder\n"
        "texts = ['fungal disease in cereals'] * 600\n"
        "load_encoder('minilm', device='cpu').encode(texts)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    vectors = load_encoder('minilm', device='cpu').encode(texts).vectors\n"
        "    os._exit(0 if vectors.shape == (600, 384) else 1)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_users_own_word_about_threads_is_left_alone(monkeypatch):
    import os

    from embedstore.encoders.tokens import load_tokenizers

    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    load_tokenizers()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
