"""States are those that the models themselves give, at every place, by every pool, however a batch is padded."""

import numpy as np
import pytest
import torch

from embedstore import EncoderUnavailable, InvalidInput
from embedstore.states import POOLS, Tap, open_states, recording
from embedstore.states.anatomy import anatomy_of
from probing.made import KINDS, SENTENCES

TWO_STACKS = ("t5", "bart")


def outputs(model, ids, stack=None):
    """What transformers itself gives as hidden states, float32 (n_tokens, dim) each, and the last state of all."""
    given = {"input_ids": torch.tensor([list(ids)])}
    part = model.network
    if stack == "encoder":
        part = model.network.get_encoder()
    if stack == "decoder":
        given["decoder_input_ids"] = given["input_ids"]
    with torch.no_grad():
        found = part(**given, output_hidden_states=True)
    states = found.decoder_hidden_states if stack == "decoder" else found.hidden_states
    return [one[0].numpy() for one in states], found.last_hidden_state[0].numpy()


def reduced(states, pool):
    return {"mean": states.mean(axis=0), "first": states[0], "last": states[-1], "max": states.max(axis=0)}[pool]


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("kind", KINDS)
def test_pooled_states_are_those_of_a_plain_loop(model_of, kind, padding):
    if padding == "left" and kind in ("bart", "roberta"):
        with pytest.raises(InvalidInput, match="counts positions from the left end of a batch"):
            open_states(str(model_of(kind)), padding=padding)
        return
    model = open_states(str(model_of(kind)), padding=padding)
    has_norm = model.anatomy.final_norm is not None
    taps = model.taps(["hidden", *(["final_norm"] if has_norm else [])], "all")
    tokens = model.tokenize(SENTENCES)
    for pool in POOLS:
        for at_most in (1, 64):
            found = model.pooled(tokens, taps, pool, at_most=at_most)
            for line, one in enumerate(tokens):
                states, last = outputs(model, one.ids, "encoder" if kind in TWO_STACKS else None)
                for tap in taps:
                    if tap.site == "hidden" and tap.layer == model.n_layers and has_norm:
                        continue  # which transformers does not give; tests of other sites hold it against blocks
                    wanted = last if tap.site == "final_norm" else states[tap.layer]
                    np.testing.assert_allclose(found[tap][line], reduced(wanted, pool), atol=1e-5, err_msg=str(tap))


@pytest.mark.parametrize("kind", TWO_STACKS)
def test_both_stacks_of_a_model_with_two_can_be_read(model_of, kind):
    model = open_states(str(model_of(kind)), stack="decoder")
    tokens = model.tokenize(SENTENCES)
    found = model.pooled(tokens, [Tap("hidden", layer) for layer in range(3)], "mean")
    for line, one in enumerate(tokens):
        states, _ = outputs(model, one.ids, "decoder")
        for layer in range(3):
            np.testing.assert_allclose(found[Tap("hidden", layer)][line], states[layer].mean(axis=0), atol=1e-5)
    with pytest.raises(InvalidInput, match="one stack only"):
        open_states(str(model_of("bert")), stack="decoder")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "gemma2", "granite"])
def test_a_block_adds_attention_and_mlp_to_the_stream(model_of, kind):
    model = open_states(str(model_of(kind)))
    tokens = model.tokenize(SENTENCES)
    taps = model.taps(["hidden", "attention", "mlp", "head"], "all")
    found = model.token_states(tokens, taps)
    for states in found:
        for layer in range(1, model.n_layers + 1):
            left = states[Tap("hidden", layer - 1)] + states[Tap("attention", layer)] + states[Tap("mlp", layer)]
            np.testing.assert_allclose(states[Tap("hidden", layer)], left, atol=2e-5)
            heads = np.concatenate([states[Tap("head", layer, head)] for head in range(4)], axis=1)
            if kind in ("gemma2", "granite"):
                continue  # there a norm or a factor stands between
            module = model.anatomy.heads[layer - 1]
            with torch.no_grad():
                found_again = module(torch.from_numpy(heads)).numpy()
            np.testing.assert_allclose(found_again, states[Tap("attention", layer)], atol=2e-5)


