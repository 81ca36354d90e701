"""The small autoencoder of latent diffusion models, TAESD, with the middle blocks of its later variants.

The layers and their order are those that the published weights name; diffusers' ``AutoencoderTiny`` has no middle
blocks with group normalisation and cannot load them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64
_GROUPS = 4
_CLAMP = 3.0


class _Block(nn.Module):
    """Three convolutions around which the input is carried; with ``pooled``, a normalised mix of channels before."""

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH)
        )
        self.pool = nn.Sequential(
            nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False), nn.GroupNorm(_GROUPS, 4 * WIDTH), nn.ReLU(),
            nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
        ) if pooled else None  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class _Clamp(nn.Module):
    """Keeps latents within three, softly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / _CLAMP) * _CLAMP


def _conv(before: int, after: int, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=bias)


def taesd_encoder(latent_channels: int, *, middle: bool) -> nn.Sequential:
    """Pictures in 0 to 1, (n, 3, h, w), to latent maps (n, latent_channels, h / 8, w / 8)."""
    return nn.Sequential(
        _conv(3, WIDTH), _Block(),
        _conv(WIDTH, WIDTH, stride=2, bias=False), *(_Block() for _ in range(3)),
        _conv(WIDTH, WIDTH, stride=2, bias=False), *(_Block() for _ in range(3)),
        _conv(WIDTH, WIDTH, stride=2, bias=False), *(_Block(pooled=middle) for _ in range(3)),
        _conv(WIDTH, latent_channels),
    )  # fmt: skip


def taesd_decoder(latent_channels: int, *, middle: bool) -> nn.Sequential:
    """Latent maps back to pictures, which may lie a little outside of 0 to 1."""
    return nn.Sequential(
        _Clamp(), _conv(latent_channels, WIDTH), nn.ReLU(),
        *(_Block(pooled=middle) for _ in range(3)), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False),
        *(_Block() for _ in range(3)), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False),
        *(_Block() for _ in range(3)), nn.Upsample(scale_factor=2), _conv(WIDTH, WIDTH, bias=False),
        _Block(), _conv(WIDTH, 3),
    )  # fmt: skip
