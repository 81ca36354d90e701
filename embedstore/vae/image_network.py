"""The networks of image autoencoders: a convolutional one, and the plain one of the first publications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from embedstore.errors import InvalidInput
from embedstore.vae.described import made_from
from embedstore.vae.objective import LEAST_LOG_VARIANCE, LOG_2_PI, MOST_LOG_VARIANCE

ARCHITECTURES = ("conv", "mlp")
LIKELIHOODS = ("bernoulli", "gaussian")
_SMALLEST, _LARGEST_GRID, _LARGEST = 4, 8, 512
_MOST_WIDTHS = 8
_START_LOG_VARIANCE = -2.0
_START_LOG_DEVIATION = -1.5  # pixels lie in 0 to 1, so that a deviation of one would make them not worth telling


@dataclass(frozen=True, slots=True)
class ImageArchitecture:
    """What an image network is made of.

    size: pixels a side; channels: 1 or 3. width: channels of the first convolution, doubled at each halving (at most
    8 times). hidden: units between the grid and the latent vector; of 'mlp', units of its hidden layers.
    straight: whether there are linear ways past the hidden layers: a principal component analysis that stays as it is,
    so that what the layers learn is only what it misses.
    likelihood: 'bernoulli' takes a pixel as a probability (summed binary cross-entropy), 'gaussian' as a number with
    one learned deviation for all pixels (Rybkin, Daniilidis and Levine 2021).
    """

    kind: str = "conv"
    size: int = 64
    channels: int = 3
    latent_dim: int = 32
    width: int = 32
    hidden: int = 256
    layers: int = 1
    likelihood: str = "gaussian"
    straight: bool = False

    def check(self) -> None:
        """Raise InvalidInput for what makes no network."""
        if self.kind not in ARCHITECTURES:
            raise InvalidInput(f"the architecture is {self.kind!r}; it must be one of {', '.join(ARCHITECTURES)}")
        if self.likelihood not in LIKELIHOODS:
            raise InvalidInput(f"the likelihood is {self.likelihood!r}; it must be one of {', '.join(LIKELIHOODS)}")
        if self.channels not in (1, 3):
            raise InvalidInput(f"channels is {self.channels}; pictures have 1 (grey) or 3 (colour)")
        for name, most in (("latent_dim", 4096), ("width", 512), ("hidden", 8192), ("layers", 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InvalidInput(f"{name} is {value!r}; it must be from 1 to {most:,}")
        if isinstance(self.size, bool) or not isinstance(self.size, int):
            raise InvalidInput(f"size is {self.size!r}; it must be a whole number of pixels")
        if self.kind == "conv":
            grid_of(self.size)
        elif not 1 <= self.size <= _LARGEST:
            raise InvalidInput(f"size is {self.size}; it must be from 1 to {_LARGEST}")

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImageArchitecture:
        """Read what ``to_json`` gave; InvalidInput for anything else."""
        return made_from(cls, fields, "an image network")


def grid_of(size: int) -> tuple[int, int]:
    """How often a size is halved, and the grid that is left, 4 to 8 cells a side; InvalidInput where there is none."""
    halvings, grid = 0, size
    while grid > _LARGEST_GRID and grid % 2 == 0:
        halvings, grid = halvings + 1, grid // 2
    if not (_SMALLEST <= grid <= _LARGEST_GRID and halvings and size <= _LARGEST):
        near = [n for n in range(10, _LARGEST + 1, 2) if _is_size(n)]
        below = max((n for n in near if n < size), default=near[0])
        above = min((n for n in near if n > size), default=near[-1])
        raise InvalidInput(
            f"a convolutional network cannot have pictures of {size} pixels a side, which cannot be halved down to 4 to"
            f" 8; the nearest {f'sizes are {below} and {above}' if below != above else f'size is {below}'}"
        )
    return halvings, grid


def _is_size(size: int) -> bool:
    halvings, grid = 0, size
    while grid > _LARGEST_GRID and grid % 2 == 0:
        halvings, grid = halvings + 1, grid // 2
    return bool(_SMALLEST <= grid <= _LARGEST_GRID and halvings)


class ImageNetwork(nn.Module):
    """An encoder and a decoder of pictures, float32 (n, channels, size, size) in 0 to 1."""

    def __init__(self, architecture: ImageArchitecture) -> None:
        super().__init__()
        architecture.check()
        self.architecture = architecture
        make = _convolutional if architecture.kind == "conv" else _plain
        self.encoder, self.decoder = make(architecture)
        n_pixels = architecture.channels * architecture.size**2
        self.straight_in = nn.Linear(n_pixels, architecture.latent_dim) if architecture.straight else None
        self.straight_out = nn.Linear(architecture.latent_dim, n_pixels) if architecture.straight else None
        for layer in (self.straight_in, self.straight_out):
            if layer is not None:
                layer.requires_grad_(False)
        self.log_deviation = nn.Parameter(
            torch.full((), _START_LOG_DEVIATION), requires_grad=architecture.likelihood == "gaussian"
        )

    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), both (n, latent_dim)."""
        mu, log_variance = self.encoder(pictures).chunk(2, dim=1)
        if self.straight_in is not None:
            mu = mu + self.straight_in(pictures.flatten(1))
        return mu, log_variance.clamp(LEAST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def decode(self, latents: Tensor) -> Tensor:
        """What p(x | z) is made of: logits or means, (n, channels, size, size)."""
        decoded: Tensor = self.decoder(latents)
        if self.straight_out is not None:
            decoded = decoded + self.straight_out(latents).view_as(decoded)
        return decoded

    def start_from(self, pictures: Tensor) -> None:
        """Take a principal component analysis of some pictures in 0 to 1 for the straight ways, where there are any.

        Its components are scaled to a variance of one; the other layers add nothing at first.
        """
        if self.straight_in is None or self.straight_out is None:
            return
        rows = pictures.flatten(1)
        mean = rows.mean(0)
        n = min(self.architecture.latent_dim, *rows.shape)
        _, singular, components = torch.svd_lowrank(rows - mean, q=min(n + 16, *rows.shape), niter=4)
        scale = (singular[:n] / len(rows) ** 0.5).clamp_min(1e-6)
        with torch.no_grad():
            for layer in (self.straight_in, self.straight_out):
                layer.weight.zero_()
            self.straight_in.weight[:n] = components[:, :n].T / scale[:, None]
            self.straight_in.bias.copy_(-self.straight_in.weight @ mean)
            self.straight_out.weight[:, :n] = components[:, :n] * scale
            self.straight_out.bias.copy_(mean)
            last_in, last_out = _last_with_weights(self.encoder), _last_with_weights(self.decoder)
            for end in (last_in, last_out):
                end.weight.zero_()
                end.bias.zero_()
            last_in.bias[self.architecture.latent_dim :] = _START_LOG_VARIANCE

    def pixels(self, latents: Tensor) -> Tensor:
        """The mean picture of latent vectors, in 0 to 1: (n, channels, size, size)."""
        decoded = self.decode(latents)
        return torch.sigmoid(decoded) if self.architecture.likelihood == "bernoulli" else decoded.clamp(0.0, 1.0)

    def log_likelihood(self, decoded: Tensor, pictures: Tensor) -> Tensor:
        """Log p(x | z) in nats, summed over pixels: (n,)."""
        if self.architecture.likelihood == "bernoulli":
            return -functional.binary_cross_entropy_with_logits(decoded, pictures, reduction="none").flatten(1).sum(1)
        log_deviation = self.log_deviation.clamp(-5.0, 5.0)
        squared = (decoded - pictures).square() * torch.exp(-2.0 * log_deviation)
        return -0.5 * (squared + LOG_2_PI + 2.0 * log_deviation).flatten(1).sum(1)


def _last_with_weights(layers: nn.Module) -> Any:
    return [one for one in layers.children() if hasattr(one, "weight")][-1]


def _convolutional(made: ImageArchitecture) -> tuple[nn.Module, nn.Module]:
    halvings, grid = grid_of(made.size)
    widths = [min(made.width * 2**stage, made.width * _MOST_WIDTHS) for stage in range(halvings)]
    flat = widths[-1] * grid * grid
    down: list[nn.Module] = []
    for before, after in zip([made.channels, *widths[:-1]], widths, strict=True):
        down += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    encoder = nn.Sequential(
        *down, nn.Flatten(), nn.Linear(flat, made.hidden), nn.ReLU(), nn.Linear(made.hidden, 2 * made.latent_dim)
    )
    up: list[nn.Module] = []
    for before, after in zip(widths[::-1], [*widths[-2::-1], made.channels], strict=True):
        up += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
    decoder = nn.Sequential(
        nn.Linear(made.latent_dim, made.hidden), nn.ReLU(), nn.Linear(made.hidden, flat), nn.ReLU(),
        nn.Unflatten(1, (widths[-1], grid, grid)), *up[:-1],
    )  # fmt: skip
    return encoder, decoder


def _plain(made: ImageArchitecture) -> tuple[nn.Module, nn.Module]:
    n_pixels = made.channels * made.size * made.size
    units = [made.hidden] * made.layers
    encoder = nn.Sequential(nn.Flatten(), *_dense([n_pixels, *units]), nn.Linear(units[-1], 2 * made.latent_dim))
    decoder = nn.Sequential(
        *_dense([made.latent_dim, *units]), nn.Linear(units[-1], n_pixels),
        nn.Unflatten(1, (made.channels, made.size, made.size)),
    )  # fmt: skip
    return encoder, decoder


def _dense(units: list[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in zip(units[:-1], units[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return layers
