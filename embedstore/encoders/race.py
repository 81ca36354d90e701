"""Which runtime encodes fastest on this machine: measured on work that has to be done anyway, and remembered."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path

import numpy as np

from embedstore.cores import usable_cores
from embedstore.encoders.batching import Tokens
from embedstore.encoders.cache import read_json, write_json
from embedstore.encoders.reference import differs
from embedstore.model import FloatMatrix

logger = logging.getLogger("embedstore")

Encode = Callable[[Sequence[Tokens]], FloatMatrix]


class Runtime(Enum):
    """What can run a text model."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TORCH = "torch"


OPENVINO_TOKENS = 20_000
"""For each core, before OpenVINO is opened: that costs half a second of a core, minilm some five for these tokens."""

TORCH_TOKENS = 250_000
"""For each core, before torch is loaded: that costs some ten seconds of a core, minilm sixty for these tokens."""

N_HEATS = 5
HAND_TOKENS = 2048
"""For each core, what one runtime gets in a heat, where there is enough."""

_LEAST_TEXTS = 8
"""In a hand."""

_LEAST_GAIN = 0.02
"""By how much another must be faster to be taken over onnxruntime, which is open already."""

_PACKAGES = ("onnxruntime", "openvino", "torch", "transformers")


def contenders(n_tokens: int, n_cores: int, installed: Sequence[Runtime]) -> tuple[Runtime, ...]:
    """Those of the ``installed`` runtimes that are worth opening for a process that encodes ``n_tokens`` in all."""
    worth = {Runtime.ONNX: 0, Runtime.OPENVINO: OPENVINO_TOKENS * n_cores, Runtime.TORCH: TORCH_TOKENS * n_cores}
    return tuple(runtime for runtime in Runtime if runtime in installed and n_tokens >= worth[runtime])


def fastest(ratios: Mapping[Runtime, float], among: Sequence[Runtime]) -> Runtime:
    """The runtime of the least ratio; onnxruntime where none is faster by 2 %."""
    faster = [one for one in among if ratios.get(one, 1.0) <= 1 - _LEAST_GAIN]
    return min(faster, key=lambda one: ratios[one], default=Runtime.ONNX)


