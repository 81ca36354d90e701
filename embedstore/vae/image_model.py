"""The folder of a trained image autoencoder: ``config.json``, ``model.safetensors``, and a card of how it was made."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix
from embedstore.storage.files import scratch_folder, sync_folder
from embedstore.vae.image_network import ImageArchitecture, ImageNetwork
from embedstore.vae.preparation import ImagePreparation, Pixels

FORMAT = "embedstore-image-vae"
VERSION = 1
CONFIG, WEIGHTS, CARD, REPORT = "config.json", "model.safetensors", "README.md", "report.html"


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

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def tensor(self, pixels: Pixels) -> torch.Tensor:
        """Pixels as the network takes them: float32 in 0 to 1."""
        moved = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float().div_(255.0)
        return moved.to(memory_format=torch.channels_last)


def config_of(model: ImageModel) -> dict[str, Any]:
    """What ``config.json`` says."""
    return {
        "format": FORMAT, "version": VERSION, "architecture": model.architecture.to_json(),
        "preparation": model.preparation.to_json(), "made": dict(model.made),
    }  # fmt: skip


def is_image_model(folder: Path) -> bool:
    """Whether a folder is that of a model of this kind, by its ``config.json``."""
    try:
        found = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def read_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says, checked; EncoderUnavailable where it cannot be used."""
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        if found["format"] != FORMAT:
            raise EncoderUnavailable(f"{folder} holds {found['format']!r}, not a model of an image autoencoder")
        if found["version"] != VERSION:
            raise EncoderUnavailable(
                f"the model in {folder} has version {found['version']!r}; this release reads {VERSION}: upgrade"
                " embedstore"
            )
        ImageArchitecture.from_json(found["architecture"])
        ImagePreparation.from_json(found["preparation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise EncoderUnavailable(f"{folder / CONFIG} cannot be used: {reason}; train the model again") from None
    return found


def decisive(config: Mapping[str, Any]) -> str:
    """SHA-256 in hex of what decides the vectors besides the weights."""
    parts = {name: config[name] for name in ("format", "version", "architecture", "preparation")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_image_model(folder: Path) -> ImageModel:
    """The model of a folder, on the CPU; EncoderUnavailable where its files are missing, damaged or do not match."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder)
    network = ImageNetwork(ImageArchitecture.from_json(config["architecture"]))
    try:
        weights = load_file(folder / WEIGHTS)
        network.load_state_dict(weights)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise EncoderUnavailable(f"{folder / WEIGHTS} cannot be used: {first}; train the model again") from None
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return ImageModel(network, ImagePreparation.from_json(config["preparation"]), config["made"])


def save_image_model(folder: Path, model: ImageModel, files: Mapping[str, str]) -> None:
    """Write a model's folder, which must not exist; it appears whole. ``files``: texts that are written beside it."""
    from safetensors.torch import save

    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "model") as scratch:
        made = scratch / "made"
        made.mkdir(mode=0o700)
        weights = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
        _write(made / WEIGHTS, save(weights, {"format": "pt"}))
        _write(made / CONFIG, (json.dumps(config_of(model), indent=1, sort_keys=True) + "\n").encode())
        for name, text in files.items():
            _write(made / name, text.encode())
        sync_folder(made)
        os.rename(made, folder)
        sync_folder(folder.parent)


def refuse_existing(folder: Path) -> None:
    """Raise InvalidInput where something is in the way of a new model's folder; an empty folder is not."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise InvalidInput(f"{folder} exists already; give another --out, or delete it")


def _write(path: Path, body: bytes) -> None:
    with path.open("xb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def remove_folder(folder: Path) -> None:
    """Delete a folder with what is in it."""
    shutil.rmtree(folder, ignore_errors=True)
