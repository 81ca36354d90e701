"""A transformer whose states are read: loaded by path or name, run over batches of like length."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.checks import check_whole
from embedstore.cores import usable_cores
from embedstore.encoders.batching import batches
from embedstore.encoders.model_folder import COUNT_FROM_PADDING, TextModel, read_transformer
from embedstore.encoders.registry import transformer_folder
from embedstore.encoders.threads import MOST_TOKENS, WhileUsed
from embedstore.encoders.tokens import TextTokenizer, checked
from embedstore.encoders.torch_text import memory_told, pad_id, quiet
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix
from embedstore.states.anatomy import Anatomy, anatomy_of
from embedstore.states.pooling import POOLS, pooled
from embedstore.states.recording import Stopped, recording
from embedstore.states.taps import FINAL_NORM, HEAD, Tap, taps_of

Take = Callable[["Batch", Tap, Any, Any], None]
"""Takes a batch, a place, the states there (n_texts, n_tokens, dim), and which tokens are pooled, as tensors."""

DTYPES = ("float32", "bfloat16", "float16")
STACKS = ("encoder", "decoder")
_BY_MASK = ("opt", "t5", "mt5", "umt5", "bloom")  # whose positions follow from the mask, or are relative
_NOT_USED = ("pooler",)
_TOKENS_ON_GPU = 32_768


class NoTokens(InvalidInput):
    """A text has no tokens to pool; ``position`` is its place among the texts that were given."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the text at position {position} has no tokens, so it has no states; leave it out")
        self.position = position


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Token ids of one text, at most as many as the model reads.

    special: bool (n_tokens,), those that stand for no part of the text. offsets: int64 (n_tokens, 2), the characters
    of the text that a token stands for. truncated: whether the text went on.
    """

    ids: npt.NDArray[np.int32]
    special: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    truncated: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts that are run together: their places among all, input_ids and attention_mask, int64 (n_texts, n_tokens)."""

    places: list[int]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    kept: npt.NDArray[np.int64]
    """Of the tokens those that are pooled."""


