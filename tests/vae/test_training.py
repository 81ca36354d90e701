"""Training: what it reaches, that it goes on where it was, what it refuses, and that nothing unfinished is left."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from embedstore import InvalidInput
from embedstore.errors import EncoderUnavailable, TrainingFailed
from embedstore.vae.checkpoint import read_checkpoint
from embedstore.vae.image_model import load_image_model
from embedstore.vae.image_network import ImageArchitecture, ImageNetwork, grid_of
from embedstore.vae.image_training import train_image
from embedstore.vae.objective import kl_from_standard_normal, warmed_up, with_free_bits
from embedstore.vae.table_model import checked_features, load_table_model
from embedstore.vae.training import TrainingSettings, train
from vae.made import SIZE, SMALL, people, squares, trained_on_squares

TESTS = Path(__file__).resolve().parent.parent


def test_the_kl_is_that_of_torch_distributions():
    mu, log_variance = torch.randn(7, 3), torch.randn(7, 3)
    q = torch.distributions.Normal(mu, torch.exp(0.5 * log_variance))
    expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_from_standard_normal(mu, log_variance), expected)


def test_a_dimension_that_tells_less_than_its_free_nats_costs_them_all_the_same():
    kl = torch.tensor([[0.0, 2.0], [0.1, 4.0]])
    assert float(with_free_bits(kl, 0.5)) == pytest.approx(0.5 + 3.0)
    assert float(with_free_bits(kl, 0.0)) == pytest.approx(0.05 + 3.0)
    assert [warmed_up(step, 10, 2.0) for step in (0, 4, 9, 50)] == [0.2, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_likelihood_is_that_of_torch_distributions(likelihood):
    network = ImageNetwork(ImageArchitecture(size=16, channels=1, latent_dim=2, width=4, likelihood=likelihood))
    pictures, decoded = torch.rand(3, 1, 16, 16).round(), torch.randn(3, 1, 16, 16)
    if likelihood == "bernoulli":
        by = torch.distributions.Bernoulli(logits=decoded)
    else:
        by = torch.distributions.Normal(decoded, torch.exp(network.log_deviation))
    torch.testing.assert_close(network.log_likelihood(decoded, pictures), by.log_prob(pictures).flatten(1).sum(1))


def test_squares_are_learned_and_their_places_can_be_read_off_the_means(square_model):
    pictures, places = squares(200, seed=1)
    model = load_image_model(square_model)
    means, _ = model.encode(pictures[:, None])
    given_back = model.decode_exactly(means)
    spread = np.square(pictures / 255 - (pictures / 255).mean(axis=0)).mean()
    assert np.square(given_back[:, 0] - pictures / 255).mean() < 0.2 * spread
    held = np.column_stack([means, means**2, np.ones(len(means))])
    fitted, *_ = np.linalg.lstsq(held[:150], places[:150], rcond=None)
    missed = np.square(held[150:] @ fitted - places[150:]).mean() / places[150:].var()
    assert missed < 0.15
    assert model.made["pictures"] == 1000 and model.made["held_out"]["active_units"] >= 2
    assert not square_model.with_name("squares.training").exists()
    assert {file.name for file in square_model.iterdir()} == {
        "config.json", "model.safetensors", "README.md", "report.html"
    }  # fmt: skip
    page = (square_model / "report.html").read_text()
    assert page.count("<img") == 4 and "<polyline" in page and "http" not in page.replace("http-equiv", "")


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        trained_on_squares(tmp_path / name, epochs=1, seed=seed)
    pixels = squares(5)[0][:, None]
    a, b, c = (load_image_model(tmp_path / name).encode(pixels)[0] for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.allclose(a, c)


class Halting:
    """A feed that ends the process's training after some batches, as a kill would."""

    def __init__(self, feed, n):
        self.feed, self.n = feed, n

    def __len__(self):
        return len(self.feed)

    def batch(self, places):
        self.n -= 1
        if self.n < 0:
            raise KeyboardInterrupt
        return self.feed.batch(places)


class Given:
    """Pictures in memory."""

    def __init__(self, pictures):
        self.pictures = torch.from_numpy(pictures[:, None] / np.float32(255)).float()

    def __len__(self):
        return len(self.pictures)

    def batch(self, places):
        return self.pictures[torch.from_numpy(np.ascontiguousarray(places))]


