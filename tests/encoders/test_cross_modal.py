"""One space of texts and pictures, by a small model of CLIP's architecture that is made here."""

import json
import string

import numpy as np
import pytest
import torch
from PIL import Image

from embedstore import InvalidInput, InvalidRecord
from embedstore.encoders import load_encoder
from embedstore.errors import EncoderUnavailable
from embedstore.model import Modality

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 30), "blue": (20, 30, 220), "white": (250, 250, 250)}

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]  # of transformers, about parts of its own


def picture_of(colour, seed=0):
    """A picture of one colour with some noise, 48 x 40."""
    noise = np.random.default_rng(seed).integers(-15, 16, (40, 48, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of one layer on either side, trained for a moment to bring colours and their names together."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "clip"
    folder.mkdir()
    letters = list(string.ascii_lowercase + " ")
    words = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    sides = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(
        text_config={
            **sides, "vocab_size": len(words), "max_position_embeddings": 32,
            "bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"],
        },
        vision_config={**sides, "image_size": 32, "patch_size": 16}, projection_dim=12,
    ))  # fmt: skip
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = CLIPProcessor(images, tokenizer)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        given = processor(
            text=list(COLOURS), images=[picture_of(name, step) for name in COLOURS], return_tensors="pt", padding=True
        )
        loss = model(**given, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5
    model.eval().save_pretrained(folder, safe_serialization=True)
    processor.save_pretrained(folder)
    return folder


def test_texts_find_pictures_and_pictures_texts_in_one_space(store, clip_folder):
    things = store.collection("things", encoder=f"st:{clip_folder}")
    things.add([{"key": f"picture-{name}", "image": picture_of(name, 99)} for name in COLOURS])
    things.add([{"key": f"text-{name}", "text": name} for name in COLOURS])
    space = things.space()
    assert (space.name, space.dim, space.metric.value) == ("shared", 12, "cosine")
    for name in COLOURS:
        by_text = things.search(name, k=1, where="_modality = 'image'")
        assert by_text.keys == [f"picture-{name}"]
        by_picture = things.search(picture_of(name, 7), k=1, where="_modality = 'text'")
        assert by_picture.keys == [f"text-{name}"]
    assert things.search("red", mode="text").keys == ["text-red"]
    between = (space["picture-red"] + space["text-blue"]).nearest(4).keys
    assert "text-red" in between or "picture-blue" in between
    assert store.verify().ok


def test_vectors_are_those_of_sentence_transformers_however_items_are_mixed(clip_folder):
    from sentence_transformers import SentenceTransformer

    encoder = load_encoder(str(clip_folder))
    assert encoder.spec.modalities == {Modality.TEXT, Modality.IMAGE} and encoder.spec.name == f"st:{clip_folder}"
    pictures = [picture_of(name, 3) for name in COLOURS]
    theirs = SentenceTransformer(str(clip_folder), device="cpu")
    expected = np.concatenate([theirs.encode(pictures), theirs.encode(list(COLOURS))])
    mixed = encoder.encode([*map(encoder.prepare, pictures), *COLOURS]).vectors
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_query("blue"), expected[6], atol=1e-5)
    assert encoder.encode([]).vectors.shape == (0, 12) and encoder.count_tokens("red") == 5


def test_what_it_does_not_read_is_refused(store, clip_folder, tmp_path):
    things = store.collection("things", encoder=f"st:{clip_folder}")
    with pytest.raises(InvalidRecord, match="the collection's encoder reads image or text; the record has a row"):
        things.add([{"key": "a", "row": {"x": 1}}])
    things.add([{"key": "a", "text": "red"}])
    with pytest.raises(InvalidInput, match="reads image or text; the query is a row"):
        things.search({"x": 1})
    (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(EncoderUnavailable, match="has no .safetensors; weights are read as safetensors alone"):
        load_encoder(f"st:{tmp_path}")
