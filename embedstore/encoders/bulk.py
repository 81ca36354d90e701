"""Many texts as token ids, through the runtime that is fastest for that many."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from embedstore.cores import usable_cores
from embedstore.devices import Device
from embedstore.encoders.batching import Tokens
from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.onnx_text import OnnxText
from embedstore.encoders.openvino_text import OpenVinoText, has_openvino
from embedstore.encoders.race import Race, Runtime, contenders, fastest, remember_ratios, remembered_ratios
from embedstore.encoders.torch_device import torch_gpus
from embedstore.encoders.torch_text import TorchText, pad_id
from embedstore.errors import DeviceUnavailable, EncoderUnavailable
from embedstore.model import FloatMatrix

logger = logging.getLogger("embedstore")

GPU_TOKENS = 50_000
"""For each core, before torch is loaded for a GPU that was not asked for by name: that costs about ten seconds."""


class Runner(Protocol):
    """A model in one runtime."""

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        ...


class Bulk:
    """Holds the runtimes that were opened for one exported model; threads may share it.

    What a process encodes counts over all calls, since an ingest comes in batches: the more it is, the more is worth
    opening. Which of them is fastest is known from earlier, or a race on the texts at hand decides.
    """

    def __init__(
        self, model: TextModel, graph: Path, onnx: OnnxText, *, installed: Sequence[Runtime], gpu: bool
    ) -> None:
        """installed: the runtimes to choose from. gpu: whether to ask torch for a GPU once it is worth it."""
        self._model = model
        self._graph = graph
        self._installed = list(installed)
        self._gpu = gpu
        self._lock = threading.RLock()
        self._runners: dict[Runtime, Runner] = {Runtime.ONNX: onnx}
        self._on_gpu: TorchText | None = None
        self._outcome: tuple[dict[Runtime, float], tuple[Runtime, ...]] | None = None
        self._race: Race | None = None
        self._n_tokens = 0

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        with self._lock:
            self._n_tokens += sum(map(len, texts))
            runner = self._gpu_runner() or self._known_fastest()
            if runner is None:
                return self._encode_racing(texts)
        return runner.encode(texts)

    def _gpu_runner(self) -> TorchText | None:
        """The model on a GPU, where there is one and enough to do."""
        if self._on_gpu is None and self._gpu and self._n_tokens >= GPU_TOKENS * usable_cores():
            try:
                self._on_gpu = TorchText(self._model, torch_gpus(Device()), half=True)
            except (DeviceUnavailable, EncoderUnavailable) as error:
                logger.info("texts are encoded on the CPU: %s", error)
                self._gpu = False
        return self._on_gpu

    def _contenders(self) -> tuple[Runtime, ...]:
        return contenders(self._n_tokens, usable_cores(), self._installed)

    def _known_fastest(self) -> Runner | None:
        """What was fastest among all that is worth opening; None where that was not measured yet."""
        eligible = self._contenders()
        if eligible == (Runtime.ONNX,):
            return self._runners[Runtime.ONNX]
        if self._outcome is None:
            self._outcome = remembered_ratios(self._graph.parent)
        ratios, raced = self._outcome
        return self._opened(fastest(ratios, eligible)) if set(eligible) <= set(raced) else None

    def _encode_racing(self, texts: Sequence[Tokens]) -> FloatMatrix:
        for runtime in self._contenders():  # opening one that is broken makes the contenders fewer
            self._opened(runtime)
        racing = self._contenders()
        if self._race is None or self._race.runtimes != racing:
            self._race = Race({runtime: self._runners[runtime].encode for runtime in racing})
        vectors, left_over = self._race.encode(texts, self._model.dim)
        winner = Runtime.ONNX
        if self._race.is_over:
            self._outcome = (self._race.ratios(), racing)
            remember_ratios(self._graph.parent, *self._outcome)
            winner = fastest(self._outcome[0], racing)
            self._race = None
            for runtime in set(racing) - {Runtime.ONNX, winner}:  # their memory is worth more
                del self._runners[runtime]
        if left_over:
            vectors[left_over] = self._runners[winner].encode([texts[position] for position in left_over])
        return vectors

    def _opened(self, runtime: Runtime) -> Runner:
        """The model in that runtime; in onnxruntime where it cannot be opened, and then it is not tried again."""
        if runtime not in self._runners:
            try:
                self._runners[runtime] = (
                    OpenVinoText(self._graph, dim=self._model.dim, pad_id=pad_id(self._model))
                    if runtime is Runtime.OPENVINO
                    else TorchText(self._model)
                )
            except EncoderUnavailable as error:
                logger.info("%s is not used: %s", runtime.value, error)
                self._installed.remove(runtime)
                return self._runners[Runtime.ONNX]
        return self._runners[runtime]


def installed_runtimes() -> list[Runtime]:
    """The runtimes whose packages are installed; none is imported."""
    has = {
        Runtime.ONNX: True, Runtime.OPENVINO: has_openvino(),
        Runtime.TORCH: importlib.util.find_spec("torch") is not None,
    }  # fmt: skip
    return [runtime for runtime in Runtime if has[runtime]]
