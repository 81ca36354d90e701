"""The encoder of texts: one query through onnxruntime, many texts through whichever runtime is fastest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from embedstore.cores import usable_cores
from embedstore.devices import Device, DeviceKind
from embedstore.encoders.ahead import one_ahead
from embedstore.encoders.batching import Tokens
from embedstore.encoders.bulk import Bulk, Runner, installed_runtimes
from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.onnx_export import Export, ensure_export
from embedstore.encoders.onnx_text import OnnxText
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.race import Runtime
from embedstore.encoders.spec import MINILM_INT8, EncoderSpec
from embedstore.encoders.threads import tokenizing_threads, window_texts
from embedstore.encoders.tokens import TextTokenizer, checked
from embedstore.encoders.torch_device import may_have_gpu, torch_gpus
from embedstore.encoders.torch_text import TorchText, pad_id
from embedstore.errors import DeviceUnavailable, EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector

_LOG = logging.getLogger("embedstore")
_TEXTS_AT_ONCE = 256
"""Texts tokenized in one call, between which threads may change places."""


class TextEncoder:
    """A text model behind the ``Encoder`` protocol, loaded when it is first used; threads may share it."""

    def __init__(self, spec: EncoderSpec, model: TextModel, device: Device | None = None) -> None:
        """Raises DeviceUnavailable where ``device`` is a GPU that cannot be used; none means ``auto``."""
        self._spec = spec
        self._model = model
        self._device = device or Device()
        self._gpus = self._gpus_asked_for()
        self._lock = threading.RLock()
        self._started = False
        self._export: Export | None = None
        self._tokenizer: TextTokenizer | None = None
        self._onnx: OnnxText | None = None
        self._torch: TorchText | None = None
        self._bulk: Runner | None = None

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode any number of texts for storing; no texts give vectors of shape (0, dim).

        While one window of texts is encoded, the next is tokenized; no more than these two are held.
        Raises InvalidInput where an item is not a string or cannot be written as UTF-8,
        EncoderUnavailable where the model cannot be loaded.
        """
        vectors: FloatMatrix = np.empty((_count(texts), self._spec.dim), dtype=np.float32)
        start = n_truncated = 0
        for ids, n_cut in self._tokenized(texts):
            assert self._bulk is not None, "_tokens() starts the model"
            vectors[start : start + len(ids)] = self._bulk.encode(ids)
            start += len(ids)
            n_truncated += n_cut
        return Encoded(vectors, n_truncated)

    def encode_to_device(self, texts: Sequence[str]) -> Any:
        """The vectors of ``encode`` as a torch tensor on the GPU, float32 (n, dim), without a way through the host.

        Raises DeviceUnavailable where no GPU can be used, and otherwise as ``encode``.
        """
        import torch

        _count(texts)
        self._tokens()
        on_gpu = self._loaded_on_gpu()
        parts = [on_gpu.encode_to_device(ids) for ids, _ in self._tokenized(texts)]
        return torch.cat(parts) if parts else on_gpu.encode_to_device([])

    def encode_query(self, text: str) -> FloatVector:
        """Encode one query with the least latency: float32, shape (dim,). Raises as ``encode`` does."""
        tokens, prompted = self._tokens(), self._model.query_prompt + checked(text, None)
        ids = tokens.encode(prompted)
        if len(ids) >= self._spec.max_tokens and (n := tokens.count(prompted)) > len(ids):
            reads = f"{self._spec.name!r} reads {len(ids):,}"
            _LOG.warning("the query has %s tokens, of which %s; its end was left out", f"{n:,}", reads)
        runner = self._onnx or self._torch
        assert runner is not None, "_tokens() starts the model"
        return runner.encode_query(ids)

    def count_tokens(self, text: str) -> int:
        """How many tokens the whole text has, special ones included, however many are read."""
        return self._tokens().count(text)

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        with self._lock:
            self._started = False
            self._tokenizer = self._onnx = self._torch = self._bulk = None

    def _tokenized(self, texts: Sequence[str]) -> Iterator[tuple[list[Tokens], int]]:
        """Ids of each window of texts, and how many of its texts were truncated."""
        tokenizer, gpu = self._tokens(), bool(self._gpus)
        n_cores = usable_cores()

        def work(part: range) -> tuple[list[Any], int]:
            given = texts[part.start : part.stop]
            return tokenizer.encode_all(given, prompt=self._model.text_prompt, first=part.start)

        whole = _parts(range(len(texts)), window_texts(n_cores, gpu=gpu))
        windows = [_parts(window, _TEXTS_AT_ONCE) for window in whole]
        if len(texts) <= _TEXTS_AT_ONCE:  # not worth a thread
            tokenized: Iterator[list[tuple[list[Any], int]]] = ([work(part) for part in parts] for parts in windows)
        else:
            tokenized = one_ahead(windows, work, tokenizing_threads(n_cores, gpu=gpu))
        for done in tokenized:
            yield [ids for part, _ in done for ids in part], sum(n_cut for _, n_cut in done)

    def _tokens(self) -> TextTokenizer:
        """The tokenizer; the first call loads the model, exporting it if that was never done."""
        with self._lock:
            if not self._started:
                self._start()
                self._started = True
            assert self._tokenizer is not None
            return self._tokenizer

    def _start(self) -> None:
        if not self._gpus:
            self._export = ensure_export(self._model, self._spec)
            if self._export is not None:
                self._start_exported(self._export)
                return
            if self._spec.family == MINILM_INT8:
                raise EncoderUnavailable(
                    "minilm-int8 cannot run on the onnxruntime that is installed; take minilm, or another version"
                )
        devices = self._gpus or self._torch_devices()
        self._torch = TorchText(self._model, devices, half=devices != ["cpu"])
        self._bulk = self._torch
        self._tokenizer = TextTokenizer.from_tokenizer(self._torch.tokenizer, self._spec.max_tokens)

    def _start_exported(self, export: Export) -> None:
        self._tokenizer = TextTokenizer(export.tokenizer, self._spec.max_tokens)
        self._onnx = OnnxText(export.graph, dim=self._spec.dim, pad_id=pad_id(self._model))
        only_onnx = self._spec.family == MINILM_INT8  # others would make other vectors
        self._bulk = Bulk(
            self._model, export.graph, self._onnx, gpu=not only_onnx and self._may_take_gpu(),
            installed=[Runtime.ONNX] if only_onnx else installed_runtimes(),
        )  # fmt: skip

    def _gpus_asked_for(self) -> list[str]:
        """The GPUs that were asked for by name; none where none was."""
        if not self._device.must_be_gpu:
            return []
        if self._spec.family == MINILM_INT8:
            raise DeviceUnavailable(
                f"minilm-int8 runs on the CPU alone, not on device {str(self._device)!r}; take minilm there, or"
                " device='cpu'"
            )
        return torch_gpus(self._device)

    def _may_take_gpu(self) -> bool:
        return self._device.kind is DeviceKind.AUTO and may_have_gpu()

    def _torch_devices(self) -> list[str]:
        """Where a model runs that only torch can run."""
        try:
            return torch_gpus(self._device) if self._may_take_gpu() else ["cpu"]
        except DeviceUnavailable:
            return ["cpu"]

    def _loaded_on_gpu(self) -> TorchText:
        with self._lock:
            if self._torch is None or self._torch.devices[0] == "cpu":
                self._torch = TorchText(self._model, torch_gpus(self._device), half=True)
            return self._torch


def _parts(whole: range, size: int) -> list[range]:
    """``whole`` cut into ranges of ``size``, the last one shorter."""
    return [whole[start : start + size] for start in range(0, len(whole), size)]


def _count(texts: Sequence[str]) -> int:
    """How many texts there are; InvalidInput where one text was given in the place of many."""
    if isinstance(texts, str):
        raise InvalidInput("encode() takes a sequence of texts and was given one text; put it into a list")
    return len(texts)
