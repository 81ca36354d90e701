"""The encoder of pictures by a trained autoencoder of the user's own: means as vectors, and back to pictures."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import IMAGE_VAE, EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector, choose
from embedstore.pictures import Picture, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

    from embedstore.vae.diagnostics import Diagnosis
    from embedstore.vae.image_model import ImageModel
    from embedstore.vae.preparation import Pixels

_AT_ONCE, _MOST_AT_ONCE, _NUMBERS_AT_ONCE = 32, 512, 1_600_000


class ImageEncoder:
    """A trained image autoencoder behind the ``Encoder`` protocol, loaded when it is first used; threads may share it.

    The vector of a picture is the mean of q(z | x).
    """

    def __init__(self, name: str, folder: Path, device: Device | None = None) -> None:
        from embedstore.vae.image_model import read_image_config
        from embedstore.vae.model_folder import WEIGHTS, decisive
        from embedstore.vae.preparation import ImagePreparation

        config = read_image_config(folder)
        self._folder = folder
        self._device = device or Device()
        self._preparation = ImagePreparation.from_json(config["preparation"])
        self._spec = EncoderSpec(
            name=name, family=IMAGE_VAE, dim=int(config["architecture"]["latent_dim"]),
            weights=known_sha256(folder / WEIGHTS), pipeline=decisive(config, "preparation"), location=str(folder),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._model: ImageModel | None = None

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def model(self) -> ImageModel:
        """The model itself, on the device that was asked for."""
        with self._lock:
            if self._model is None:
                from embedstore.vae.devices import torch_device
                from embedstore.vae.image_model import load_image_model
                from embedstore.vae.model_folder import WEIGHTS

                model = load_image_model(self._folder)
                if known_sha256(self._folder / WEIGHTS) != self._spec.weights:
                    raise EncoderUnavailable(
                        f"the model in {self._folder} was replaced since it was opened; open the store again"
                    )
                model.network.to(torch_device(self._device))
                self._model = model
            return self._model

    def prepare(self, item: Any) -> Pixels:
        """The pixels that the network takes of a picture: uint8 (channels, size, size)."""
        return self._preparation.apply(read_picture(item))

    def encode(self, items: Sequence[Any]) -> Encoded:
        """Encode pictures, or what ``prepare`` gave of them; none give vectors of shape (0, dim)."""
        vectors: FloatMatrix = np.empty((len(items), self._spec.dim), np.float32)
        at_once = self._at_once()
        for start in range(0, len(items), at_once):
            pixels = np.stack([self._pixels(item) for item in items[start : start + at_once]])
            vectors[start : start + len(pixels)] = self.model.encode(pixels)[0]
        return Encoded(vectors)

    def encode_query(self, item: Any) -> FloatVector:
        """Encode one picture: float32 (dim,)."""
        vector: FloatVector = self.encode([item]).vectors[0]
        return vector

    def decode(self, vectors: FloatMatrix) -> list[Image]:
        """The mean pictures of vectors, float32 (n, dim)."""
        if vectors.ndim != 2 or vectors.shape[1] != self._spec.dim:
            raise InvalidInput(f"vectors of {self._spec.dim} numbers are decoded; these have shape {vectors.shape}")
        images, at_once = [], self._at_once()
        for start in range(0, len(vectors), at_once):
            decoded = self.model.decode(vectors[start : start + at_once])
            images += [self._preparation.image_of(pixels) for pixels in decoded]
        return images

    def anomaly_scores(self, items: Sequence[Any], method: str) -> np.ndarray:
        """How strange prepared items are by 'reconstruction' or 'elbo', greater for stranger: float64 (n,)."""
        from embedstore.vae.scoring import AnomalyScore

        by = choose(AnomalyScore, method, "method")
        parts, at_once = [], self._at_once()
        for start in range(0, len(items), at_once):
            chunk = items[start : start + at_once]
            parts.append(self.model.anomaly_scores(np.stack([self._pixels(item) for item in chunk]), by))
        return np.concatenate(parts) if parts else np.empty(0)

    def anomaly_quantiles(self, method: str) -> list[float]:
        """The quantiles of such scores of what was held out in training; EncoderUnavailable where none were kept."""
        try:
            return [float(one) for one in self.model.made["anomaly"][method]]
        except (KeyError, TypeError, ValueError):
            raise EncoderUnavailable(f"the model in {self._folder} keeps no scores; train it again") from None

    def diagnose(self, items: Sequence[Any], labels: Sequence[Any] | None = None) -> Diagnosis:
        """What the latent space is like, seen through prepared items; see ``vae.diagnostics.Diagnosis``."""
        from embedstore.vae.diagnostics import diagnose

        return diagnose(self.model, np.stack([self._pixels(item) for item in items]), labels)

    def count_tokens(self, text: str) -> int:
        """Pictures have no tokens; InvalidInput."""
        raise InvalidInput(f"the encoder {self._spec.name!r} reads pictures, which cannot be cut into pieces of tokens")

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        with self._lock:
            self._model = None

    def _at_once(self) -> int:
        """How many pictures the network takes at once: more of small ones."""
        numbers = self._preparation.channels * self._preparation.size**2
        return max(_AT_ONCE, min(_MOST_AT_ONCE, _NUMBERS_AT_ONCE // numbers))

    def _pixels(self, item: Any) -> Pixels:
        shape = (self._preparation.channels, self._preparation.size, self._preparation.size)
        if isinstance(item, np.ndarray) and item.shape == shape and item.dtype == np.uint8:
            return item
        return self.prepare(item if isinstance(item, Picture) else read_picture(item))
