"""The encoder of texts: one query through onnxruntime, many texts through whichever runtime is faster."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.onnx_export import Export, ensure_export
from embedstore.encoders.onnx_text import OnnxText
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.race import WORTH_TOKENS, remembered_winner, run_race
from embedstore.encoders.spec import EncoderSpec
from embedstore.encoders.tokens import TextTokenizer, Tokens, checked
from embedstore.encoders.torch_text import TorchText, pad_id
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector

_TEXTS_AT_ONCE = 4096
"""Texts tokenized and sorted together: enough that neighbours are of like length, few enough to hold."""


class TextEncoder:
    """A text model behind the ``Encoder`` protocol, loaded when it is first used; threads may share it."""

    def __init__(self, spec: EncoderSpec, model: TextModel) -> None:
        self._spec = spec
        self._model = model
        self._lock = threading.RLock()
        self._started = False
        self._export: Export | None = None
        self._tokenizer: TextTokenizer | None = None
        self._onnx: OnnxText | None = None
        self._torch: TorchText | None = None
        self._winner: str | None = None
        self._n_bulk_tokens = 0

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode any number of texts for storing; no texts give vectors of shape (0, dim).

        Raises InvalidInput where an item is not a string or cannot be written as UTF-8,
        EncoderUnavailable where the model cannot be loaded.
        """
        if isinstance(texts, str):
            raise InvalidInput(
                "encode() takes a sequence of texts and was given one text; put it into a list"
            )
        vectors: FloatMatrix = np.empty((len(texts), self._spec.dim), dtype=np.float32)
        n_truncated = 0
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            window = [self._model.text_prompt + checked(text, start + offset)
                      for offset, text in enumerate(texts[start : start + _TEXTS_AT_ONCE])]  # fmt: skip
            ids, n_cut = self._tokens().encode_all(window)
            vectors[start : start + len(window)] = self._bulk(ids).encode(ids)
            n_truncated += n_cut
        return Encoded(vectors, n_truncated)

    def encode_query(self, text: str) -> FloatVector:
        """Encode one query with the least latency: float32, shape (dim,). Raises as ``encode`` does."""
        ids = self._tokens().encode(self._model.query_prompt + checked(text, None))
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
            self._tokenizer = self._onnx = self._torch = None

    def _tokens(self) -> TextTokenizer:
        """The tokenizer; the first call loads the model, exporting it if that was never done."""
        with self._lock:
            if not self._started:
                self._start()
                self._started = True
            assert self._tokenizer is not None
            return self._tokenizer

    def _start(self) -> None:
        self._export = ensure_export(self._model, self._spec)
        if self._export is not None:
            self._tokenizer = TextTokenizer(self._export.tokenizer, self._spec.max_tokens)
            self._onnx = OnnxText(self._export.graph, dim=self._spec.dim, pad_id=pad_id(self._model))
        else:
            self._torch = TorchText(self._model)
            self._tokenizer = TextTokenizer.from_tokenizer(self._torch.tokenizer, self._spec.max_tokens)

    def _bulk(self, ids: Sequence[Tokens]) -> OnnxText | TorchText:
        """What encodes these texts fastest; few texts are never worth loading torch."""
        with self._lock:
            if self._onnx is None or self._export is None:
                assert self._torch is not None
                return self._torch
            self._n_bulk_tokens += sum(map(len, ids))  # over all calls, since an ingest comes in batches
            if self._n_bulk_tokens < WORTH_TOKENS:
                return self._onnx
            self._winner = self._winner or remembered_winner(self._export.folder)
            if self._winner == "onnx":
                return self._onnx
            try:
                self._torch = self._torch or TorchText(self._model)
            except EncoderUnavailable:  # torch is absent or broken: onnxruntime does all
                self._winner = "onnx"
                return self._onnx
            if self._winner is None:
                self._winner = run_race(self._export.folder, self._onnx, self._torch, ids)
            return self._torch if self._winner == "torch" else self._onnx
