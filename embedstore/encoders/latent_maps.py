"""The encoder of pictures by the autoencoder of a latent diffusion model: latent maps, pooled for search or whole.

``diffusers:PATH`` loads ``AutoencoderKL`` and ``AutoencoderTiny`` of diffusers, and the TAESD family by a module of our
own. Options behind ``@``: ``size`` (pixels a side), ``pool`` (the grid to which a map is averaged), ``keep=latents``
(the whole map, which alone leads back to a picture).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.on_demand import OnDemand
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import DIFFUSERS, TINY_AUTOENCODER, EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector
from embedstore.names import MAX_DIM
from embedstore.pictures import Picture, read_picture
from embedstore.wording import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

    from embedstore.vae.preparation import Pixels

TAESD = "TAESD"
CLASSES = ("AutoencoderKL", "AutoencoderTiny")
OPTIONS = ("size", "pool", "keep")
_SIZE, _POOL = 256, 4
_AT_ONCE = 8
_TAESD_FILES = ("encoder.safetensors", "decoder.safetensors")
_DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


class _Maps(Protocol):
    """What leads from pictures in 0 to 1, (n, 3, h, w), to latent maps (n, channels, h / f, w / f), and back."""

    def encode(self, pictures: Any) -> Any: ...

    def decode(self, maps: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class LatentMapFolder:
    """What a folder says of itself: its kind, the channels of its maps, and how many pixels a side a place takes."""

    folder: Path
    kind: str
    channels: int
    downscale: int
    files: tuple[str, ...]
    middle: bool = False


def read_latent_map_folder(folder: Path) -> LatentMapFolder | None:
    """What a folder holds; None where it is no model of this kind. EncoderUnavailable for one that cannot be used."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    try:
        if config.get("architecture") == TAESD:
            found = LatentMapFolder(
                folder, TAESD, int(config["latent_channels"]), int(config.get("downscale", 8)), _TAESD_FILES,
                bool(config.get("use_midblock_gn", False)),
            )  # fmt: skip
        elif config.get("_class_name") in CLASSES:
            levels = len(config["block_out_channels"])
            tiny = config["_class_name"] == "AutoencoderTiny"
            scale = 2 ** (levels - 1)
            found = LatentMapFolder(
                folder, config["_class_name"], int(config["latent_channels"]), scale, (_DIFFUSERS_FILE,)
            )
            if tiny and config.get("upsampling_scaling_factor", 2) != 2:
                raise EncoderUnavailable(f"{folder}: only factors of two between the levels are read")
        else:
            return None
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderUnavailable(f"{folder / 'config.json'} cannot be used: {error}") from None
    if found.channels < 1 or found.downscale < 1:
        raise EncoderUnavailable(f"{folder / 'config.json'} cannot be used: it names no channels, or no scale")
    for name in found.files:
        if not (folder / name).is_file():
            raise EncoderUnavailable(
                f"{folder} has no {name}; weights are read as safetensors alone, which cannot run code"
            )
    return found


class LatentMapEncoder:
    """Such a model behind the ``Encoder`` protocol, loaded when it is first used; threads may share it."""

    def __init__(
        self, name: str, found: LatentMapFolder, options: Mapping[str, str], device: Device | None = None
    ) -> None:
        self._found = found
        self._device = device or Device()
        self._size, self._pool = _sides(found, options)
        places = self._size // found.downscale
        side = places if self._pool is None else self._pool
        dim = found.channels * side * side
        if dim > MAX_DIM:
            raise InvalidInput(
                f"a whole latent map of {self._size} pixels a side has {dim:,} numbers; a vector has at most"
                f" {MAX_DIM:,}: give a smaller size"
            )
        lines = [f"{known_sha256(found.folder / file)}  {file}\n" for file in found.files]
        settings = json.dumps([found.kind, found.channels, found.downscale, self._size, self._pool, found.middle])
        self._spec = EncoderSpec(
            name=name, family=TINY_AUTOENCODER if found.kind == TAESD else DIFFUSERS, dim=dim,
            pool="whole" if self._pool is None else f"grid-{self._pool}",
            weights=hashlib.sha256("".join(lines).encode()).hexdigest(),
            pipeline=hashlib.sha256(settings.encode()).hexdigest(), location=str(found.folder),
        )  # fmt: skip
        self._held: OnDemand[tuple[_Maps, str]] = OnDemand(self._load)

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    def prepare(self, item: Any) -> Pixels:
        """The pixels that the model takes of a picture: uint8 (3, size, size), the middle square."""
        from embedstore.vae.preparation import ImagePreparation

        return ImagePreparation(self._size).apply(read_picture(item))

    def encode(self, items: Sequence[Any]) -> Encoded:
        """Encode pictures, or what ``prepare`` gave of them; none give vectors of shape (0, dim)."""
        import torch

        vectors: FloatMatrix = np.empty((len(items), self._spec.dim), np.float32)
        maps, device = self._held.get()
        for start in range(0, len(items), _AT_ONCE):
            pixels = np.stack([self._pixels(item) for item in items[start : start + _AT_ONCE]])
            with torch.inference_mode():
                found = maps.encode(torch.from_numpy(pixels).to(device).float().div_(255.0))
                if self._pool is not None:
                    found = torch.nn.functional.adaptive_avg_pool2d(found, self._pool)
            vectors[start : start + len(pixels)] = found.flatten(1).float().cpu().numpy()
        return Encoded(vectors)

    def encode_query(self, item: Any) -> FloatVector:
        """Encode one picture: float32 (dim,)."""
        vector: FloatVector = self.encode([item]).vectors[0]
        return vector

    def decode(self, vectors: FloatMatrix) -> list[Image]:
        """The pictures of whole latent maps, float32 (n, dim); InvalidInput where maps were pooled."""
        import torch
        from PIL import Image

        if self._pool is not None:
            raise InvalidInput(
                f"the maps of {self._spec.name!r} are averaged to a grid, which does not lead back; whole ones do:"
                " keep=latents"
            )
        if vectors.ndim != 2 or vectors.shape[1] != self._spec.dim:
            raise InvalidInput(f"vectors of {self._spec.dim} numbers are decoded; these have shape {vectors.shape}")
        maps, device = self._held.get()
        places = self._size // self._found.downscale
        images = []
        for line in vectors:
            given = torch.from_numpy(np.ascontiguousarray(line, np.float32)).to(device)
            with torch.inference_mode():
                decoded = maps.decode(given.reshape(1, self._found.channels, places, places))[0]
            pixels = decoded.clamp(0.0, 1.0).mul(255.0).round().byte().permute(1, 2, 0).cpu().numpy()
            images.append(Image.fromarray(np.ascontiguousarray(pixels)))
        return images

    def count_tokens(self, text: str) -> int:
        """Pictures have no tokens; InvalidInput."""
        raise InvalidInput(f"the encoder {self._spec.name!r} reads pictures, which cannot be cut into pieces of tokens")

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        self._held.close()

    def _pixels(self, item: Any) -> Pixels:
        whole = (3, self._size, self._size)
        if isinstance(item, np.ndarray) and item.shape == whole and item.dtype == np.uint8:
            return item
        return self.prepare(item if isinstance(item, Picture) else read_picture(item))

    def _load(self) -> tuple[_Maps, str]:
        from embedstore.vae.devices import torch_device

        device = torch_device(self._device)
        load = _load_taesd if self._found.kind == TAESD else _load_diffusers
        return load(self._found, device), device


