"""Texts through onnxruntime: no torch, no transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from embedstore.cores import usable_cores
from embedstore.encoders.batching import Ids, Tokens, pad, run_all
from embedstore.encoders.threads import plan_bulk
from embedstore.model import FloatMatrix, FloatVector

_QUERIES_BEFORE_PACKING = 16


class OnnxText:
    """An exported model, opened when it is first used.

    Opening it without packing the weights for the matrix product takes 10 ms and a query then 10 ms;
    packing them takes 50 ms and memory of the weights' size, and a query then 5 ms. So a process that asks
    once does not pack, and one that encodes in bulk or goes on asking does.
    Each run uses one thread; a bulk runs as many at once as there are cores, which was faster by a tenth than
    one run on all cores.
    """

    def __init__(self, graph: Path, *, dim: int, pad_id: int) -> None:
        self._graph = graph
        self._dim = dim
        self._pad_id = pad_id
        self._lock = Lock()
        self._session: Any = None
        self._packed = False
        self._n_queries = 0

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        session = self._open(packed=True)
        return run_all(
            texts, lambda ids, mask: run_session(session, ids, mask), dim=self._dim, pad_id=self._pad_id,
            plan=plan_bulk(sum(map(len, texts)), usable_cores()),
        )  # fmt: skip

    def encode_query(self, text: Tokens) -> FloatVector:
        """The vector of one text given as token ids: float32 (dim,)."""
        self._n_queries += 1
        session = self._open(packed=self._n_queries > _QUERIES_BEFORE_PACKING)
        vector: FloatVector = run_session(session, *pad([text], self._pad_id))[0]
        return vector

    def _open(self, *, packed: bool) -> Any:
        with self._lock:
            if self._session is None or (packed and not self._packed):
                self._session = open_session(self._graph, packed=packed)
                self._packed = packed
            return self._session


def open_session(graph: Path, *, packed: bool) -> Any:
    """An onnxruntime session on one thread of the CPU."""
    from embedstore.encoders.quiet_onnx import load_onnxruntime

    onnxruntime = load_onnxruntime()

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # The file was optimised when it was written.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, ids: Ids, mask: Ids) -> FloatMatrix:
    """Vectors, float32 (n_texts, dim), of padded ids and their mask."""
    vectors: FloatMatrix = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
    return np.ascontiguousarray(vectors, dtype=np.float32)
