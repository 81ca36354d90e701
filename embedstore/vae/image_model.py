"""The folder of a trained image autoencoder: ``config.json``, ``model.safetensors``, and a card of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedstore.model import FloatMatrix
from embedstore.vae.image_network import ImageArchitecture, ImageNetwork
from embedstore.vae.model_folder import load_weights, read_config, write_model
from embedstore.vae.preparation import ImagePreparation, Pixels
from embedstore.vae.scoring import AnomalyScore, Scores, negative_elbo

FORMAT = "embedstore-image-vae"


@dataclass(frozen=True, slots=True)
class ImageModel:
    """A trained network with how pictures are prepared for it, and ``made``: what it was trained on, how, how well."""

    network: ImageNetwork
    preparation: ImagePreparation
    made: Mapping[str, Any]

    @property
    def architecture(self) -> ImageArchitecture:
        """What the network is made of."""
        return self.network.architecture

    def encode(self, pixels: Pixels) -> tuple[FloatMatrix, FloatMatrix]:
        """Mean and log variance of q(z | x) of pixels (n, channels, size, size): both float32 (n, latent_dim)."""
        with torch.inference_mode():
            mu, log_variance = self.network.encode(self.tensor(pixels))
        return mu.float().cpu().numpy(), log_variance.float().cpu().numpy()

    def decode(self, latents: FloatMatrix) -> Pixels:
        """The mean pictures of latent vectors (n, latent_dim): uint8 (n, channels, size, size)."""
        return np.rint(self.decode_exactly(latents) * 255.0).astype(np.uint8)

    def decode_exactly(self, latents: FloatMatrix) -> np.ndarray:
        """The mean pictures of latent vectors: float32 (n, channels, size, size) in 0 to 1."""
        given = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self.device)
        with torch.inference_mode():
            return self.network.pixels(given).float().cpu().numpy()

    def anomaly_scores(self, pixels: Pixels, by: AnomalyScore) -> Scores:
        """How strange pictures (n, channels, size, size) are, greater for stranger: float64 (n,)."""
        if by is AnomalyScore.ELBO:
            return negative_elbo(self.network, self.tensor(pixels))
        given_back = self.decode_exactly(self.encode(pixels)[0])
        missed: Scores = np.square(given_back - pixels / np.float32(255)).mean(axis=(1, 2, 3), dtype=np.float64)
        return missed

    def flat(self, pixels: Pixels) -> FloatMatrix:
        """Pixels as rows of numbers in 0 to 1: float32 (n, channels * size * size)."""
        return pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255)

    def decode_flat(self, latents: FloatMatrix) -> FloatMatrix:
        """The mean pictures of latent vectors as such rows."""
        return self.decode_exactly(latents).reshape(len(latents), -1)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def tensor(self, pixels: Pixels) -> torch.Tensor:
        """Pixels as the network takes them: float32 in 0 to 1."""
        moved = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(self.device).float().div_(255.0)
        return moved.to(memory_format=torch.channels_last)


def read_image_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says, checked; EncoderUnavailable where it cannot be used."""

    def check(config: Mapping[str, Any]) -> None:
        made = ImageArchitecture.from_json(config["architecture"])
        how = ImagePreparation.from_json(config["preparation"])
        if (made.size, made.channels) != (how.size, how.channels):
            raise ValueError("the network takes other pictures than are prepared for it")

    return read_config(folder, FORMAT, check)


def load_image_model(folder: Path) -> ImageModel:
    """The model of a folder, on the CPU; EncoderUnavailable where its files are missing, damaged or do not match."""
    config = read_image_config(folder)
    network = ImageNetwork(ImageArchitecture.from_json(config["architecture"]))
    load_weights(folder, network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ImageModel(network, ImagePreparation.from_json(config["preparation"]), config["made"])


def save_image_model(folder: Path, model: ImageModel, files: Mapping[str, str]) -> None:
    """Write a model's folder, which must not exist; it appears whole. ``files``: texts that are written beside it."""
    config = {
        "format": FORMAT, "architecture": model.architecture.to_json(), "preparation": model.preparation.to_json(),
        "made": dict(model.made),
    }  # fmt: skip
    write_model(folder, model.network, config, files)
