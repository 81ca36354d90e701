"""Encoder names, and how each is turned into an encoder."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from embedstore.devices import Device, choose_device
from embedstore.encoders.cross_modal import CrossModalEncoder, is_cross_modal
from embedstore.encoders.hub import cached_snapshot, download_snapshot
from embedstore.encoders.latent_maps import CLASSES, TAESD, LatentMapEncoder, read_latent_map_folder
from embedstore.encoders.latent_maps import OPTIONS as MAP_OPTIONS
from embedstore.encoders.layer_states import LayerEncoder, shared_model
from embedstore.encoders.model_config import model_format
from embedstore.encoders.model_folder import (
    TextModel,
    is_sentence_transformer,
    is_transformer,
    read_sentence_transformer,
    read_transformer,
)
from embedstore.encoders.protocol import Encoder
from embedstore.encoders.spec import MINILM, MINILM_INT8, EncoderSpec
from embedstore.encoders.text_encoder import TextEncoder
from embedstore.encoders.weights import load_minilm, load_minilm_int8
from embedstore.errors import EncoderMismatch, EncoderUnavailable, InvalidInput

ENTRY_POINTS = "embedstore.encoders"
NONE = "none"

_POSSIBLE = (
    "minilm, minilm-int8, st:NAME_OR_PATH, hf:NAME_OR_PATH@layer=-2,pool=mean, diffusers:PATH@size=256, the path of a"
    " model folder, none"
)
_IMAGE = "embedstore-image-vae"
_TABLE = "embedstore-table-vae"
_OWN = (_IMAGE, _TABLE)
_HF_OPTIONS = ("site", "layer", "head", "pool", "special", "stack", "dtype", "random", "normalize", "max_tokens")
_STATES = {"site", "head", "special", "stack", "dtype", "random"}  # of which one makes it an encoder of one place
_OPTIONS_OF = {"hf": _HF_OPTIONS, "diffusers": MAP_OPTIONS}


@dataclass(frozen=True, slots=True)
class _Request:
    """A name taken apart: its kind, which is a name alone or ``st`` or ``hf``, the model, and the options of ``hf``."""

    kind: str
    model: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The canonical name."""
        if not self.model:
            return self.kind
        if self.kind == "model":
            return self.model
        if self.kind == "clip":
            return f"st:{self.model}"
        given = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.kind}:{self.model}" + (f"@{given}" if given else "")


def load_encoder(
    name: str = MINILM, *, pinned: EncoderSpec | None = None, allow_network: bool = False,
    device: str | Device = "auto",
) -> Encoder | None:  # fmt: skip
    """The encoder of that name; None for ``none``.

    name: ``minilm``; ``minilm-int8``, the same with products in eight bits; ``st:NAME_OR_PATH``
        (sentence-transformers); ``hf:NAME_OR_PATH@layer=-2,pool=mean`` (transformers; pool mean, first, last or max;
        also normalize=true, max_tokens=N); a folder of either kind; a name that another package registers under the
        entry-point group ``embedstore.encoders``; or ``none``.
    pinned: what made the vectors of a space. The encoder is looked for where it was then, and must be
        the same.
    allow_network: whether a model that is not on this machine may be downloaded.
    device: ``cpu``; ``cuda``, ``cuda:1`` or ``all``, where all is encoded in half precision; ``auto``, where one query
        runs on the CPU, and many texts on a GPU that can be used. Encoders of other packages choose for themselves.

    The model itself is loaded when it is first used.
    Raises InvalidInput for a name or device that means nothing, EncoderUnavailable for a model that is missing or
    unusable, EncoderMismatch where it makes other vectors than ``pinned``, DeviceUnavailable where a GPU was asked for
    by name that torch cannot use.
    """
    chosen = choose_device(device)
    if name == NONE:
        if pinned is not None:
            raise EncoderMismatch(
                f"the vectors were made by {pinned.describe()}; the encoder given is 'none'"
            )
        return None
    external = _external(name)
    encoder = external if external is not None else _load(_understand(name), pinned, allow_network, chosen)
    if pinned is not None and encoder.spec.fingerprint != pinned.fingerprint:
        raise EncoderMismatch(
            f"the vectors were made by {pinned.describe()}, fingerprint {pinned.fingerprint};"
            f" the encoder given is {encoder.spec.describe()}, fingerprint {encoder.spec.fingerprint},"
            f" from {encoder.spec.location}; use the first, or make a new space with the second"
        )
    return encoder


