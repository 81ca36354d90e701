"""Autoencoders of latent diffusion models: maps pooled for search, whole ones decoded; real weights, trained ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from vae.made import squares

from embedstore import InvalidInput
from embedstore.encoders import load_encoder
from embedstore.errors import EncoderUnavailable
from embedstore.model import Modality


def photo(side):
    """The middle of a real photo, uint8 (side, side, 3)."""
    from sklearn.datasets import load_sample_image

    whole = load_sample_image("flower.jpg")
    top, left = (whole.shape[0] - side) // 2, (whole.shape[1] - side) // 2
    return np.ascontiguousarray(whole[top : top + side, left : left + side])


def peak_signal_to_noise(one, other):
    return -10 * np.log10(np.square(np.asarray(one, np.float64) / 255 - np.asarray(other, np.float64) / 255).mean())


@pytest.fixture(scope="module")
def taef2(data):
    folder = data / "taef2"
    if not folder.is_dir():
        pytest.skip("no folder taef2 among the data sets")
    return folder


@pytest.fixture(scope="module")
def trained_kl(tmp_path_factory):
    """A small AutoencoderKL of diffusers, trained on squares for some seconds, as diffusers saves it."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=["DownEncoderBlock2D"] * 2, norm_num_groups=4,
        up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[8, 16], latent_channels=4, sample_size=16,
    )  # fmt: skip
    pictures = torch.from_numpy(np.repeat(squares(256)[0][:, None], 3, axis=1)).float() / 127.5 - 1
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        batch = pictures[(torch.arange(32) + 32 * step) % 256]
        q = model.encode(batch).latent_dist
        loss = (model.decode(q.sample()).sample - batch).square().mean() + 1e-4 * q.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("models") / "kl"
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def test_the_real_small_autoencoder_gives_a_photo_back(taef2):
    encoder = load_encoder(f"diffusers:{taef2}@size=320,keep=latents")
    picture = photo(320)
    vectors = encoder.encode([picture]).vectors
    assert vectors.shape == (1, 32 * 40 * 40) and encoder.spec.modalities == {Modality.IMAGE}
    assert peak_signal_to_noise(encoder.decode(vectors)[0], picture) > 27


def test_pooled_maps_are_the_means_of_whole_ones_and_do_not_lead_back(taef2):
    whole = load_encoder(f"diffusers:{taef2}@size=64,keep=latents")
    pooled = load_encoder(f"diffusers:{taef2}@size=64,pool=2")
    picture = photo(64)
    expected = whole.encode_query(picture).reshape(32, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1)
    np.testing.assert_allclose(pooled.encode_query(picture), expected, atol=1e-5)
    assert pooled.spec.dim == 128 and pooled.spec.fingerprint != whole.spec.fingerprint
    with pytest.raises(InvalidInput, match="averaged to a grid, which does not lead back; whole ones do: keep=latents"):
        pooled.decode(np.zeros((1, 128), np.float32))


def test_a_picture_is_one_vector_however_many_are_encoded_with_it(taef2):
    encoder = load_encoder(f"diffusers:{taef2}@size=64")
    pictures = [np.ascontiguousarray(np.roll(photo(64), 5 * i, axis=0)) for i in range(11)]
    together = encoder.encode(pictures).vectors
    for place in (0, 7, 8, 10):
        np.testing.assert_allclose(encoder.encode_query(pictures[place]), together[place], atol=1e-4)


def test_a_collection_is_made_by_it_searched_and_decoded(store, taef2):
    photos = store.collection("photos", encoder=f"diffusers:{taef2}@size=64,keep=latents")
    photos.add([{"key": str(i), "image": np.ascontiguousarray(np.roll(photo(64), 9 * i, axis=1))} for i in range(6)])
    assert photos.search(photo(64), k=1).keys == ["0"]
    back = photos.space()["0"].decode()
    assert peak_signal_to_noise(back, photo(64)) > 20
    assert str(taef2) in photos.space().describe()["encoder"]


def test_an_autoencoder_of_diffusers_is_loaded_and_gives_pictures_back(trained_kl, store):
    encoder = load_encoder(f"diffusers:{trained_kl}@size=16,keep=latents")
    assert encoder.spec.dim == 4 * 8 * 8 and load_encoder(str(trained_kl)).spec.family == "diffusers"
    pictures, _ = squares(20, seed=4)
    back = np.stack([np.asarray(one.convert("L")) for one in encoder.decode(encoder.encode(list(pictures)).vectors)])
    mean = np.broadcast_to(pictures.mean(axis=0), pictures.shape)
    assert np.square(back / 255 - pictures / 255).mean() < 0.5 * np.square(mean / 255 - pictures / 255).mean()
    shapes = store.collection("shapes", encoder=f"diffusers:{trained_kl}@size=16,pool=4")
    shapes.add([{"key": str(i), "image": picture} for i, picture in enumerate(pictures)])
    assert shapes.search(pictures[3], k=1).keys == ["3"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("size=60", "size is 60; it must be a multiple of 8"), ("size=0", "size is '0'"), ("size=x", "size is 'x'"),
        ("pool=9,size=64", "pool is 9; a map of 64 pixels has 8 places a side"), ("keep=all", "keep is 'all'"),
        ("keep=latents,pool=2", "give one of them"), ("foo=1", "is not one of size, pool, keep, once each"),
        ("size=1024,keep=latents", "has 524,288 numbers; a vector has at most 65,536: give a smaller size"),
    ],
)
def test_options_that_cannot_be_are_refused(taef2, options, said):
    with pytest.raises(InvalidInput, match=said):
        load_encoder(f"diffusers:{taef2}@{options}")


def test_a_folder_that_cannot_be_used_is_refused_with_the_reason(taef2, tmp_path):
    shutil.copytree(taef2, tmp_path / "model")
    (tmp_path / "model" / "decoder.safetensors").rename(tmp_path / "model" / "decoder.pth")
    with pytest.raises(EncoderUnavailable, match=r"has no decoder.safetensors; weights are read as safetensors alone"):
        load_encoder(f"diffusers:{tmp_path / 'model'}")
    (tmp_path / "model" / "decoder.safetensors").write_bytes(b"torn")
    with pytest.raises(EncoderUnavailable, match=r"decoder.safetensors cannot be used"):
        load_encoder(f"diffusers:{tmp_path / 'model'}@size=64").encode_query(photo(64))
    config = json.loads((taef2 / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "latent_channels": "many"}))
    with pytest.raises(EncoderUnavailable, match=r"config.json cannot be used"):
        load_encoder(f"diffusers:{tmp_path / 'model'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="holds no autoencoder that diffusers: reads"):
        load_encoder(f"diffusers:{tmp_path / 'empty'}")
