"""Claims about chunks."""

import pytest

from embedstore.encoders import load_encoder, split
from embedstore.errors import InvalidInput

TEXT = (
    "Rice blast is a disease of rice. It is caused by a fungus 🌾 naïve.\n\n"
    "稲のいもち病は、イネの病害である。It destroys enough rice to feed 60 million people.\n\n"
) * 8


@pytest.fixture(scope="module")
def count_words():
    return lambda text: len(text.split()) + 2


def test_chunks_are_slices_of_the_text(count_words):
    chunks = split(TEXT, 20, 5, count_words)
    assert len(chunks) > 5
    for chunk in chunks:
        assert TEXT[chunk.start : chunk.end] == chunk.text


def test_no_chunk_is_longer_than_asked_and_no_word_is_lost(count_words):
    chunks = split(TEXT, 20, 0, count_words)
    assert max(count_words(chunk.text) for chunk in chunks) <= 20
    assert " ".join(chunk.text for chunk in chunks).split() == TEXT.split()


def test_chunks_fit_what_minilm_reads(cached, minilm_folder):
    encoder = load_encoder("minilm")
    chunks = split(TEXT * 3, 64, 8, encoder.count_tokens)
    assert max(encoder.count_tokens(chunk.text) for chunk in chunks) <= 64
    assert encoder.encode([chunk.text for chunk in chunks]).n_truncated == 0
    assert all((TEXT * 3)[chunk.start : chunk.end] == chunk.text for chunk in chunks)


@pytest.mark.parametrize("text", ["", " \n "])
def test_white_space_has_no_chunks(count_words, text):
    assert split(text, 20, 0, count_words) == []


@pytest.mark.parametrize(("n_tokens", "overlap"), [(2, 0), (0, 0), (20, 18), (20, -1)])
def test_sizes_that_cannot_be_used_are_refused(count_words, n_tokens, overlap):
    with pytest.raises(InvalidInput):
        split(TEXT, n_tokens, overlap, count_words)
