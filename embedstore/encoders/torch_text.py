"""Texts through sentence-transformers or transformers, with torch."""

from __future__ import annotations

import contextlib
import copy
import logging
import queue
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from embedstore.cores import usable_cores
from embedstore.encoders.batching import Ids, Tokens, pad, place_all
from embedstore.encoders.model_folder import TextModel
from embedstore.encoders.reference import CHECK_TEXTS
from embedstore.encoders.spec import TRANSFORMERS
from embedstore.encoders.threads import MOST_TOKENS, Plan
from embedstore.errors import DeviceUnavailable, EncoderUnavailable
from embedstore.model import FloatMatrix, FloatVector

logger = logging.getLogger("embedstore")

_TOKENS_ON_GPU = 32_768
LEAST_HALF_COSINE = 0.999
"""Between vectors in half and in single precision; minilm has 0.999998 where it was measured, on a CPU."""


class TorchText:
    """A model in torch: one copy of it on each device.

    tokenizer: a ``tokenizers.Tokenizer`` without padding or truncation. module: the first copy; maps input_ids and
    attention_mask to float32 vectors (n_texts, dim).
    On a GPU the transformer computes in half precision where that reproduces the vectors; pooling and what follows
    are in single precision everywhere. On the CPU torch shares each product among its threads, so one batch runs at a
    time, larger with more cores.
    """

    def __init__(self, model: TextModel, devices: Sequence[str] = ("cpu",), *, half: bool = False) -> None:
        """Load the model; EncoderUnavailable says why it cannot be.

        devices: names that torch knows. half: whether the transformer may compute in half precision.
        """
        self._dim = model.dim
        self.pad_id = pad_id(model)
        self.devices = tuple(devices)
        module, self.tokenizer = _loaded(model)
        with memory_told(self.devices[0]):
            self.module = module.to(self.devices[0])
            self.is_half = half and self._halve(model)
            if half and not self.is_half:
                self.module = _loaded(model)[0].to(self.devices[0])
            modules = [self.module] + [copy.deepcopy(self.module).to(device) for device in self.devices[1:]]
        self._idle: queue.SimpleQueue[tuple[Any, str]] = queue.SimpleQueue()
        for pair in zip(modules, self.devices, strict=True):
            self._idle.put(pair)

    def encode(self, texts: Sequence[Tokens]) -> FloatMatrix:
        """Vectors of many texts given as token ids: float32 (n_texts, dim)."""
        vectors: FloatMatrix = self.encode_to_device(texts).cpu().numpy()
        return vectors

    def encode_to_device(self, texts: Sequence[Tokens]) -> Any:
        """The same as a tensor on the first device."""
        import torch

        vectors = torch.empty((len(texts), self._dim), dtype=torch.float32, device=self.devices[0])

        def place(group: list[int], ids: Ids, mask: Ids) -> None:
            vectors[torch.as_tensor(group, device=vectors.device)] = self._run(ids, mask).to(vectors.device)

        place_all(texts, place, pad_id=self.pad_id, plan=self._plan())
        return vectors

    def encode_query(self, text: Tokens) -> FloatVector:
        """The vector of one text given as token ids: float32 (dim,)."""
        vector: FloatVector = self._run(*pad([text], self.pad_id))[0].cpu().numpy()
        return vector

    def _plan(self) -> Plan:
        on_cpu = self.devices[0] == "cpu"
        return Plan(len(self.devices), MOST_TOKENS * usable_cores() if on_cpu else _TOKENS_ON_GPU)

    def _run(self, ids: Ids, mask: Ids) -> Any:
        """Vectors of one batch as a float32 tensor on the device that was idle."""
        import torch

        module, device = self._idle.get()
        try:
            with memory_told(device), torch.no_grad():
                return module(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
        finally:
            self._idle.put((module, device))

    def _halve(self, model: TextModel) -> bool:
        """Turn the transformer to half precision; False where its vectors are no longer the same."""
        import torch

        def vectors() -> Any:
            ids = [self.tokenizer.encode(text).ids[: model.max_tokens] for text in CHECK_TEXTS]
            arrays = pad(ids, self.pad_id)
            with torch.no_grad():
                return self.module(*(torch.from_numpy(array).to(self.devices[0]) for array in arrays))

        exact = vectors()
        self.module.network.half()
        cosine = float(torch.nn.functional.cosine_similarity(vectors(), exact).min())
        if cosine >= LEAST_HALF_COSINE:  # false for what is not a number
            return True
        logger.info("the model in %s computes in single precision: half gives a cosine of %g", model.folder, cosine)
        return False


@contextlib.contextmanager
def memory_told(device: str) -> Iterator[None]:
    """Raise DeviceUnavailable where the device has too little memory."""
    import torch

    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:200]
        raise DeviceUnavailable(
            f"{device} has too little free memory for the encoder: {reason}; end what else uses it, or take"
            " device='cpu'"
        ) from error


def _loaded(model: TextModel) -> tuple[Any, Any]:
    """The module that pools, on the CPU, and a ``tokenizers.Tokenizer`` without padding or truncation."""
    with quiet():
        try:
            module, tokenizer = _load(model)
        # Libraries raise OSError, ValueError, KeyError and more for the one fact: no such model.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderUnavailable(f"the model in {model.folder} cannot be loaded: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise EncoderUnavailable(f"the model in {model.folder} has no fast tokenizer (tokenizer.json)")
    backend.no_padding()
    backend.no_truncation()
    return module.eval(), backend


def pad_id(model: TextModel) -> int:
    """The id that fills a batch; some models count positions by it, so it must be theirs."""
    given = model.architecture.get("pad_token_id")
    return given if isinstance(given, int) and given >= 0 else 0


_quiet_lock = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars for files that are read from disk, and no warnings about other people's code."""
    from transformers.utils import logging

    with _quiet_lock:
        shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.set_verbosity(40)  # errors alone
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logging.set_verbosity(level)
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
            states = self.network(**features).last_hidden_state.float()
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
            vectors = _pooled(torch, states.float(), attention_mask, model.pool)
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
