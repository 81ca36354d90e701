"""Lenses read the stream by the model's own head; tuned ones read lower layers better."""

import numpy as np
import pytest
import torch

from embedstore import EncoderUnavailable, InvalidInput, probing
from embedstore.probing.lens import divergences, logits_of
from probing.made import SENTENCES

MASKED = ("bert", "roberta", "distilbert", "esm")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gpt_neox", "qwen2", "gemma2", "granite", *MASKED])
def test_the_last_layer_says_what_the_model_says(model_of, kind):
    model = probing.open_headed(str(model_of(kind, head=True)))
    assert model.is_causal == (kind not in MASKED)
    for text in SENTENCES:
        read = model.read(text)
        with torch.no_grad():
            wanted = model.network(input_ids=torch.tensor([read.ids.tolist()])).logits[0].numpy()
        np.testing.assert_allclose(read.logits, wanted, atol=1e-4)
        np.testing.assert_allclose(logits_of(model, read.states[-1]), wanted, atol=1e-4)
    report = probing.lens(model, SENTENCES, top=3)
    assert report.kl[3] == pytest.approx(0, abs=1e-6) and report.agree[3] == 1.0
    assert report.kl[0] > 0.01 and report.n_tokens == sum(len(model.read(text).ids) for text in SENTENCES)
    rows = report.to_rows()
    assert len(rows) == 4 * report.n_tokens and len(rows[0]["top"]) == 3
    assert report.to_html().count("<table") == 4


def generated(model, n, seed=0, length=120):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return [
            model.tokenizer.decode(model.network.generate(
                torch.tensor([[1]]), max_new_tokens=length, do_sample=True, pad_token_id=2)[0].tolist())
            for _ in range(n)
        ]  # fmt: skip


def test_on_a_real_model_layers_come_nearer_to_the_end_and_a_tuned_lens_nearer_still(stories, tmp_path):
    model = probing.open_headed(stories)
    texts = generated(model, 60)
    report = probing.lens(model, texts[:20], shown=1)
    wanted = (22.05, 12.36, 5.54, 2.49, 0.96, 0.0)
    np.testing.assert_allclose(list(report.kl.values()), wanted, rtol=0.08, atol=0.01)
    tuned = probing.tune(model, texts)
    assert sorted(tuned.held_out) == [0, 1, 2, 3, 4]
    for before, after in tuned.held_out.values():
        assert after < 0.75 * before
    tuned.save(tmp_path / "lens.safetensors")
    again = probing.TunedLens.load(tmp_path / "lens.safetensors")
    unseen = generated(model, 5, seed=7)
    plain, better = probing.lens(model, unseen), probing.lens(model, unseen, tuned=again)
    assert all(better.kl[layer] < plain.kl[layer] for layer in range(5)) and better.method == "tuned"
    assert better.kl == probing.lens(model, unseen, tuned=tuned).kl
    probing.write_lens_page(report, tmp_path / "lens.html")
    page = (tmp_path / "lens.html").read_text()
    assert "<table" in page and "http" not in page


def test_divergences_are_those_of_the_formula():
    drawn = np.random.default_rng(0)
    end, logs = (np.log(drawn.dirichlet(np.ones(5), 3)) for _ in range(2))
    from scipy.special import rel_entr

    np.testing.assert_allclose(divergences(end, logs), rel_entr(np.exp(end), np.exp(logs)).sum(axis=1), atol=1e-9)


def test_what_cannot_be_read_gets_one_line(model_of, stories, tmp_path):
    with pytest.raises(EncoderUnavailable, match="hold no language-modelling head"):
        probing.open_headed("minilm")
    with pytest.raises(InvalidInput, match="an encoder and a decoder; a lens reads models of one stack"):
        probing.open_headed(str(model_of("t5")))
    model = probing.open_headed(str(model_of("llama", head=True)))
    for call, told in (
        (lambda: probing.lens(model, "one text"), "put one text into a list"),
        (lambda: probing.lens(model, []), "there are no texts"),
        (lambda: probing.lens(model, ["a", " "]), "the text at position 1 is empty"),
        (lambda: probing.lens(model, ["a"], layers=[9]), "layer 9 is not there"),
        (lambda: probing.lens(model, ["a"], top=0), "top is 0"),
        (lambda: probing.lens(model, [3]), "the text is a int"),
        (lambda: probing.tune(model, ["a", "b"]), "a lens is tuned to 5 or more"),
        (lambda: probing.TunedLens.load(tmp_path / "absent.safetensors"), "cannot be read"),
    ):
        with pytest.raises(InvalidInput, match=told) as raised:
            call()
        assert "\n" not in str(raised.value)
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(InvalidInput, match="cannot be read"):
        probing.TunedLens.load(tmp_path / "bad.safetensors")
    tuned = probing.tune(model, [*SENTENCES, "the cat ."], epochs=1)
    with pytest.raises(InvalidInput, match="tuned to another model"):
        probing.lens(stories, ["Once"], tuned=tuned)