class Race:
    """Gives each runtime its share of texts, by turns, until all have had five heats.

    The texts of a heat are dealt in the order of their lengths, so that all get the like; what is compared is the time
    for a token, with that of onnxruntime in the same heat. Then other work on the machine counts for all alike, and
    the median over the heats passes over a disturbance of one. A runtime whose vectors are not those of onnxruntime is
    out of the race.
    """

    def __init__(self, encoders: Mapping[Runtime, Encode]) -> None:
        """encoders: what encodes token ids, by runtime; onnxruntime is among them."""
        self._encoders = dict(encoders)
        self._ratios: dict[Runtime, list[float]] = {runtime: [] for runtime in encoders}
        self._out: set[Runtime] = set()
        self._warm = False

    @property
    def runtimes(self) -> tuple[Runtime, ...]:
        """What races."""
        return tuple(self._encoders)

    @property
    def is_over(self) -> bool:
        """Whether nothing remains to be measured."""
        return len(self._ratios[Runtime.ONNX]) >= N_HEATS

    def ratios(self) -> dict[Runtime, float]:
        """Of each runtime that may be chosen its time for a token, as a share of onnxruntime's."""
        return {
            runtime: statistics.median(values)
            for runtime, values in self._ratios.items()
            if values and runtime not in self._out
        }

    def encode(self, texts: Sequence[Tokens], dim: int) -> tuple[FloatMatrix, list[int]]:
        """Encode texts in as many heats as are due.

        Returns vectors float32 (n_texts, dim), and the positions of the texts that were left over, whose rows are not
        filled.
        """
        vectors: FloatMatrix = np.empty((len(texts), dim), dtype=np.float32)
        hands = self._deal(texts)
        if len(hands) > 1 and not self._warm:
            self._warm_up([texts[position] for position in hands[0][:4]])
        while len(hands) >= len(self._encoders) > 1 and not self.is_over:
            self._heat(texts, [hands.pop() for _ in self._encoders], vectors)
        return vectors, sorted(position for hand in hands for position in hand)

    def _deal(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """Positions in hands of like texts, as many for each runtime; all in one hand where that would be few."""
        n_tokens, n_runtimes = sum(map(len, texts)), len(self._encoders)
        n_heats = max(1, n_tokens // (HAND_TOKENS * usable_cores() * n_runtimes))
        n_hands = n_runtimes * min(n_heats, len(texts) // (_LEAST_TEXTS * n_runtimes)) or 1
        order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
        return [order[start::n_hands] for start in range(n_hands)]

    def _warm_up(self, texts: list[Tokens]) -> None:
        """Let each runtime allocate, and compare its vectors with onnxruntime's."""
        exact = self._encoders[Runtime.ONNX](texts)
        for runtime, encode in self._encoders.items():
            wrong = None if runtime is Runtime.ONNX else differs(encode(texts), exact)
            if wrong is not None:
                logger.warning("%s is not used, since its %s", runtime.value, wrong)
                self._out.add(runtime)
        self._warm = True

    def _heat(self, texts: Sequence[Tokens], hands: list[list[int]], vectors: FloatMatrix) -> None:
        turn = len(self._ratios[Runtime.ONNX]) % len(hands)  # nobody is always first
        runtimes = list(self._encoders)
        seconds_per_token: dict[Runtime, float] = {}
        for runtime, hand in zip(runtimes[turn:] + runtimes[:turn], hands, strict=True):
            given = [texts[position] for position in hand]
            encode = self._encoders[Runtime.ONNX if runtime in self._out else runtime]
            began = time.perf_counter()
            vectors[hand] = encode(given)
            seconds_per_token[runtime] = (time.perf_counter() - began) / sum(map(len, given))
        for runtime, seconds in seconds_per_token.items():
            self._ratios[runtime].append(seconds / seconds_per_token[Runtime.ONNX])


def remember_ratios(folder: Path, ratios: Mapping[Runtime, float], raced: Sequence[Runtime]) -> None:
    """Keep the outcome beside the export, for this machine, its cores and these versions."""
    machine = _machine()
    outcome = {
        "machine": machine, "raced": [runtime.value for runtime in raced],
        "ratios": {runtime.value: round(ratio, 4) for runtime, ratio in ratios.items()},
    }  # fmt: skip
    try:
        write_json(_memory(folder, machine), outcome)
    except OSError as error:
        logger.debug("the faster runtime cannot be remembered: %s", error)


def remembered_ratios(folder: Path) -> tuple[dict[Runtime, float], tuple[Runtime, ...]]:
    """The ratios, and which runtimes they were measured for; both empty where nothing is known."""
    machine = _machine()
    known = read_json(_memory(folder, machine))
    try:
        if known["machine"] != machine:
            return {}, ()
        ratios = {Runtime(word): float(ratio) for word, ratio in known["ratios"].items()}
        return ratios, tuple(Runtime(word) for word in known["raced"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}, ()


def _memory(folder: Path, machine: Mapping[str, str | int]) -> Path:
    """A file for each kind of machine, since several may share the folder."""
    digest = hashlib.blake2b(json.dumps(machine, sort_keys=True).encode(), digest_size=6).hexdigest()
    return folder / f"race-{digest}.json"


def _machine() -> dict[str, str | int]:
    """What decides which runtime is faster."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = ""
    return {"cpu": _cpu(), "n_cores": usable_cores(), **versions}


def _cpu() -> str:
    """The processor's name and what it can do, as far as the system says."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    said = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines if line.startswith(wanted)}
    abilities = said.get("flags") or said.get("Features") or ""
    digest = hashlib.blake2b(abilities.encode(), digest_size=4).hexdigest()
    return f"{said.get('model name') or said.get('CPU part') or platform.machine()} {digest}"
