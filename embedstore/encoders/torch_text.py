"""Texts through sentence-transformers or transformers, with torch."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.encoders.batching import Tokens, pad, run_all
from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.spec import TRANSFORMERS
from embedstore.errors import EncoderUnavailable
from embedstore.model import FloatMatrix, FloatVector

_TOKENS_PER_BATCH = {"cpu": 1024, "cuda": 32768}


class TorchText:
    """A model in torch, on the graphics card where torch finds one that it can use.

    module: maps input_ids and attention_mask to vectors (n_texts, dim). tokenizer: a ``tokenizers.Tokenizer``
    without padding or truncation.
    """

    def __init__(self, model: TextModel, device: str | None = None) -> None:
        """Load the model; EncoderUnavailable says why it cannot be."""
        import torch

        self._dim = model.dim
        self.pad_id = pad_id(model)
        with _quiet():
            try:
                self.module, tokenizer = _load(model)
            # Libraries raise OSError, ValueError, KeyError and more for the one fact: no such model.
            except Exception as error:
                reason = " ".join(str(error).split())[:300]
                raise EncoderUnavailable(f"the model in {model.folder} cannot be loaded: {reason}") from error
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise EncoderUnavailable(f"the model in {model.folder} has no fast tokenizer (tokenizer.json)")
        backend.no_padding()
        backend.no_truncation()
        self.tokenizer: Any = backend
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.module.to(self.device).eval()

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        return run_all(
            texts, self._run, dim=self._dim, pad_id=self.pad_id,
            tokens_per_batch=_TOKENS_PER_BATCH.get(self.device, 1024), n_workers=1,
        )  # fmt: skip

    def encode_query(self, text: Tokens) -> FloatVector:
        """The vector of one text given as token ids: float32 (dim,)."""
        vector: FloatVector = self._run(*pad([text], self.pad_id))[0]
        return vector

    def _run(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64]) -> FloatMatrix:
        import torch

        with torch.inference_mode():
            vectors = self.module(
                torch.from_numpy(ids).to(self.device), torch.from_numpy(mask).to(self.device)
            )
        return np.ascontiguousarray(vectors.float().cpu().numpy(), dtype=np.float32)


def pad_id(model: TextModel) -> int:
    """The id that fills a batch; some models count positions by it, so it must be theirs."""
    given = model.architecture.get("pad_token_id")
    return given if isinstance(given, int) and given >= 0 else 0


_quiet_lock = threading.RLock()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars for files that are read from disk, and no warnings about other people's code."""
    from transformers.utils import logging

    with _quiet_lock:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            if shown:
                logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load(model: TextModel) -> tuple[Any, Any]:
    """The module that pools, on the CPU in float32, and the library's tokenizer."""
    import torch

    options = {"use_safetensors": True, "dtype": torch.float32}
    if model.family == TRANSFORMERS:
        from transformers import AutoModel, AutoTokenizer

        where = str(model.folder)
        tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        network = AutoModel.from_pretrained(where, local_files_only=True, trust_remote_code=False, **options)
        return _hidden_states_module(network.eval(), model), tokenizer
    from sentence_transformers import SentenceTransformer

    sentence_model = SentenceTransformer(
        str(model.folder), device="cpu", local_files_only=True, trust_remote_code=False, model_kwargs=options
    )
    return _sentence_module(sentence_model.eval()), sentence_model.tokenizer


def _sentence_module(sentence_model: Any) -> Any:
    from torch import Tensor, nn

    class SentenceVectors(nn.Module):
        """A sentence-transformers pipeline as a function of two tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.pipeline = sentence_model
            self.network = sentence_model[0].auto_model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            features = {"input_ids": input_ids, "attention_mask": attention_mask}
            states = self.network(**features).last_hidden_state
            features = {"attention_mask": attention_mask, "token_embeddings": states}
            for index in range(1, len(self.pipeline)):
                features = self.pipeline[index](features)
            vectors: Tensor = features["sentence_embedding"]
            return vectors

    return SentenceVectors()


def _hidden_states_module(network: Any, model: TextModel) -> Any:
    import torch
    from torch import Tensor, nn

    is_last = model.layer == int(getattr(network.config, "num_hidden_layers", -1))

    # Decoders would also return keys and values of attention, which nobody reads.
    no_cache = {"use_cache": False} if hasattr(network.config, "use_cache") else {}

    class HiddenStates(nn.Module):
        """One hidden state of a transformer, pooled, as a function of two tensors."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            found = self.network(
                input_ids=input_ids,
                attention_mask=attention_mask,
                output_hidden_states=not is_last,
                **no_cache,
            )
            states = found.last_hidden_state if is_last else found.hidden_states[model.layer]
            vectors = _pooled(torch, states, attention_mask, model.pool)
            return nn.functional.normalize(vectors, dim=1) if model.normalize else vectors

    return HiddenStates()


def _pooled(torch: Any, states: Any, mask: Any, pool: str) -> Any:
    """Reduce states (n_texts, n_tokens, dim), padded on the right, to (n_texts, dim)."""
    if pool == "first":
        return states[:, 0]
    if pool == "last":
        last = (mask.sum(dim=1) - 1).clamp(min=0)
        return states.gather(1, last.view(-1, 1, 1).expand(-1, 1, states.shape[-1])).squeeze(1)
    weight = mask.unsqueeze(-1).to(states.dtype)
    if pool == "max":
        return states.masked_fill(weight == 0, float("-inf")).max(dim=1).values
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1e-9)
