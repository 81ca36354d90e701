"""Encoders of texts and pictures into one space: CLIP and its kin, through sentence-transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.on_demand import OnDemand
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import CLIP, EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector
from embedstore.pictures import plain, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

MODEL_TYPES = ("clip", "siglip", "siglip2", "chinese_clip", "altclip", "align")
_AT_ONCE = 32
_MOST_SIDE = 1024
"""Pixels of the longer side that are kept of a picture: several times what such models read."""


def is_cross_modal(folder: Path) -> bool:
    """Whether a folder holds a model of texts and pictures, by the ``config.json`` of its transformer."""
    return _config(folder) is not None


def _config(folder: Path) -> dict[str, Any] | None:
    """What the transformer of such a model says of itself; None where a folder holds none."""
    for place in (folder, folder / "0_CLIPModel", folder / "0_Transformer"):
        try:
            config = json.loads((place / "config.json").read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and config.get("model_type") in MODEL_TYPES:
            return config
    return None


class CrossModalEncoder:
    """Such a model behind the ``Encoder`` protocol, loaded when it is first used; threads may share it.

    Items are texts, and pictures as ``prepare`` makes them.
    """

    def __init__(self, name: str, folder: Path, device: Device | None = None) -> None:
        files = sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors"))
        if not files:
            raise EncoderUnavailable(
                f"{folder} has no .safetensors; weights are read as safetensors alone, which cannot run code"
            )
        self._folder = folder
        self._device = device or Device()
        lines = [f"{known_sha256(folder / file)}  {file.as_posix()}\n" for file in files]
        settings = [
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
            for path in sorted(folder.rglob("*.json"))
        ]  # fmt: skip
        self._spec = EncoderSpec(
            name=name, family=CLIP, dim=_dim(folder), weights=hashlib.sha256("".join(lines).encode()).hexdigest(),
            pipeline=hashlib.sha256("".join(settings).encode()).hexdigest(), location=str(folder),
        )  # fmt: skip
        self._held: OnDemand[Any] = OnDemand(self._load)

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    def prepare(self, item: Any) -> Image:
        """A picture in colour over white, at most 1,024 pixels a side."""
        from PIL import Image

        image = plain(read_picture(item).decode())
        if image.mode in ("LA", "RGBA"):
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image.convert("RGBA"))
        image = image.convert("RGB")
        image.thumbnail((_MOST_SIDE, _MOST_SIDE))
        return image

    def encode(self, items: Sequence[Any]) -> Encoded:
        """Encode texts and prepared pictures, mixed as they may be; none give vectors of shape (0, dim)."""
        vectors: FloatMatrix = np.empty((len(items), self._spec.dim), np.float32)
        texts = [place for place, item in enumerate(items) if isinstance(item, str)]
        others = [place for place, item in enumerate(items) if not isinstance(item, str)]
        for places in (texts, others):
            for start in range(0, len(places), _AT_ONCE):
                chunk = places[start : start + _AT_ONCE]
                vectors[chunk] = self._held.get().encode(
                    [items[place] for place in chunk], convert_to_numpy=True, show_progress_bar=False
                )
        return Encoded(vectors)

    def encode_query(self, item: Any) -> FloatVector:
        """Encode one text or prepared picture: float32 (dim,)."""
        vector: FloatVector = self.encode([item]).vectors[0]
        return vector

    def count_tokens(self, text: str) -> int:
        """How many tokens a text has."""
        tokenizer = self._held.get().tokenizer
        return len(getattr(tokenizer, "tokenizer", tokenizer)(text)["input_ids"])

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        self._held.close()

    def _load(self) -> Any:
        from sentence_transformers import SentenceTransformer

        from embedstore.vae.devices import torch_device

        try:
            return SentenceTransformer(
                str(self._folder), device=torch_device(self._device), trust_remote_code=False, local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            first = " ".join(str(error).split())[:200]
            raise EncoderUnavailable(f"the model in {self._folder} cannot be loaded: {first}") from None


def _dim(folder: Path) -> int:
    """Numbers in a vector: what the model's projection gives."""
    config = _config(folder) or {}
    text = config.get("text_config") or {}
    for found in (config.get("projection_dim"), text.get("projection_size"), text.get("hidden_size")):
        if isinstance(found, int) and found > 0:
            return found
    raise InvalidInput(f"{folder} does not say how many numbers its vectors have")