def _understand(name: str) -> _Request:
    """Take a name apart; InvalidInput lists what names there are."""
    kind, colon, rest = name.partition(":")
    if name in (MINILM, MINILM_INT8):
        return _Request(name)
    if colon and kind == "st" and rest and is_cross_modal(Path(rest).expanduser()):
        return _Request("clip", _absolute(rest))
    if colon and kind in ("st", "hf", "diffusers") and rest:
        model, options = (rest, ()) if kind == "st" else _with_options(rest, _OPTIONS_OF[kind])
        return _Request(kind, _absolute(model), options)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if model_format(folder) in _OWN:
            return _Request("model", _absolute(name))
        if is_cross_modal(folder):
            return _Request("clip", _absolute(name))
        if read_latent_map_folder(folder) is not None:
            return _Request("diffusers", _absolute(name))
        if is_sentence_transformer(folder):
            return _Request("st", _absolute(name))
        if is_transformer(folder):
            return _Request("hf", _absolute(name))
        raise InvalidInput(f"the folder {name!r} holds no model: neither modules.json nor config.json")
    if folder.is_absolute():
        raise EncoderUnavailable(f"there is no folder {name!r} with the model of that encoder; put it back there")
    others = sorted(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS))
    also = f", {', '.join(others)}" if others else ""
    raise InvalidInput(f"there is no encoder {name!r}; possible are {_POSSIBLE}{also}")


def _absolute(model: str) -> str:
    """A local folder by its absolute path, so that the name holds in every folder; a hub name as it is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model


def _with_options(rest: str, known: tuple[str, ...]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Split ``NAME@layer=-2,pool=mean``; InvalidInput for an option that does not exist."""
    model, at, tail = rest.rpartition("@")
    if not at or "=" not in tail or not model:
        return rest, ()
    options: dict[str, str] = {}
    for part in tail.split(","):
        key, equals, value = part.partition("=")
        if not equals or key not in known or key in options:
            raise InvalidInput(f"the option {part!r} of {rest!r} is not one of {', '.join(known)}, once each")
        options[key] = value
    return model, tuple((key, options[key]) for key in known if key in options)


def _load(request: _Request, pinned: EncoderSpec | None, allow_network: bool, device: Device) -> Encoder:
    same = pinned is not None and pinned.name == request.name
    location = pinned.location if pinned is not None and same else None
    if request.kind in (MINILM, MINILM_INT8):
        load = load_minilm if request.kind == MINILM else load_minilm_int8
        model, spec = load(location, allow_network=allow_network)
        return TextEncoder(spec, model, device)
    folder = Path(location) if location is not None and Path(location).is_dir() else None
    if request.kind == "model":
        return _own(request.name, folder or _folder(request, allow_network), device)
    if request.kind == "clip":
        return CrossModalEncoder(request.name, folder or _folder(request, allow_network), device)
    if request.kind == "diffusers":
        place = folder or _folder(request, allow_network)
        found = read_latent_map_folder(place)
        if found is None:
            raise InvalidInput(f"{place} holds no autoencoder that diffusers: reads ({', '.join(CLASSES)}, {TAESD})")
        return LatentMapEncoder(request.name, found, dict(request.options), device)
    if request.kind == "hf" and _STATES & dict(request.options).keys():
        return _layer_encoder(request, folder, allow_network, device)
    model = _read(request, folder or _folder(request, allow_network))
    return TextEncoder(model.spec(request.name), model, device)


