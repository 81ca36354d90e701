"""What a variational autoencoder is trained to lower: minus the evidence lower bound, with its usual corrections.

-ELBO = -log p(x | z) + KL(q(z | x) || N(0, 1)) for one sample z of q (Kingma and Welling 2014), in nats.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)
LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE = -14.0, 8.0


def kl_from_standard_normal(mu: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mu, exp(log_variance)) || N(0, 1)) in nats, a number for each dimension: (n, latent_dim)."""
    return 0.5 * (mu.square() + log_variance.exp() - 1.0 - log_variance)


def sampled(mu: Tensor, log_variance: Tensor) -> Tensor:
    """A sample of q(z | x) through which gradients pass: mu + sigma * noise (n, latent_dim)."""
    return mu + torch.exp(0.5 * log_variance) * torch.randn_like(mu)


def with_free_bits(kl: Tensor, free_nats: float) -> Tensor:
    """The KL of a batch, summed over dimensions, where none counts for less than ``free_nats`` (Kingma et al. 2016).

    kl: (n, latent_dim). A dimension that tells less gains nothing by telling nothing, so it does not collapse.
    """
    per_dimension = kl.mean(0)
    return per_dimension.clamp_min(free_nats).sum() if free_nats > 0 else per_dimension.sum()


def warmed_up(step: int, warm_up_steps: int, beta: float) -> float:
    """The weight of the KL at a step: it rises to ``beta`` in a straight line (Sønderby et al. 2016)."""
    return beta * min(1.0, (step + 1) / warm_up_steps) if warm_up_steps > 0 else beta