def small_network():
    torch.manual_seed(0)
    return ImageNetwork(
        ImageArchitecture(size=SIZE, channels=1, latent_dim=3, width=4, hidden=16, likelihood="bernoulli")
    )


def test_a_training_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path):
    settings = TrainingSettings(epochs=4, batch=32, patience=0)
    feed = Given(squares(200)[0])
    whole = small_network()
    expected = train(whole, feed, settings, folder=tmp_path / "whole", identity={"one": 1})
    with pytest.raises(KeyboardInterrupt):
        train(small_network(), Halting(feed, 15), settings, folder=tmp_path / "broken", identity={"one": 1})
    said = []
    resumed = small_network()
    found = train(resumed, feed, settings, folder=tmp_path / "broken", identity={"one": 1}, progress=said.append)
    assert said[0].startswith("goes on after epoch ") and [one.number for one in found.epochs] == [1, 2, 3, 4]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value)
    assert [one.validation for one in found.epochs] == pytest.approx([one.validation for one in expected.epochs])


def test_a_checkpoint_of_another_training_or_a_damaged_one_is_not_gone_on_with(tmp_path):
    settings = TrainingSettings(epochs=1, batch=32)
    train(small_network(), Given(squares(100)[0]), settings, folder=tmp_path, identity={"one": 1})
    assert read_checkpoint(tmp_path, {"one": 1}) is not None
    with pytest.raises(InvalidInput, match="begun with other one, two; call it again as then"):
        read_checkpoint(tmp_path, {"one": 2, "two": {"two": 3}})
    tensors = tmp_path / "checkpoint.safetensors"
    body = bytearray(tensors.read_bytes())
    body[-5] ^= 1
    tensors.write_bytes(body)
    assert read_checkpoint(tmp_path, {"one": 1}) is None


def test_training_ends_when_validation_gets_no_better(tmp_path):
    settings = TrainingSettings(epochs=60, batch=32, patience=2, learning_rate=0.02, free_nats=0.0)
    trained = train(small_network(), Given(squares(60)[0]), settings, folder=tmp_path, identity={})
    assert len(trained.epochs) < 60 and trained.ended == "no better validation for 2 epochs"
    assert trained.best == min(trained.epochs, key=lambda one: one.objective).number == len(trained.epochs) - 2


