"""The folder of a trained model: ``config.json``, ``model.safetensors``, and texts for people beside them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.storage.files import scratch_folder, sync_folder
from embedstore.wording import first_line

CONFIG, WEIGHTS, CARD, REPORT = "config.json", "model.safetensors", "README.md", "report.html"
VERSION = 1
_DECISIVE = ("format", "version", "architecture")


def write_model(
    folder: Path, network: nn.Module, config: Mapping[str, Any], files: Mapping[str, str],
    tensors: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Write a model's folder, which must not exist; it appears whole.

    files: texts that are written beside it; tensors: what is kept with the network's weights.
    """
    from safetensors.torch import save

    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder, "model") as scratch:
        made = scratch / "made"
        made.mkdir(mode=0o700)
        held = {**network.state_dict(), **(tensors or {})}
        weights = {name: value.detach().cpu().contiguous() for name, value in held.items()}
        _write(made / WEIGHTS, save(weights, {"format": "pt"}))
        body = json.dumps({**config, "version": VERSION}, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        _write(made / CONFIG, body.encode())
        for name, text in files.items():
            _write(made / name, text.encode())
        sync_folder(made)
        if folder.is_dir():  # an empty one
            folder.rmdir()
        os.rename(made, folder)
        sync_folder(folder.parent)


def refuse_existing(folder: Path) -> None:
    """Raise InvalidInput where something is in the way of a new model's folder; an empty folder is not."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise InvalidInput(f"{folder} exists already; give another --out")


def _write(path: Path, body: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())


def read_config(folder: Path, format_: str, check: Callable[[Mapping[str, Any]], None]) -> dict[str, Any]:
    """What ``config.json`` says, held against a format and checked; EncoderUnavailable where it cannot be used."""
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        if found["format"] != format_:
            raise EncoderUnavailable(f"{folder} holds a model of kind {found['format']!r}, not {format_!r}")
        if found["version"] != VERSION:
            raise EncoderUnavailable(
                f"the model in {folder} has version {found['version']!r}; this release reads {VERSION}: upgrade"
                " embedstore"
            )
        check(found)
        if not isinstance(found["made"], dict):
            raise TypeError("what it was made of is no object")
    except EncoderUnavailable:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise EncoderUnavailable(f"{folder / CONFIG} cannot be used: {reason}; train the model again") from None
    return found


def decisive(config: Mapping[str, Any], *also: str) -> str:
    """SHA-256 in hex of what decides the vectors besides the weights."""
    parts = {name: config[name] for name in (*_DECISIVE, *also)}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load_weights(folder: Path, network: nn.Module) -> dict[str, Tensor]:
    """Give a network its weights; those that are not the network's come back. EncoderUnavailable where they cannot."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights = load_file(folder / WEIGHTS)
        own = network.state_dict().keys()
        network.load_state_dict({name: value for name, value in weights.items() if name in own})
    except (OSError, SafetensorError, RuntimeError) as error:
        first = first_line(error)
        raise EncoderUnavailable(f"{folder / WEIGHTS} cannot be used: {first}; train the model again") from None
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return {name: value for name, value in weights.items() if name not in own}

