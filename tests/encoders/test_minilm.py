"""Claims about minilm: its vectors, its queries and its special cases."""

import csv

import numpy as np
import pytest

from embedstore.encoders import Encoder, load_encoder
from embedstore.errors import InvalidInput

from .conftest import SENTENCES

TOLERANCE = 1e-5


@pytest.fixture
def minilm(cached, minilm_folder):
    encoder = load_encoder("minilm")
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def sentence_transformer(minilm_folder):
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(
        str(minilm_folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True}
    )


def test_vectors_are_those_of_sentence_transformers(minilm, sentence_transformer):
    expected = sentence_transformer.encode(SENTENCES, show_progress_bar=False)
    encoded = minilm.encode(SENTENCES)
    assert encoded.vectors.dtype == np.float32 and encoded.vectors.flags.c_contiguous
    np.testing.assert_allclose(encoded.vectors, expected, atol=TOLERANCE)


def test_queries_make_the_same_vectors_as_bulk_however_many_are_asked(minilm):
    bulk = minilm.encode(SENTENCES).vectors
    for _ in range(3):  # the session is opened anew, packed, on the way
        for text, expected in zip(SENTENCES, bulk, strict=True):
            np.testing.assert_allclose(minilm.encode_query(text), expected, atol=TOLERANCE)


def test_token_ids_are_those_of_sentence_transformers(minilm, sentence_transformer):
    weird = [*SENTENCES, "[sep]", "a[SEP]b", "<s>", "\x00\x01", "İstanbul", "Å", "中文字", "…", "👩‍👩‍👧"]
    ids, _ = minilm._tokens().encode_all(weird)
    for text, found in zip(weird, ids, strict=True):
        expected = sentence_transformer.tokenizer(text, truncation=True)["input_ids"]
        assert found.tolist() == expected, text


def test_torch_makes_the_same_vectors(minilm, sentence_transformer):
    from embedstore.encoders.torch_text import TorchText

    ids, _ = minilm._tokens().encode_all(SENTENCES)
    torch_text = TorchText(minilm._model)
    np.testing.assert_allclose(torch_text.encode(ids), minilm.encode(SENTENCES).vectors, atol=TOLERANCE)
    query = torch_text.encode_query(ids[0])
    np.testing.assert_allclose(query, minilm.encode_query(SENTENCES[0]), atol=TOLERANCE)


def test_the_order_of_texts_is_kept(minilm):
    texts = [f"{'word ' * (37 * number % 50)}number {number}" for number in range(60)]
    vectors = minilm.encode(texts).vectors
    for number in (0, 7, 31, 59):
        np.testing.assert_allclose(vectors[number], minilm.encode_query(texts[number]), atol=TOLERANCE)


def test_no_texts_give_no_vectors(minilm):
    encoded = minilm.encode([])
    assert encoded.vectors.shape == (0, 384) and encoded.vectors.dtype == np.float32
    assert encoded.n_truncated == 0


def test_an_empty_text_does_not_crash(minilm):
    assert np.isfinite(minilm.encode_query("")).all()
    assert np.isfinite(minilm.encode(["", "x"]).vectors).all()


def test_truncated_texts_are_counted_at_the_limit_exactly(minilm, caplog):
    whole, cut = "word " * 254, "word " * 255  # and two special tokens
    assert minilm.count_tokens(whole) == 256
    assert minilm.count_tokens(cut) == 257
    assert minilm.encode([whole]).n_truncated == 0
    assert minilm.encode([whole, cut, "x", cut]).n_truncated == 2
    minilm.encode_query(whole)
    assert "left out" not in caplog.text
    minilm.encode_query(cut)
    assert "the query has 257 tokens, of which 'minilm' reads 256; its end was left out" in caplog.text


@pytest.mark.parametrize("wrong", [3, None, b"bytes"])
def test_what_is_not_a_string_is_refused_by_its_position(minilm, wrong):
    with pytest.raises(InvalidInput, match="position 1"):
        minilm.encode(["fine", wrong])
    with pytest.raises(InvalidInput, match="must be a string"):
        minilm.encode_query(wrong)


def test_one_string_in_place_of_many_is_refused(minilm):
    with pytest.raises(InvalidInput, match="one text"):
        minilm.encode("text")


def test_a_lone_surrogate_is_refused_by_its_position(minilm):
    with pytest.raises(InvalidInput, match="position 1"):
        minilm.encode(["fine", "\ud800"])
    with pytest.raises(InvalidInput, match="UTF-8"):
        minilm.encode_query("\ud800")
    with pytest.raises(InvalidInput, match="UTF-8"):
        minilm.count_tokens("\ud800")


def test_a_closed_encoder_works_again(minilm):
    before = minilm.encode_query("again")
    minilm.close()
    np.testing.assert_array_equal(minilm.encode_query("again"), before)


def test_threads_may_share_an_encoder(minilm):
    from concurrent.futures import ThreadPoolExecutor

    texts = SENTENCES * 5
    expected = minilm.encode(texts).vectors
    with ThreadPoolExecutor(4) as pool:
        found = np.stack(list(pool.map(minilm.encode_query, texts)))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_it_is_an_encoder(minilm):
    assert isinstance(minilm, Encoder)


def test_it_ranks_pairs_of_sentences_as_published(minilm, data_folder):
    path = data_folder / "stsb" / "stsb-en-dev.csv"
    if not path.is_file():
        pytest.skip("stsb-en-dev.csv is not in the folder of test data")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    left, right = (minilm.encode([row[column] for row in rows]).vectors for column in (0, 1))
    scores = np.array([float(row[2]) for row in rows])
    cosines = (left * right).sum(axis=1)
    assert np.corrcoef(_ranks(cosines), _ranks(scores))[0, 1] == pytest.approx(0.8672, abs=0.001)


def _ranks(values):
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