class StateModel:
    """A transformer without its head, in evaluation mode. Threads may share it."""

    def __init__(
        self, model: TextModel, network: Any, tokenizer: Any, *, stack: str | None = None, device: str = "cpu",
        padding: str = "right", random_seed: int | None = None, dtype: str = "float32", threads: int | None = None,
    ) -> None:  # fmt: skip
        """padding: the side on which batches are padded. threads: how many cores are used on the CPU; None for all."""
        self.model = model
        self.network = network
        self.tokenizer = tokenizer
        self.stack = stack
        self.device = device
        self.padding = padding
        self.random_seed = random_seed
        self.dtype = dtype
        self.threads = threads or usable_cores()
        part = network
        if stack is not None:
            part = network.get_encoder() if stack == "encoder" else network.get_decoder()
        self._run = part if stack == "encoder" else network
        self.anatomy: Anatomy = anatomy_of(part, str(model.folder), stack)
        kind = str(model.architecture.get("model_type"))
        self._takes_positions = "position_ids" in _parameters(self._run) and kind not in COUNT_FROM_PADDING
        if padding == "left" and not self._takes_positions and kind not in _BY_MASK:
            raise InvalidInput(f"a {kind} model counts positions from the left end of a batch; take padding='right'")
        self._takes_cache = "use_cache" in _parameters(self._run)
        self._pad_id = pad_id(model)
        self._counter = TextTokenizer.from_tokenizer(tokenizer, model.max_tokens)
        self._lock = threading.RLock()

    @property
    def n_layers(self) -> int:
        """Blocks; there are as many layers and one more, for the embeddings."""
        return self.anatomy.n_layers

    def taps(self, sites: Sequence[str], layers: Any) -> list[Tap]:
        """The places of sites and layers; InvalidInput for those that the model does not have."""
        found = taps_of(sites, layers, self.n_layers, self.anatomy.n_heads, where=self.anatomy.where)
        for tap in found:
            self.check(tap)
        return found

    def check(self, tap: Tap) -> None:
        """InvalidInput for a place that the model does not have."""
        if tap.site == FINAL_NORM and self.anatomy.final_norm is None:
            raise InvalidInput(
                f"{self.anatomy.where} has no final norm: the state after its last block is its output; take 'hidden'"
            )
        if tap.layer > self.n_layers:
            raise InvalidInput(f"layer {tap.layer} is not there: {self.anatomy.where} has 0 to {self.n_layers}")
        if tap.site in ("attention", "mlp", HEAD):
            self.anatomy.require(tap.site)
        if tap.site == HEAD:
            if tap.head is None or not 0 <= tap.head < self.anatomy.n_heads:
                last = self.anatomy.n_heads - 1
                raise InvalidInput(f"head {tap.head} is not there: {self.anatomy.where} has 0 to {last}")

    def dim_of(self, tap: Tap) -> int:
        """Numbers of the states at a place."""
        if tap.site != HEAD:
            return self.anatomy.dim
        given = self.model.architecture.get("head_dim", self.model.architecture.get("d_kv"))
        return given if isinstance(given, int) else self.anatomy.dim // self.anatomy.n_heads

    def tokenize(self, texts: Sequence[str], *, first: int = 0) -> list[Tokenized]:
        """Texts as token ids with the special ones that the model's tokenizer adds, cut where they are too long."""
        given = [checked(text, place) for place, text in enumerate(texts, start=first)]
        try:
            encodings = self.tokenizer.encode_batch(given)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidInput(f"a text cannot be written as UTF-8: {error}") from None
        return [
            Tokenized(
                np.array(one.ids, np.int32), np.array(one.special_tokens_mask, bool),
                np.array(one.offsets, np.int64).reshape(-1, 2), bool(one.overflowing),
            )
            for one in encodings
        ]  # fmt: skip

    def batched(
        self, texts: Sequence[Tokenized], *, special: bool = True, at_most: int | None = None, first: int = 0
    ) -> list[Batch]:
        """Texts in batches of like length, the longest first.

        special: whether special tokens are pooled, too. NoTokens for a text of which nothing is left to pool; first:
        the position of the first text among all that were given, for errors.
        """
        empty = next((place for place, one in enumerate(texts) if not len(one.ids)), None)
        if empty is None and not special:
            empty = next((place for place, one in enumerate(texts) if one.special.all()), None)
        if empty is not None:
            raise NoTokens(first + empty)
        groups = batches([len(one.ids) for one in texts], self._tokens_at_once())
        if at_most is not None:
            groups = [group[start : start + at_most] for group in groups for start in range(0, len(group), at_most)]
        return [self._padded(texts, group, special) for group in groups]

    def _tokens_at_once(self) -> int:
        return _TOKENS_ON_GPU if self.device != "cpu" else MOST_TOKENS

    def _padded(self, texts: Sequence[Tokenized], group: list[int], special: bool) -> Batch:
        longest = max(len(texts[place].ids) for place in group)
        ids = np.full((len(group), longest), self._pad_id, np.int64)
        mask, kept = np.zeros((len(group), longest), np.int64), np.zeros((len(group), longest), np.int64)
        for row, place in enumerate(group):
            one = texts[place]
            n = len(one.ids)
            there = slice(longest - n, longest) if self.padding == "left" else slice(0, n)
            ids[row, there], mask[row, there] = one.ids, 1
            kept[row, there] = 1 if special else ~one.special
        return Batch(group, ids, mask, kept)

    @contextmanager
    def reading(self, taps: Sequence[Tap], take: Take) -> Iterator[Callable[[Batch], None]]:
        """Gives what runs a batch: one forward pass, which ends after the highest place, and ``take`` at each place.

        One user at a time has the model; several threads may run batches. EncoderUnavailable names a place that a pass
        never came to.
        """
        import torch

        here = threading.local()

        def taken(tap: Tap, states: Any) -> None:
            if states.shape[:2] != here.batch.ids.shape:
                kind, shape = type(self.network).__name__, tuple(states.shape)
                raise EncoderUnavailable(
                    f"{self.anatomy.where} ({kind}) has states of shape {shape} for {here.batch.ids.shape} tokens, so"
                    " that texts cannot be told apart; this architecture cannot be read"
                )
            here.seen.add(tap)
            take(here.batch, tap, states, here.kept)

        def run(batch: Batch) -> None:
            ids, mask, kept = (torch.from_numpy(one).to(self.device) for one in (batch.ids, batch.mask, batch.kept))
            here.batch, here.kept, here.seen = batch, kept, set()
            with memory_told(self.device), torch.inference_mode():
                try:
                    self._run(**self._arguments(ids, mask))
                except Stopped:
                    pass
                except (RuntimeError, IndexError, TypeError) as error:
                    if isinstance(error, torch.cuda.OutOfMemoryError):
                        raise
                    kind, reason = type(self.network).__name__, " ".join(str(error).split())[:200]
                    raise EncoderUnavailable(
                        f"{self.anatomy.where} ({kind}) cannot be run on batches of tokens: {reason}"
                    ) from error
            missed = [tap.space_name for tap in taps if tap not in here.seen]
            if missed:
                kind = type(self.network).__name__
                raise EncoderUnavailable(f"{', '.join(missed)} never ran in {self.anatomy.where} ({kind})")

        with self._lock, recording(self.anatomy, taps, taken):
            yield run

    def _arguments(self, ids: Any, mask: Any) -> dict[str, Any]:
        given = {"input_ids": ids, "attention_mask": mask}
        if self.stack == "decoder":
            given |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        if self.padding == "left" and self._takes_positions:
            given["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        if self._takes_cache:
            given["use_cache"] = False
        return given

    def count_tokens(self, text: str) -> int:
        """How many tokens the whole text has, special ones included."""
        return self._counter.count(text)

    def pooled_all(
        self, texts: Sequence[Tokenized], wanted: Sequence[tuple[Tap, str, bool]], *, at_most: int | None = None,
        first: int = 0,
    ) -> list[FloatMatrix]:  # fmt: skip
        """By place, pool, and whether special tokens count, the vectors of texts, float32 (n_texts, dim).

        Each text goes through the model once. at_most: texts of a batch.
        """
        import torch

        found = [np.empty((len(texts), self.dim_of(tap)), np.float32) for tap, _, _ in wanted]
        by_tap: dict[Tap, list[tuple[int, str, bool]]] = {}
        for place, (tap, pool, special) in enumerate(wanted):
            if pool not in POOLS:
                raise InvalidInput(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
            by_tap.setdefault(tap, []).append((place, pool, special))
        everything = all(special for _, _, special in wanted)

        def take(batch: Batch, tap: Tap, states: Any, kept: Any) -> None:
            for place, pool, special in by_tap[tap]:
                tokens = kept if special == everything else torch.from_numpy(batch.mask).to(self.device)
                found[place][batch.places] = pooled(states, tokens, pool).cpu().numpy()

        with self.reading(list(by_tap), take) as run:
            self.each(self.batched(texts, special=everything, at_most=at_most, first=first), run)
        return found

    def pooled(
        self, texts: Sequence[Tokenized], taps: Sequence[Tap], pool: str, *, special: bool = True,
        at_most: int | None = None,
    ) -> dict[Tap, FloatMatrix]:  # fmt: skip
        """By place, the vectors of texts, as ``pooled_all``."""
        found = self.pooled_all(texts, [(tap, pool, special) for tap in taps], at_most=at_most)
        return dict(zip(taps, found, strict=True))

    def token_states(self, texts: Sequence[Tokenized], taps: Sequence[Tap]) -> list[dict[Tap, FloatMatrix]]:
        """By text and place, the states of all tokens, float32 (n_tokens, dim)."""
        found: list[dict[Tap, FloatMatrix]] = [{} for _ in texts]

        def take(batch: Batch, tap: Tap, states: Any, kept: Any) -> None:
            copied = states.float().cpu().numpy()
            for row, place in enumerate(batch.places):
                found[place][tap] = copied[row][batch.mask[row] == 1]

        with self.reading(taps, take) as run:
            self.each(self.batched(texts), run)
        return found

    def each(self, given: Sequence[Batch], run: Callable[[Batch], None]) -> None:
        """Run batches, on the CPU each on one core, which is faster than one on all: no core waits for another."""
        if self.device != "cpu" or len(given) == 1:
            for batch in given:
                run(batch)
            return
        import torch

        with _torch_on_one:
            pool = ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
            try:
                list(pool.map(run, given))  # drained, so that an error of any batch is raised here
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _torch_threads() -> int:
    import torch

    return torch.get_num_threads()


def _give_back(n_threads: int) -> None:
    import torch

    torch.set_num_threads(n_threads)  # else threads that begin later had one, too


_torch_on_one = WhileUsed(_torch_threads, _give_back)
"""While torch runs on one thread for each batch."""


def _parameters(network: Any) -> Any:
    import inspect

    return inspect.signature(network.forward).parameters


def open_states(
    name: str, *, allow_network: bool = False, device: str = "cpu", dtype: str = "float32",
    random_seed: int | None = None, stack: str | None = None, padding: str = "right", threads: int | None = None,
    max_tokens: int | None = None,
) -> StateModel:  # fmt: skip
    """A model by local path, hub name or 'minilm', as ``open_folder`` opens it.

    Raises EncoderUnavailable for a folder that is no model, holds pickled weights or needs code of its own.
    """
    folder = transformer_folder(name, allow_network=allow_network)
    model = read_transformer(folder, max_tokens=max_tokens, for_states=True)
    return open_folder(
        model, device=device, dtype=dtype, random_seed=random_seed, stack=stack, padding=padding, threads=threads
    )


def open_folder(
    model: TextModel, *, device: str = "cpu", dtype: str = "float32", random_seed: int | None = None,
    stack: str | None = None, padding: str = "right", threads: int | None = None,
) -> StateModel:  # fmt: skip
    """Load a model whose folder was read.

    random_seed: gives weights drawn at random in the place of those that were learned. stack: of a model with an
    encoder and a decoder, which of them; its encoder by default. padding: the side on which batches are padded.
    """
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if stack is not None and stack not in STACKS:
        raise InvalidInput(f"stack is {stack!r}; it must be encoder or decoder")
    if padding not in ("left", "right"):
        raise InvalidInput(f"padding is {padding!r}; it must be left or right")
    if threads is not None:
        check_whole("threads", threads, 1)
    has_two = bool(model.architecture.get("is_encoder_decoder"))
    if stack is not None and not has_two:
        raise InvalidInput(f"the model in {model.folder} has one stack only; leave stack out")
    network, tokenizer = _loaded(model, dtype, random_seed), load_fast_tokenizer(model)
    return StateModel(
        model, network.to(device), tokenizer, stack=(stack or "encoder") if has_two else None, device=device,
        padding=padding, random_seed=random_seed, dtype=dtype, threads=threads,
    )  # fmt: skip


def load_fast_tokenizer(model: TextModel) -> Any:
    """The ``tokenizers.Tokenizer`` of a model, which cuts texts where the model does and does not pad."""
    from transformers import AutoTokenizer

    where = str(model.transformer)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # as below
            reason = " ".join(str(error).split())[:300]
            raise EncoderUnavailable(f"the tokenizer in {where} cannot be loaded: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise EncoderUnavailable(f"the model in {where} has no fast tokenizer (tokenizer.json)")
    backend.no_padding()
    backend.enable_truncation(model.max_tokens)
    return backend


def _loaded(model: TextModel, dtype: str, random_seed: int | None) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    where, kept = str(model.transformer), {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        try:
            if random_seed is None:
                network, told = AutoModel.from_pretrained(
                    where, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True, **kept
                )
                lacking = [one for one in told["missing_keys"] if not any(part in one for part in _NOT_USED)]
            else:
                lacking = []
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(random_seed)
                    make: Any = AutoModel.from_config
                    network = make(AutoConfig.from_pretrained(where, **kept)).to(getattr(torch, dtype))
        # Libraries raise OSError, ValueError, KeyError and more for the one fact: no such model.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderUnavailable(f"the model in {where} cannot be loaded: {reason}") from error
    if lacking:
        raise EncoderUnavailable(f"the weights in {where} lack {sorted(lacking)[0]}, so its states would be chance")
    return network.eval()