def test_the_final_norm_is_a_site_of_its_own(model_of):
    model = open_states(str(model_of("llama")))
    states = model.token_states(model.tokenize(SENTENCES), model.taps(["hidden", "final_norm"], [-1]))
    with torch.no_grad():
        for one in states:
            normed = model.anatomy.final_norm(torch.from_numpy(one[Tap("hidden", 3)])).numpy()
            np.testing.assert_allclose(one[Tap("final_norm", 3)], normed, atol=1e-5)
            assert np.abs(normed - one[Tap("hidden", 3)]).max() > 0.1
    with pytest.raises(InvalidInput, match="has no final norm"):
        open_states(str(model_of("bert"))).taps(["final_norm"], "all")


def test_real_models_give_their_own_states(stories):
    texts = ["Once upon a time, there was a little girl.", "The dog ran.", "It was big and red and liked to play."]
    for name in ("minilm", stories):
        model = open_states(name)
        tokens = model.tokenize(texts * 30)
        taps = [Tap("hidden", layer) for layer in range(model.n_layers)]
        for at_most in (1, 64):
            found = model.pooled(tokens, taps, "mean", at_most=at_most)
            for line in range(3):
                states, _ = outputs(model, tokens[line].ids)
                for tap in taps:
                    np.testing.assert_allclose(found[tap][line], states[tap.layer].mean(axis=0), atol=1e-5)


def test_special_tokens_can_be_left_out(model_of):
    model = open_states(str(model_of("bert")))
    tokens = model.tokenize(SENTENCES)
    tap = Tap("hidden", 2)
    for pool in POOLS:
        found = model.pooled_all(tokens, [(tap, pool, False), (tap, pool, True)])
        for line, one in enumerate(tokens):
            states = outputs(model, one.ids)[0][2]
            np.testing.assert_allclose(found[0][line], reduced(states[1:-1], pool), atol=1e-5)
            np.testing.assert_allclose(found[1][line], reduced(states, pool), atol=1e-5)


def test_the_pass_ends_after_the_highest_layer_and_leaves_no_hook(model_of):
    model = open_states(str(model_of("llama")))
    ran = []
    for block in model.anatomy.blocks:
        block.register_forward_hook(lambda module, arguments, output: ran.append(module))
    model.pooled(model.tokenize(["the cat ."]), [Tap("hidden", 1)], "mean")
    assert [list(model.anatomy.blocks).index(one) for one in ran] == [0]
    ran.clear()
    model.pooled(model.tokenize(["the cat ."]), [Tap("hidden", 0)], "mean")
    assert ran == []

    def broken(tap, states):
        raise ValueError("broken")

    def hooks():
        return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.network.modules())

    before = hooks()
    with pytest.raises(ValueError, match="broken"), recording(model.anatomy, [Tap("hidden", 2)], broken):
        model.network(input_ids=torch.tensor([[5, 6]]))
    assert hooks() == before


def test_a_layer_that_never_ran_is_named(model_of):
    model = open_states(str(model_of("llama")))
    layer = model.network.layers
    model.network.layers = layer[:2]  # the model goes on without its last block
    with pytest.raises(EncoderUnavailable, match="layer-03 never ran"):
        model.pooled(model.tokenize(["the cat ."]), [Tap("hidden", 3)], "mean")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_is_near_and_comes_back_as_float32(model_of, dtype):
    tokens = open_states(str(model_of("llama"))).tokenize(SENTENCES)
    tap, folder = Tap("hidden", 2), str(model_of("llama"))
    exact = open_states(folder).pooled(tokens, [tap], "mean")[tap]
    found = open_states(folder, dtype=dtype).pooled(tokens, [tap], "mean")[tap]
    assert found.dtype == np.float32 and 0 < np.abs(found - exact).max() < 0.2 * np.abs(exact).max()


