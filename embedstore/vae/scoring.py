"""How little an autoencoder expects an item: the squared error of what it gives back, and minus its evidence bound."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedstore.vae.objective import kl_from_standard_normal

Scores = npt.NDArray[np.float64]
"""A number for each item, float64 (n,): greater is stranger."""
_SAMPLES = 8
_QUANTILES = 200


class AnomalyScore(Enum):
    """What strangeness is measured by."""

    RECONSTRUCTION = "reconstruction"
    """what the mean code does not give back: the mean squared error of pixels, or minus log p(x | z) of a row"""
    ELBO = "elbo"
    """minus the evidence lower bound in nats, mean over eight samples of z"""


def noise(latent_dim: int) -> Tensor:
    """The samples by which every item is scored, so that its score does not depend on its neighbours: (8, dim)."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(_SAMPLES // 2, latent_dim, generator=generator)
    return torch.cat([half, -half])


def negative_elbo(network: Any, items: Tensor) -> Scores:
    """Minus the evidence lower bound of items in nats, mean over the samples of ``noise``."""
    with torch.inference_mode():
        mu, log_variance = network.encode(items)
        kl = kl_from_standard_normal(mu, log_variance).sum(1)
        deviation = torch.exp(0.5 * log_variance)
        missed = torch.zeros(len(items), device=items.device)
        for drawn in noise(mu.shape[1]).to(items.device):
            missed -= network.log_likelihood(network.decode(mu + deviation * drawn), items)
        found: Scores = (missed / _SAMPLES + kl).double().cpu().numpy()
    return found


def calibration(scores: Mapping[AnomalyScore, Scores]) -> dict[str, list[float]]:
    """The quantiles of held-out items' scores, from 0 to 1 in 200 steps, by the word of each score."""
    levels = np.linspace(0.0, 1.0, _QUANTILES + 1)
    return {one.value: np.quantile(found, levels).tolist() for one, found in scores.items()}


def share_below(scores: Scores, quantiles: list[float]) -> Scores:
    """Of each score, the share of held-out items that scored less, 0 to 1, between quantiles in a straight line."""
    levels = np.linspace(0.0, 1.0, len(quantiles))
    return np.interp(scores, quantiles, levels)


def threshold_at(quantiles: list[float], level: float) -> float:
    """The score that a share ``level`` of the held-out items did not reach."""
    return float(np.interp(level, np.linspace(0.0, 1.0, len(quantiles)), quantiles))