def _sides(found: LatentMapFolder, options: Mapping[str, str]) -> tuple[int, int | None]:
    """Pixels a side, and the grid to which maps are averaged (None for whole ones); InvalidInput for what cannot be."""
    numbers = {"size": _SIZE, "pool": _POOL}
    for name in numbers:
        if name in options:
            if not options[name].isdecimal() or not 1 <= int(options[name]) <= 4096:
                raise InvalidInput(f"{name} is {options[name]!r}; it must be a whole number from 1 on")
            numbers[name] = int(options[name])
    if numbers["size"] % found.downscale:
        raise InvalidInput(f"size is {numbers['size']}; it must be a multiple of {found.downscale} for this model")
    if options.get("keep", "latents") != "latents":
        raise InvalidInput(f"keep is {options['keep']!r}; it can only be latents")
    if "keep" in options and "pool" in options:
        raise InvalidInput("keep=latents keeps the whole map and pool averages it; give one of them")
    if numbers["pool"] > numbers["size"] // found.downscale:
        raise InvalidInput(
            f"pool is {numbers['pool']}; a map of {numbers['size']} pixels has"
            f" {numbers['size'] // found.downscale} places a side"
        )
    return numbers["size"], None if "keep" in options else numbers["pool"]


class _Taesd:
    def __init__(self, encoder: Any, decoder: Any) -> None:
        self.encode, self.decode = encoder, decoder


def _load_taesd(found: LatentMapFolder, device: str) -> _Maps:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from embedstore.vae.taesd import taesd_decoder, taesd_encoder

    parts = []
    for make, name in ((taesd_encoder, _TAESD_FILES[0]), (taesd_decoder, _TAESD_FILES[1])):
        network = make(found.channels, middle=found.middle)
        try:
            network.load_state_dict({key: value.float() for key, value in load_file(found.folder / name).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            first = first_line(error)
            raise EncoderUnavailable(f"{found.folder / name} cannot be used: {first}") from None
        parts.append(network.eval().to(device))
    return _Taesd(*parts)


class _Diffusers:
    """An autoencoder of diffusers, which takes pixels from -1 to 1."""

    def __init__(self, model: Any, *, tiny: bool) -> None:
        self._model = model
        self._tiny = tiny

    def encode(self, pictures: Any) -> Any:
        found = self._model.encode(pictures * 2.0 - 1.0)
        return found.latents if self._tiny else found.latent_dist.mode()

    def decode(self, maps: Any) -> Any:
        return (self._model.decode(maps).sample + 1.0) / 2.0


def _load_diffusers(found: LatentMapFolder, device: str) -> _Maps:
    from embedstore.optional import require

    diffusers = require("diffusers", "diffusers")
    try:
        model = getattr(diffusers, found.kind).from_pretrained(
            found.folder, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise EncoderUnavailable(f"the {found.kind} in {found.folder} cannot be loaded: {first}") from None
    return _Diffusers(model.eval().to(device), tiny=found.kind == "AutoencoderTiny")
