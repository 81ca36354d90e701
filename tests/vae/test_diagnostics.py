"""What a latent space is like: each number against its definition, and as one expects on squares whose places vary."""

import numpy as np
import pytest
import torch

from embedstore import InvalidInput
from embedstore.vae.diagnostics import diagnose, gaussian_gap
from embedstore.vae.image_model import load_image_model
from vae.made import people, squares


def test_the_gap_from_the_prior_is_that_of_torch_distributions():
    drawn = np.random.default_rng(0)
    samples = drawn.standard_normal((4000, 3)) @ np.array([[1.0, 0.4, 0], [0, 0.8, 0], [0, 0, 2.0]]) + [0.5, 0, 0]
    gap, correlation = gaussian_gap(samples)
    fitted = torch.distributions.MultivariateNormal(
        torch.from_numpy(samples.mean(axis=0)), torch.from_numpy(np.cov(samples.T))
    )
    prior = torch.distributions.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    assert gap == pytest.approx(float(torch.distributions.kl_divergence(fitted, prior)), rel=1e-6)
    ranks = np.corrcoef(samples.T)
    assert correlation == pytest.approx(-0.5 * np.log(np.linalg.det(ranks)), rel=1e-6)
    assert gaussian_gap(drawn.standard_normal((200_000, 2)))[0] < 1e-3


class Linear:
    """A space whose decoder is a rotation, in which every walk is of equal steps."""

    def __init__(self):
        self.turn = np.linalg.qr(np.random.default_rng(1).standard_normal((3, 3)))[0].astype(np.float32)

    def encode(self, items):
        return (items @ self.turn).astype(np.float32), np.full(items.shape, -20.0, np.float32)

    def flat(self, items):
        return items.astype(np.float32)

    def decode_flat(self, latents):
        return latents @ self.turn.T


def test_a_space_that_is_the_prior_is_complete_continuous_and_gives_back_all():
    items = np.random.default_rng(2).standard_normal((3000, 3)).astype(np.float32)
    found = diagnose(Linear(), items, (items[:, 0] > 0).tolist())
    assert found.reconstruction < 1e-10 and found.active_units == 3 and found.continuity == pytest.approx(1.0, abs=1e-3)
    assert found.completeness == pytest.approx(0.95, abs=0.04) and found.from_prior < 0.01
    assert found.probes["means"]["linear"] > 0.97 and found.probes["pca"]["linear"] > 0.97
    np.testing.assert_allclose(found.posterior_deviation, 1.0, atol=0.05)
    far = diagnose(Linear(), items * 0.01)
    assert far.completeness < 0.05 and far.from_prior > 5 and far.probes == {}


def test_the_space_of_squares_is_told(store, square_model):
    pictures, places = squares(300, seed=8)
    shapes = store.collection("shapes", encoder=str(square_model))
    shapes.add([
        {"key": str(i), "image": picture, "upper": bool(place[0] < 8)}
        for i, (picture, place) in enumerate(zip(pictures, places, strict=True))
    ])  # fmt: skip
    found = shapes.diagnose(label="upper", sample=300)
    model = load_image_model(square_model)
    means, log_variances = model.encode(pictures[:, None])
    expected = 0.5 * (means**2 + np.exp(log_variances) - 1 - log_variances).mean(axis=0)
    np.testing.assert_allclose(found.kl_by_dimension, expected, rtol=1e-4)
    assert found.n_items == 300 and set(found.reconstruction_by_label) == {"True", "False"}
    assert found.probes["means"]["neighbours"] > 0.9 and 0 <= found.completeness <= 1 <= found.continuity < 4
    assert found.to_dict()["active_units"] == found.active_units
    with pytest.raises(InvalidInput, match="no record has the field 'colour'"):
        shapes.diagnose(label="colour")


def test_the_space_of_a_table_is_told_too(store, people_model):
    folk = store.collection("folk", encoder=str(people_model))
    rows = people(200, seed=4)
    folk.add([{"key": str(i), "row": row, "sex": row["sex"]} for i, row in enumerate(rows)])
    found = folk.diagnose(label="sex")
    assert found.probes["means"]["linear"] > 0.9 and 0.0 <= found.completeness <= 1.0
    with pytest.raises(InvalidInput, match="there are 5 items; a space is looked at through 20 or more"):
        folk.diagnose(sample=5)
    points = store.collection("points", encoder="letters")
    points.add([{"key": "a", "text": "abc"}])
    with pytest.raises(InvalidInput, match="is no trained autoencoder"):
        points.diagnose()
