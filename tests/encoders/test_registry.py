"""Claims about encoder names, pinned specs and models other than minilm."""

import dataclasses
import importlib.metadata
import json
import logging
import shutil

import numpy as np
import pytest

from embedstore.encoders import Encoded, EncoderSpec, load_encoder
from embedstore.errors import EncoderMismatch, EncoderUnavailable, InvalidInput

TEXTS = ["fungal disease in cereals", "x", "the cat sat on the mat " * 20, "稲のいもち病 🌾"]
TOLERANCE = 1e-5


def test_none_is_no_encoder(isolated):
    assert load_encoder("none") is None


@pytest.mark.parametrize("name", ["minlm", "", "st:", "openai:ada", "diffusion"])
def test_an_unknown_name_is_refused_with_what_is_possible(isolated, name):
    with pytest.raises(InvalidInput, match="minilm, minilm-int8, st:NAME_OR_PATH, hf:"):
        load_encoder(name)


def test_a_model_that_is_not_on_this_machine_is_refused_without_the_network(isolated):
    with pytest.raises(EncoderUnavailable, match="allow-download"):
        load_encoder("st:all-mpnet-base-v2")
    with pytest.raises(EncoderUnavailable, match="no folder"):
        load_encoder("hf:/no/such/folder")


def direct(folder, layer, pool):
    """Hidden states of one text at a time, straight from transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    vectors = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=64, return_tensors="pt")
        with torch.inference_mode():
            states = model(**inputs, output_hidden_states=True).hidden_states[layer][0]
        vectors.append(
            {"max": states.amax(0), "mean": states.mean(0), "first": states[0], "last": states[-1]}[pool]
        )
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize(("layer", "pool"), [(1, "max"), (-2, "mean"), (0, "first"), (2, "max")])
def test_hidden_states_are_those_of_transformers(isolated, tiny_bert, layer, pool, caplog):
    caplog.set_level(logging.INFO)
    encoder = load_encoder(f"hf:{tiny_bert}@layer={layer},pool={pool}")
    expected = direct(tiny_bert, layer, pool)
    np.testing.assert_allclose(encoder.encode(TEXTS).vectors, expected, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(encoder.encode_query(TEXTS[2]), expected[2], atol=TOLERANCE, rtol=TOLERANCE)
    assert encoder.encode(TEXTS).n_truncated == 1
    assert encoder._onnx is not None, "a plain BERT runs on onnxruntime"
    assert "does not fit the BERT graph" not in caplog.text


def test_a_graph_from_torchs_exporter_makes_the_same_vectors(cached, tiny_bert):
    encoder = load_encoder(f"hf:{tiny_bert}@layer=1,pool=last")  # which the BERT graph does not offer
    expected = direct(tiny_bert, 1, "last")
    np.testing.assert_allclose(encoder.encode(TEXTS).vectors, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert encoder._onnx is not None


def test_a_model_that_cannot_be_exported_runs_on_torch_and_says_so(isolated, tiny_bert, monkeypatch, caplog):
    from embedstore.encoders import onnx_export

    def fail(*_):
        raise onnx_export.ExportFailed("no such operator")

    monkeypatch.setattr(onnx_export, "_write_export", fail)
    encoder = load_encoder(f"hf:{tiny_bert}@layer=1,pool=max")
    expected = direct(tiny_bert, 1, "max")
    np.testing.assert_allclose(encoder.encode(TEXTS).vectors, expected, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(encoder.encode_query(TEXTS[0]), expected[0], atol=TOLERANCE, rtol=TOLERANCE)
    assert encoder.count_tokens("x") == 3
    assert "no such operator" in caplog.text
    caplog.clear()
    load_encoder(f"hf:{tiny_bert}@layer=1,pool=max").encode_query("x")
    assert "no such operator" not in caplog.text, "the failure is remembered"


def test_a_sentence_transformer_with_a_dense_layer_makes_its_own_vectors(cached, tiny_sentence_transformer):
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(tiny_sentence_transformer), device="cpu").encode(TEXTS)
    for name in (f"st:{tiny_sentence_transformer}", str(tiny_sentence_transformer)):
        encoder = load_encoder(name)
        assert encoder.spec.dim == 8 and encoder.spec.max_tokens == 16
        np.testing.assert_allclose(encoder.encode(TEXTS).vectors, expected, atol=TOLERANCE)


def test_weights_that_are_only_a_pickle_are_refused(isolated, tiny_bert, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_bert, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EncoderUnavailable, match=r"pickle \(pytorch_model.bin\).*convert"):
        load_encoder(f"hf:{folder}")


def test_a_pickled_dense_layer_is_refused(isolated, tiny_sentence_transformer, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_sentence_transformer, folder)
    dense = next(folder.glob("2_*"))
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(EncoderUnavailable, match="pickle"):
        load_encoder(f"st:{folder}")


def test_a_model_with_code_of_its_own_is_refused(isolated, tiny_bert, tiny_sentence_transformer, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(EncoderUnavailable, match="never runs"):
        load_encoder(f"hf:{tmp_path / 'hf'}")
    shutil.copytree(tiny_sentence_transformer, tmp_path / "st")
    modules = (tmp_path / "st" / "modules.json").read_text()
    for wrong in ("os.system", "sentence_transformers.models.CLIPModel"):
        found = json.loads(modules)
        found[0]["type"] = wrong
        (tmp_path / "st" / "modules.json").write_text(json.dumps(found))
        with pytest.raises(EncoderUnavailable, match=wrong):
            load_encoder(f"st:{tmp_path / 'st'}")


@pytest.mark.parametrize(
    "options",
    ["layer=3", "layer=-4", "pool=middle", "layer=two", "colour=red", "max_tokens=65", "normalize=1",
     "pool=max,pool=max"],
)  # fmt: skip
def test_options_that_do_not_exist_are_refused(isolated, tiny_bert, options):
    with pytest.raises(InvalidInput):
        load_encoder(f"hf:{tiny_bert}@{options}")


def test_what_decides_the_vectors_decides_the_fingerprint(isolated, tiny_bert, minilm_folder, tmp_path):
    shutil.copytree(tiny_bert, tmp_path / "moved")
    here = load_encoder(f"hf:{tiny_bert}").spec
    assert load_encoder(f"hf:{tmp_path / 'moved'}").spec.fingerprint == here.fingerprint
    assert load_encoder(f"hf:{tiny_bert}@layer=-1,pool=mean").spec.fingerprint == here.fingerprint
    others = [load_encoder(f"hf:{tiny_bert}@{options}").spec.fingerprint
              for options in ("layer=1", "pool=max", "normalize=true", "max_tokens=32")]  # fmt: skip
    assert len({here.fingerprint, *others}) == 5
    assert load_encoder(f"st:{minilm_folder}").spec.fingerprint == load_encoder("minilm").spec.fingerprint


def test_a_pinned_encoder_is_found_where_it_was(isolated, tiny_bert, minilm_folder):
    spec = load_encoder(f"hf:{tiny_bert}@layer=1").spec
    assert load_encoder(spec.name, pinned=spec).spec == spec
    assert load_encoder("minilm", pinned=load_encoder("minilm").spec).spec.location == str(minilm_folder)
    gone = dataclasses.replace(spec, location="/gone")
    assert load_encoder(spec.name, pinned=gone).spec == spec


def test_another_encoder_than_the_pinned_is_refused_by_both_names(isolated, tiny_bert, minilm_folder):
    pinned, other = load_encoder("minilm").spec, load_encoder(f"hf:{tiny_bert}").spec
    with pytest.raises(EncoderMismatch) as caught:
        load_encoder(other.name, pinned=pinned)
    for part in (pinned.describe(), pinned.fingerprint, other.describe(), other.fingerprint):
        assert part in str(caught.value)
    with pytest.raises(EncoderMismatch, match="minilm"):
        load_encoder("none", pinned=pinned)


def test_weights_changed_under_a_pinned_encoder_are_refused(isolated, tiny_bert, tmp_path):
    folder = tmp_path / "changing"
    shutil.copytree(tiny_bert, folder)
    pinned = load_encoder(f"hf:{folder}").spec
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(EncoderMismatch):
        load_encoder(pinned.name, pinned=pinned)


class Lengths:
    """An encoder of another package: one number, the text's length."""

    def __init__(self, argument):
        self.spec = EncoderSpec(name=f"lengths:{argument}", family="lengths", dim=1)

    def encode(self, texts):
        return Encoded(np.array([[len(text)] for text in texts], np.float32).reshape(-1, 1))

    def encode_query(self, text):
        return np.array([len(text)], np.float32)

    def count_tokens(self, text):
        return len(text)

    def close(self):
        pass


def test_other_packages_add_encoders(isolated, monkeypatch):
    point = importlib.metadata.EntryPoint("lengths", f"{__name__}:Lengths", "embedstore.encoders")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    encoder = load_encoder("lengths:big")
    assert encoder.spec.name == "lengths:big" and encoder.encode_query("four")[0] == 4
    with pytest.raises(InvalidInput, match="lengths"):
        load_encoder("unknown")
    with pytest.raises(EncoderMismatch):
        load_encoder("lengths:big", pinned=EncoderSpec(name="minilm", family="minilm", dim=384))
