"""Which of onnxruntime and torch encodes faster on this machine, measured once."""

from __future__ import annotations

import importlib.metadata
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedstore.encoders.batching import Tokens
from embedstore.encoders.cache import read_json, write_json
from embedstore.encoders.onnx_text import OnnxText, available_cores
from embedstore.encoders.torch_text import TorchText

logger = logging.getLogger("embedstore")

WORTH_TOKENS = 500_000
"""Loading torch costs about ten seconds; this many tokens cost minilm about eighty on two cores."""

_N_ROUNDS = 3
_N_TEXTS = 32


def remembered_winner(folder: Path) -> str | None:
    """``onnx`` or ``torch``, as measured on this machine with these versions; None where not measured."""
    known = read_json(folder / "race.json")
    winner = known.get("winner")
    return winner if known.get("machine") == _machine() and winner in ("onnx", "torch") else None


def run_race(folder: Path, onnx_text: OnnxText, torch_text: TorchText, texts: Sequence[Tokens]) -> str:
    """Time both on texts spread over ``texts``, in turn, and remember the winner: ``onnx`` or ``torch``.

    texts: token ids of the texts at hand, at least one.
    """
    sample = list(texts[:: max(1, len(texts) // _N_TEXTS)])[:_N_TEXTS]
    runners = {"onnx": onnx_text.encode, "torch": torch_text.encode}
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for encode in runners.values():  # the first run of each allocates
        encode(sample[:4])
    for _ in range(_N_ROUNDS):
        for name, encode in runners.items():
            began = time.perf_counter()
            encode(sample)
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    winner = min(medians, key=lambda name: medians[name])
    try:
        write_json(folder / "race.json", {"winner": winner, "median_seconds": medians, "machine": _machine()})
    except OSError as error:
        logger.debug("the faster runtime cannot be remembered: %s", error)
    return winner


def _machine() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in ("onnxruntime", "torch")}
    return {"n_cores": available_cores(), **versions}
