"""What is peculiar to autoencoders of pictures, as encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.autoencoder import Autoencoder, Config, Kind
from embedstore.encoders.spec import IMAGE_VAE
from embedstore.model import FloatMatrix
from embedstore.pictures import read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from embedstore.vae.image_model import ImageModel
    from embedstore.vae.preparation import Pixels

_LEAST_AT_ONCE, _MOST_AT_ONCE, _NUMBERS_AT_ONCE = 32, 512, 1_600_000


def image_encoder(name: str, folder: Path, device: Device | None = None) -> Autoencoder:
    """The encoder of pictures by a model's folder."""
    from embedstore.vae.image_model import load_image_model, read_image_config

    kind = Kind(
        IMAGE_VAE, "pictures", "preparation", read_image_config, load_image_model, _prepare, _arrays, _decoded, _at_once
    )
    return Autoencoder(name, folder, kind, device)


def _prepare(config: Config, _model: Callable[[], ImageModel], item: Any, _partial: bool) -> Pixels:
    """The pixels that the network takes of a picture: uint8 (channels, size, size)."""
    from embedstore.vae.preparation import ImagePreparation

    return ImagePreparation.from_json(config["preparation"]).apply(read_picture(item))


def _arrays(model: ImageModel, items: Sequence[Any]) -> tuple[Pixels, int]:
    """Pixels of pictures, which may be prepared already: uint8 (n, channels, size, size)."""
    how = model.preparation
    whole = (how.channels, how.size, how.size)

    def prepared(item: Any) -> Pixels:
        if isinstance(item, np.ndarray) and item.shape == whole and item.dtype == np.uint8:
            return item
        return how.apply(read_picture(item))

    return np.stack([prepared(item) for item in items]), 0


def _decoded(model: ImageModel, latents: FloatMatrix) -> list[Image]:
    return [model.preparation.image_of(pixels) for pixels in model.decode(latents)]


def _at_once(config: Config) -> int:
    """More pictures where they are small."""
    numbers = int(config["architecture"]["channels"]) * int(config["architecture"]["size"]) ** 2
    return max(_LEAST_AT_ONCE, min(_MOST_AT_ONCE, _NUMBERS_AT_ONCE // numbers))
