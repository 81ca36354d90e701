"""Models in the Hugging Face cache, found without any import; fetched only where the network is allowed."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from embedstore.errors import EncoderUnavailable

logger = logging.getLogger("embedstore")

# Nothing that holds pickles, and no other runtime's copy of the weights.
_WANTED = ["*.json", "*.safetensors", "*.model", "vocab.txt", "merges.txt"]
_UNWANTED = ["onnx/*", "openvino/*", "*.bin", "*.h5", "*.ot", "*.msgpack"]


def hub_cache() -> Path:
    """The folder of the Hugging Face cache, by the same variables that huggingface_hub reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if home:
        return Path(home).expanduser() / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "huggingface" / "hub"


def cached_snapshot(repository: str, revision: str | None = None) -> Path | None:
    """The folder of a cached model that holds a config.json: the wanted revision's, else main's, else any."""
    root = hub_cache() / f"models--{repository.replace('/', '--')}"
    candidates = [revision] if revision else []
    try:
        candidates.append((root / "refs" / "main").read_text().strip())
    except (OSError, UnicodeDecodeError):
        pass
    try:
        candidates += sorted(entry.name for entry in (root / "snapshots").iterdir())
    except OSError:
        return None
    for name in candidates:
        folder = root / "snapshots" / name
        if name and (folder / "config.json").is_file():
            return folder
    return None


def download_snapshot(repository: str, revision: str | None = None, size: str | None = None) -> Path:
    """Fetch a model's JSON and safetensors files into the Hugging Face cache and return their folder.

    Raises EncoderUnavailable where the hub cannot be reached or has no such model.
    """
    what = f" ({size})" if size else ""
    logger.warning("downloading %s%s, revision %s, from huggingface.co", repository, what, revision or "main")
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    # The hub's client raises its own errors, requests', OSError and ValueError for the one fact: no model.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise EncoderUnavailable(
            f"{repository} could not be downloaded from huggingface.co: {reason}"
        ) from error
    return Path(folder)