def _own(name: str, folder: Path, device: Device) -> Encoder:
    """The encoder of a model that embedstore trained."""
    if model_format(folder) == _IMAGE:
        from embedstore.encoders.image import image_encoder

        return image_encoder(name, folder, device)
    if model_format(folder) == _TABLE:
        from embedstore.encoders.table import table_encoder

        return table_encoder(name, folder, device)
    raise EncoderUnavailable(f"{folder} holds no model that this release can read; train it again")


def _folder(request: _Request, allow_network: bool) -> Path:
    """The local folder of a model by path or hub name, downloaded only where that is allowed."""
    folder = Path(request.model).expanduser()
    if folder.is_dir():
        return folder.resolve()
    looks_like_path = (
        folder.is_absolute() or request.model.startswith((".", "~")) or request.model.count("/") > 1
    )
    if looks_like_path:
        raise EncoderUnavailable(
            f"there is no folder {request.model!r}, which the encoder {request.name!r} needs"
        )
    repository = request.model
    if request.kind == "st" and "/" not in repository:
        repository = f"sentence-transformers/{repository}"
    cached = cached_snapshot(repository)
    if cached is not None:
        return cached
    if allow_network:
        return download_snapshot(repository)
    raise EncoderUnavailable(
        f"{repository} is neither a folder nor in the Hugging Face cache;"
        " give a path, or allow the download with --allow-download (in Python: allow_network=True)"
    )


def _layer_encoder(request: _Request, folder: Path | None, allow_network: bool, device: Device) -> Encoder:
    options = dict(request.options)
    if "normalize" in options:
        raise InvalidInput(f"{request.name!r}: normalize does not go with site; leave it out")
    found = folder or transformer_folder(request.model, allow_network=allow_network)
    return LayerEncoder(request.name, options, shared_model(found, options, device))


def transformer_folder(name: str, *, allow_network: bool = False) -> Path:
    """The folder of the transformer of a text model.

    name: ``minilm``, a folder, a hub name, or one of these behind ``hf:`` or ``st:``.
    """
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"a model is {name!r}; give a folder, a hub name or 'minilm'")
    kind, colon, rest = name.partition(":")
    request = _Request(kind, rest) if colon and kind in ("hf", "st") else _Request("hf", name)
    if request.model == MINILM:
        return load_minilm(allow_network=allow_network)[0].transformer
    folder = _folder(request, allow_network)
    return read_sentence_transformer(folder).transformer if is_sentence_transformer(folder) else folder


def _read(request: _Request, folder: Path) -> TextModel:
    if request.kind == "st":
        if not is_sentence_transformer(folder):
            raise InvalidInput(
                f"{folder} holds no sentence-transformers model (no modules.json); try hf:{request.model}"
            )
        return read_sentence_transformer(folder)
    options = dict(request.options)
    layer, max_tokens = (_integer(options, key) for key in ("layer", "max_tokens"))
    normalize = options.get("normalize", "false")
    if normalize not in ("true", "false"):
        raise InvalidInput(f"normalize is {normalize!r}; it must be true or false")
    return read_transformer(
        folder,
        layer=layer,
        pool=options.get("pool", "mean"),
        normalize=normalize == "true",
        max_tokens=max_tokens,
    )


def _integer(options: dict[str, str], key: str) -> int | None:
    if key not in options:
        return None
    try:
        return int(options[key])
    except ValueError:
        raise InvalidInput(f"{key} is {options[key]!r}; it must be a whole number") from None


def _external(name: str) -> Encoder | None:
    """The encoder that another package registers under this name, or under the part before a colon."""
    kind, _, argument = name.partition(":")
    points = importlib.metadata.entry_points(group=ENTRY_POINTS)
    for point in points:
        if point.name != kind or kind in (MINILM, MINILM_INT8, "st", "hf", "diffusers", NONE):
            continue
        try:
            make = point.load()
        except ImportError as error:
            raise EncoderUnavailable(
                f"the encoder {name!r} of {point.value} cannot be imported: {error}"
            ) from error
        encoder = make(argument)
        if not isinstance(encoder, Encoder):
            raise EncoderUnavailable(
                f"{point.value} made a {type(encoder).__name__}, not an encoder, for {name!r}"
            )
        return encoder
    return None
