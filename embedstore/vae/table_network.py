"""The network of table autoencoders: dense layers, and a likelihood for each kind of feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.vae.described import made_from
from embedstore.vae.objective import LEAST_LOG_VARIANCE, LOG_2_PI, MOST_LOG_VARIANCE
from embedstore.vae.table_columns import Column

_START_LOG_VARIANCE = -2.0


@dataclass(frozen=True, slots=True)
class TableArchitecture:
    """What a table network is made of: ``layers`` hidden layers of ``hidden`` units on either side."""

    latent_dim: int = 16
    hidden: int = 256
    layers: int = 2

    def check(self) -> None:
        """Raise InvalidInput for what makes no network."""
        for name, most in (("latent_dim", 4096), ("hidden", 8192), ("layers", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInput(f"{name} is {value!r}; it must be from 1 to {most:,}")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TableArchitecture:
        """Read what ``to_json`` gave; InvalidInput for anything else."""
        return made_from(cls, fields, "a table network")


class TableNetwork(nn.Module):
    """An encoder and a decoder of rows' features, float32 (n, width), as ``TableSchema`` makes them.

    A number's likelihood is Gaussian with a learned deviation, and counts only where there is a number; a category's
    is categorical, of which a boolean is the case of two (and a missing value, of three).
    """

    def __init__(self, architecture: TableArchitecture, columns: Sequence[Column]) -> None:
        super().__init__()
        architecture.check()
        self.architecture = architecture
        self._blocks = _blocks(columns)
        width = sum(column.width for column in columns)
        units = [architecture.hidden] * architecture.layers
        self.last_in = nn.Linear(units[-1], 2 * architecture.latent_dim)
        self.last_out = nn.Linear(units[-1], width)
        self.encoder = nn.Sequential(*_dense([width, *units]))
        self.decoder = nn.Sequential(*_dense([architecture.latent_dim, *units]))
        # Straight ways past the hidden layers, so that what a linear method keeps of few rows is kept here too.
        self.straight_in = nn.Linear(width, architecture.latent_dim, bias=False)
        self.straight_out = nn.Linear(architecture.latent_dim, width, bias=False)
        self.log_deviation = nn.Parameter(torch.zeros(width))

    def start_from(self, features: FloatMatrix) -> None:
        """Start as a principal component analysis of some features (n, width), which training then improves on.

        The straight ways take its components, each scaled to a variance of one; the hidden layers add nothing at first.
        """
        centred = features.astype(np.float64) - features.mean(axis=0)
        _, singular, components = np.linalg.svd(centred, full_matrices=False)
        n = min(self.architecture.latent_dim, int((singular > 1e-6 * singular[0]).sum()))
        scale = singular[:n] / np.sqrt(len(features))
        inward = np.zeros(tuple(self.straight_in.weight.shape))
        outward = np.zeros(tuple(self.straight_out.weight.shape))
        inward[:n] = components[:n] / scale[:, None]
        outward[:, :n] = components[:n].T * scale
        with torch.no_grad():
            self.straight_in.weight.copy_(torch.from_numpy(inward))
            self.straight_out.weight.copy_(torch.from_numpy(outward))
            last_in, last_out = self.last_in, self.last_out
            last_in.weight.zero_()
            last_in.bias[: self.architecture.latent_dim] = -torch.from_numpy(inward @ features.mean(axis=0))
            last_in.bias[self.architecture.latent_dim :] = _START_LOG_VARIANCE
            last_out.weight.zero_()
            last_out.bias.copy_(torch.from_numpy(features.mean(axis=0)))

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), both (n, latent_dim)."""
        mu, log_variance = self.last_in(self.encoder(features)).chunk(2, dim=1)
        return mu + self.straight_in(features), log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """Means of numbers and logits of categories, (n, width)."""
        return self.last_out(self.decoder(latents)) + self.straight_out(latents)  # type: ignore[no-any-return]

    def hidden(self, features: Tensor, share: float) -> Tensor:
        """Features in which a share of each row's columns, drawn anew, are as if their values were missing."""
        made = features.clone()
        drawn = torch.rand(len(features), len(self._blocks), device=features.device) < share
        for place, (start, _, end, none) in enumerate(self._blocks):
            of = drawn[:, place]
            made[of, start:end] = 0.0
            made[of, none] = 1.0
        return made

    def mean_features(self, decoded: Tensor) -> Tensor:
        """What was decoded, with probabilities in the place of logits: (n, width)."""
        made = decoded.clone()
        for _, middle, end, _ in self._blocks:
            made[:, middle:end] = functional.softmax(decoded[:, middle:end], dim=1)
        return made

    def log_likelihood(self, decoded: Tensor, features: Tensor) -> Tensor:
        """Log p(x | z) in nats, summed over columns: (n,)."""
        log_deviation = self.log_deviation.clamp(-3.0, 3.0)
        squared = (decoded - features).square() * torch.exp(-2.0 * log_deviation)
        of_numbers = -0.5 * (squared + LOG_2_PI + 2.0 * log_deviation)
        total = torch.zeros(len(features), device=features.device)
        for start, middle, end, none in self._blocks:
            logits = functional.log_softmax(decoded[:, middle:end], dim=1)
            total = total + (logits * features[:, middle:end]).sum(1)
            if middle > start:
                total = total + of_numbers[:, start:middle].sum(1) * (1.0 - features[:, none])
        return total


def _blocks(columns: Sequence[Column]) -> list[tuple[int, int, int, int]]:
    """Of each column the places of its first number, its first category, its end, and of the category 'none'."""
    blocks, start = [], 0
    for column in columns:
        end = start + column.width
        if column.width:
            blocks.append((start, start + column.n_gaussian, end, end - 1))
        start = end
    return blocks


def _dense(units: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip(units[:-1], units[1:], strict=True):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return layers
