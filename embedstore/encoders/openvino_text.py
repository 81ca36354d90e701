"""Texts through OpenVINO, which reads the graph that was exported for onnxruntime."""

from __future__ import annotations

import importlib.util
import queue
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.cores import usable_cores
from embedstore.encoders.batching import Ids, Tokens, pad, run_all
from embedstore.encoders.threads import plan_bulk
from embedstore.errors import EncoderUnavailable
from embedstore.model import FloatMatrix

_opening = threading.Lock()


def has_openvino() -> bool:
    """Whether the package is installed; it is not imported."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoText:
    """An exported model on the CPU in float32, with as many one-thread streams as there are cores."""

    def __init__(self, graph: Path, *, dim: int, pad_id: int) -> None:
        """Open the graph; EncoderUnavailable says why it cannot be."""
        self._dim = dim
        self._pad_id = pad_id
        self._n_cores = usable_cores()
        try:
            with _opening:
                self._idle = _requests(graph, self._n_cores)
                # The first inference of a process must not meet another: the bindings look NumPy up under a lock of
                # their own and wait for Python's within it, so two that begin together could wait for ever.
                for n_tokens in (2, 3):
                    self._run(*pad([[0] * n_tokens], pad_id))
        # Its bindings raise RuntimeError for whatever they cannot read or run; a broken installation, ImportError.
        except (ImportError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderUnavailable(f"OpenVINO cannot run {graph}: {reason}") from error

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        plan = plan_bulk(sum(map(len, texts)), self._n_cores)
        return run_all(texts, self._run, dim=self._dim, pad_id=self._pad_id, plan=plan)

    def _run(self, ids: Ids, mask: Ids) -> FloatMatrix:
        request = self._idle.get()
        try:
            found = request.infer({"input_ids": ids, "attention_mask": mask})
            return np.array(found["sentence_embedding"], dtype=np.float32)  # copied: the request reuses its memory
        finally:
            self._idle.put(request)


def _requests(graph: Path, n_cores: int) -> queue.SimpleQueue[Any]:
    """One request for each core, of one compiled model."""
    from embedstore.encoders.quiet_openvino import load_openvino

    core = load_openvino().Core()
    compiled = core.compile_model(
        str(graph), "CPU",
        {
            "INFERENCE_PRECISION_HINT": "f32",  # else it takes bfloat16 where the processor has it
            "NUM_STREAMS": n_cores, "INFERENCE_NUM_THREADS": n_cores,
            "ENABLE_CPU_PINNING": False,  # other work may have the cores that it would choose
        },
    )  # fmt: skip
    idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for _ in range(n_cores):
        idle.put(compiled.create_infer_request())
    return idle