def test_a_loss_that_is_no_number_ends_the_training_and_saves_nothing(tmp_path):
    pictures = squares(60)[0]
    feed = Given(pictures)
    feed.pictures[:] = float("nan")
    with pytest.raises(TrainingFailed, match="the loss is nan at step 1, .*; nothing was saved"):
        train(small_network(), feed, TrainingSettings(epochs=2), folder=tmp_path / "work", identity={})
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (np.zeros((0, 16, 16), np.uint8), "there are 0 pictures to learn from; at least 10 are needed"),
        (np.zeros((2, 16, 16), np.uint8), "there are 2 pictures to learn from; at least 10 are needed"),
        (np.full((40, 16, 16), 7, np.uint8), "all 40 pictures are the same, so there is nothing to learn"),
        (np.zeros((40, 16, 16), np.float32), r"pictures as an array must be uint8 .*, not float32"),
    ],
)
def test_pictures_that_nothing_can_be_learned_of_are_refused(tmp_path, pictures, said):
    with pytest.raises(InvalidInput, match=said):
        train_image(pictures, tmp_path / "model", size=16, architecture=SMALL)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 50}, "pictures of 50 pixels a side, .*; the nearest sizes are 48 and 56"),
        ({"latent_dim": 0}, "latent_dim is 0; it must be from 1 to 4,096"),
        ({"mode": "sepia"}, "mode is 'sepia'; it must be grey or colour"),
        ({"fit": "x"}, "fit is 'x'; it must be one of crop, pad, stretch"),
        ({"likelihood": "x"}, "the likelihood is 'x'"),
        ({"settings": TrainingSettings(epochs=-1)}, "epochs is -1; it must be a whole number from 0 on"),
        ({"settings": TrainingSettings(learning_rate=-1.0)}, "learning_rate is -1.0"),
        ({"settings": TrainingSettings(beta=float("nan"))}, "beta is nan"),
        ({"device": "cuda"}, "device 'cuda' needs a GPU|torch finds"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, options, said):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises((InvalidInput, Exception), match=said):
        train_image(squares(40)[0], tmp_path / "model", **{"size": 16, "architecture": SMALL, **options})
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_taken_is_left_as_it_is(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(InvalidInput, match="exists already; give another --out"):
        trained_on_squares(tmp_path / "model")
    assert [one.name for one in (tmp_path / "model").iterdir()] == ["mine"]


def test_a_damaged_model_folder_is_refused_with_its_file(tmp_path):
    trained_on_squares(tmp_path / "model", epochs=1)
    weights = tmp_path / "model" / "model.safetensors"
    body = weights.read_bytes()
    weights.write_bytes(body[: len(body) // 2])
    with pytest.raises(EncoderUnavailable, match=r"model.safetensors cannot be used: .*; train the model again"):
        load_image_model(tmp_path / "model")
    weights.write_bytes(body)
    config = tmp_path / "model" / "config.json"
    held = json.loads(config.read_text())
    for broken in ({**held, "version": 2}, {**held, "architecture": {"kind": "x"}}, {**held, "format": "x"}):
        config.write_text(json.dumps(broken))
        with pytest.raises(EncoderUnavailable, match="upgrade embedstore|cannot be used|holds a model of kind"):
            load_image_model(tmp_path / "model")


@pytest.mark.parametrize("size", [10, 12, 16, 28, 32, 40, 48, 64, 96, 128])
def test_a_convolutional_network_gives_back_its_size(size):
    network = ImageNetwork(ImageArchitecture(size=size, channels=3, latent_dim=2, width=2, hidden=4))
    pictures = torch.rand(2, 3, size, size)
    mu, log_variance = network.encode(pictures)
    assert mu.shape == log_variance.shape == (2, 2)
    assert network.decode(mu).shape == pictures.shape
    halvings, grid = grid_of(size)
    assert grid * 2**halvings == size and 4 <= grid <= 8


def test_a_training_that_is_killed_is_gone_on_with_by_the_same_command(tmp_path):
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(squares(300)[0]):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number:03}.png")
    (tmp_path / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    command = [
        sys.executable, "-m", "embedstore", "train", "image", "pictures", "--out", "model", "--size", "16",
        "--width", "4", "--latent-dim", "3", "--epochs", "40", "--batch", "16",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as first:
        for line in first.stderr:
            if line.startswith("epoch 3 "):
                first.send_signal(signal.SIGKILL)
    assert not (tmp_path / "model").exists() and (tmp_path / "model.training").is_dir()
    again = [*command[:-4], "--epochs", "40", "--batch", "16"]
    done = subprocess.run(again, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.search(r"goes on after epoch [2345]\n", done.stderr), done.stderr
    assert "/pictures/broken.png' is no picture that can be read" in done.stderr
    assert "pictures        300\n" in done.stdout and not (tmp_path / "model.training").exists()


def test_memory_is_flat_in_the_number_of_pictures(tmp_path):
    script = (
        "import sys, numpy as np, os\n"
        "from embedstore.vae.image_training import train_image\n"
        "from embedstore.vae.image_network import ImageArchitecture as Architecture\n"
        "from embedstore.vae.training import TrainingSettings\n"
        "n = int(sys.argv[1]); rng = np.random.default_rng(0)\n"
        "class Many:\n"
        "    def __len__(self): return n\n"
        "    def __iter__(self): return (rng.integers(0, 256, (64, 64), np.uint8) for _ in range(n))\n"
        "from embedstore.vae import image_training\n"
        "image_training._listed = lambda given: given\n"
        "train_image(Many(), sys.argv[2], size=64, mode='grey', latent_dim=2,\n"
        "            settings=TrainingSettings(epochs=1, batch=64), architecture=Architecture(width=2, hidden=8))\n"
        "print(next(l for l in open('/proc/self/status') if l.startswith('VmHWM')).split()[1])\n"
    )
    peaks = [
        int(subprocess.run(
            [sys.executable, "-c", script, str(n), tmp_path / str(n)], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        ).stdout)
        for n in (6000, 24_000)
    ]  # fmt: skip
    assert peaks[1] - peaks[0] < 20_000, peaks  # kB; the pictures themselves are 73,700 kB more


def test_a_table_is_learned_and_decodes_to_rows_of_the_same_kinds(people_model):
    model = load_table_model(people_model)
    held_out = model.made["held_out"]
    assert held_out["mean_numeric_r2"] > 0.5 and held_out["mean_categorical_accuracy"] > 0.6
    row = model.decode(model.encode(checked_features(model.schema, people(1, seed=9)))[0])[0]
    assert list(row) == ["sex", "height", "weight", "smokes", "born", "city"]
    assert row["sex"] in ("f", "m") and isinstance(row["height"], float) and row["smokes"] in (True, False)
    assert row["born"].startswith("19") and row["city"] in ("Oslo", "Rome", "Bonn", None)


def test_a_folder_of_the_users_own_is_no_training(tmp_path):
    (tmp_path / "model.training").mkdir()
    (tmp_path / "model.training" / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="model.training is in the way: an unfinished training would lie there"):
        trained_on_squares(tmp_path / "model", epochs=1)
    assert (tmp_path / "model.training" / "notes.txt").read_text() == "mine"


def test_two_trainings_of_one_model_do_not_meet(tmp_path):
    from embedstore import StoreLocked
    from embedstore.vae.checkpoint import training_folder

    with training_folder(tmp_path / "model"), pytest.raises(StoreLocked, match="model.training is being written to by"):
        trained_on_squares(tmp_path / "model", epochs=1)
    assert not (tmp_path / "model.training").exists()


def test_what_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(InvalidInput):
        train_image(np.full((40, 16, 16), 7, np.uint8), tmp_path / "model", size=16, architecture=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": 10**20}, {"minutes": float("inf")}, {"beta": "1"}, {"epochs": 2.5}, {"hidden": 1.0}, {"batch": True},
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        TrainingSettings(**wrong).check()


def test_a_model_that_was_replaced_behind_an_open_encoder_is_not_used(tmp_path, square_model):
    import shutil

    from embedstore.encoders import load_encoder

    shutil.copytree(square_model, tmp_path / "model")
    encoder = load_encoder(str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")
    trained_on_squares(tmp_path / "model", epochs=1)
    with pytest.raises(EncoderUnavailable, match="was replaced since it was opened"):
        encoder.encode_query(squares(1)[0][0])


def test_a_network_of_colour_starts_as_a_principal_component_analysis(tmp_path):
    from sklearn.decomposition import PCA

    drawn = torch.Generator().manual_seed(0)
    pictures = torch.rand(200, 3, 16, 16, generator=drawn) * torch.rand(200, 1, 1, 1, generator=drawn)
    network = ImageNetwork(ImageArchitecture(size=16, latent_dim=4, width=4, hidden=8, straight=True))
    network.start_from(pictures)
    rows = pictures.flatten(1).numpy()
    theirs = PCA(4).fit(rows)
    with torch.inference_mode():
        means, _ = network.encode(pictures)
        back = network.decode(means).flatten(1).numpy()
    expected = np.square(theirs.inverse_transform(theirs.transform(rows)) - rows).mean()
    assert np.square(back - rows).mean() == pytest.approx(expected, rel=0.01)
    np.testing.assert_allclose(means.std(0), 1.0, atol=0.02)
    coloured = np.repeat(squares(60)[0][..., None], 3, axis=3)
    train_image(coloured, tmp_path / "model", size=16, mode="colour", latent_dim=3, architecture=SMALL,
                settings=TrainingSettings(epochs=1, batch=16))  # fmt: skip
    assert load_image_model(tmp_path / "model").architecture.straight


def test_an_interrupted_training_is_not_thrown_away_by_another(tmp_path):
    def stop(line):
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    out = tmp_path / "model"
    settings = {"size": 16, "latent_dim": 3, "architecture": SMALL}
    pictures = squares(60)[0]
    with pytest.raises(KeyboardInterrupt):
        train_image(pictures, out, settings=TrainingSettings(epochs=4, batch=16), progress=stop, **settings)
    with pytest.raises(InvalidInput, match="begun with other batch; call it again as then"):
        train_image(pictures, out, settings=TrainingSettings(epochs=4, batch=8), **settings)
    told = []
    train_image(pictures, out, settings=TrainingSettings(epochs=4, batch=16), progress=told.append, **settings)
    assert "goes on after epoch 1" in told or "goes on after epoch 2" in told