def test_long_texts_are_cut_and_empty_ones_refused(model_of, stories):
    model = open_states(str(model_of("bert")))
    long, short = model.tokenize(["the cat " * 40, "the cat"])
    assert (len(long.ids), long.truncated, short.truncated) == (36, True, False)
    assert model.count_tokens("the cat " * 40) == 82
    with pytest.raises(InvalidInput, match="the text at position 1 has no tokens"):
        model.batched(model.tokenize(["the", ""]), special=False)


def test_random_weights_are_of_the_same_shape_and_of_their_seed(model_of):
    folder = str(model_of("bert"))
    taps = [Tap("hidden", 2)]
    made = [open_states(folder, random_seed=seed).pooled(open_states(folder).tokenize(SENTENCES), taps, "mean")[taps[0]]
            for seed in (0, 0, 1)]  # fmt: skip
    np.testing.assert_array_equal(made[0], made[1])
    assert made[0].shape == (4, 16) and np.abs(made[0] - made[2]).max() > 0.01


@pytest.mark.parametrize(
    ("sites", "layers", "told"),
    [
        (["hidden"], [4], "layer 4 is not there: .* has the layers 0 .embeddings. to 3"),
        (["hidden"], [-5], "layer -5 is not there"),
        (["hidden"], [], "layers is empty"),
        (["hidden"], "some", "layers is 'some'"),
        (["hidden"], [1.5], "a layer is 1.5"),
        (["hidden"], [True], "a layer is True"),
        (["nowhere"], "all", "sites is"),
        ("hidden", "all", "sites is 'hidden'"),
        (["mlp"], [0], "layer 0 is the embeddings, which have no 'mlp'"),
    ],
)
def test_places_that_are_not_there_get_one_line(model_of, sites, layers, told):
    with pytest.raises(InvalidInput, match=told):
        open_states(str(model_of("bert"))).taps(sites, layers)


def test_folders_that_hold_no_safe_model_are_refused(model_of, tmp_path):
    import json
    import shutil

    pickled = shutil.copytree(model_of("bert"), tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(EncoderUnavailable, match="only as a pickle .pytorch_model.bin."):
        open_states(str(pickled))
    coded = shutil.copytree(model_of("bert"), tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(EncoderUnavailable, match="needs Python code of its own"):
        open_states(str(coded))
    with pytest.raises(EncoderUnavailable, match="neither a folder nor in the Hugging Face cache"):
        open_states("nobody/nothing")
    with pytest.raises(InvalidInput, match="dtype is 'int4'"):
        open_states(str(model_of("bert")), dtype="int4")


def test_a_model_without_blocks_is_refused():
    from types import SimpleNamespace

    network = torch.nn.Linear(3, 3)
    network.config = SimpleNamespace(num_hidden_layers=4)
    with pytest.raises(EncoderUnavailable, match="has no list of 4 blocks"):
        anatomy_of(network, "here")


def test_weights_that_lack_a_layer_are_refused(model_of, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(model_of("bert"), tmp_path / "part")
    held = load_file(folder / "model.safetensors")
    kept = {name: array for name, array in held.items() if ".layer.1." not in name}
    assert len(kept) < len(held)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderUnavailable, match="lack .*layer.1.* so its states would be chance"):
        open_states(str(folder))


def test_two_models_at_once_leave_torch_its_threads(model_of):
    import threading

    before = torch.get_num_threads()
    models = [open_states(str(model_of(kind)), threads=2) for kind in ("bert", "llama")]

    def work(model):
        for _ in range(5):
            model.pooled(model.tokenize(SENTENCES * 8), [Tap("hidden", 1)], "mean", at_most=4)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [before] == [torch.get_num_threads()]
