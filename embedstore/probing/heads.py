"""A transformer with its language-modelling head: what any state of its stream would have it say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.encoders.model_folder import TextModel, read_transformer
from embedstore.encoders.registry import transformer_folder
from embedstore.encoders.tokens import checked, load_tokenizers
from embedstore.encoders.torch_text import pad_id, quiet
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, IntVector
from embedstore.states.anatomy import Anatomy, anatomy_of
from embedstore.states.recording import Stopped, recording
from embedstore.states.running import load_fast_tokenizer
from embedstore.states.taps import HIDDEN, Tap

_MASKED = ("cls", "lm_head", "predictions")
_SOME_TOKEN = 1  # which one does not matter where its states are replaced


@dataclass(frozen=True, slots=True)
class Read:
    """One text: its token ids, their words, the stream before each block and behind the last, and the model's logits.

    states: float32 (n_layers + 1, n_tokens, dim); logits: float32 (n_tokens, vocabulary). truncated: whether the text
    went on.
    """

    ids: IntVector
    tokens: list[str]
    states: np.ndarray
    logits: FloatMatrix
    truncated: bool


class HeadedModel:
    """A causal or masked language model."""

    def __init__(self, model: TextModel, network: Any, tokenizer: Any, *, causal: bool) -> None:
        self.model = model
        self.network = network
        self.tokenizer = tokenizer
        self.is_causal = causal
        base = getattr(network, network.base_model_prefix, None)
        if base is None or base is network:
            kind = type(network).__name__
            raise EncoderUnavailable(f"the model in {model.folder} ({kind}) has no stack under its head")
        self.anatomy: Anatomy = anatomy_of(base, str(model.folder))
        self.last: Any = None
        self._prompts = load_tokenizers().Tokenizer.from_str(tokenizer.to_str())
        self._prompts.no_padding()
        self._prompts.no_truncation()
        self._is_short = self._short_way_is_right()

    @property
    def n_layers(self) -> int:
        """Blocks."""
        return self.anatomy.n_layers

    def unembed(self, states: Any) -> Any:
        """Logits (n, vocabulary) of states (n, dim) of the stream behind the last block; tensors.

        By the model's own last norm and head where these make the model's own logits of its own states; else by the
        whole model, in which the states take the place of the last block's, which is slow and always right.
        """
        return self._unembedded(states) if self._is_short else self._by_the_whole(states)

    def _unembedded(self, states: Any) -> Any:
        norm = self.anatomy.final_norm
        normed = states if norm is None else norm(states)
        if self.is_causal:
            return self.network.get_output_embeddings()(normed)
        for name in _MASKED:
            head = getattr(self.network, name, None)
            if head is not None:
                return head(normed)
        moved = self.network.activation(self.network.vocab_transform(normed))  # DistilBERT
        return self.network.vocab_projector(self.network.vocab_layer_norm(moved))

    def _by_the_whole(self, states: Any) -> Any:
        import torch

        found = []
        for part in torch.split(states, self.model.max_tokens):

            def replaced(module: Any, arguments: Any, output: Any, part: Any = part) -> Any:
                given = part[None].to(output[0].dtype if isinstance(output, tuple) else output.dtype)
                return (given, *output[1:]) if isinstance(output, tuple) else given

            hook, usual = self.anatomy.blocks[-1].register_forward_hook(replaced), self.last
            self.last = torch.tensor([len(part) - 1])  # for those who steer meanwhile
            try:
                ids = torch.full((1, len(part)), _SOME_TOKEN)
                found.append(self.network(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
            finally:
                hook.remove()
                self.last = usual
        return torch.cat(found)

    def _short_way_is_right(self) -> bool:
        """Whether norm and head make of the last states what the model says, in numbers; neither way: refused."""
        import torch

        ids = (torch.arange(1, 1 + min(6, self.model.max_tokens)) % self.network.config.vocab_size).tolist()
        states = torch.empty((len(ids), self.anatomy.dim))

        def take(tap: Tap, found: Any) -> None:
            states.copy_(found[0].float())

        given = torch.tensor([ids])
        with torch.no_grad(), recording(self.anatomy, [Tap(HIDDEN, self.n_layers)], take, stop=False):
            wanted = self.network(input_ids=given, attention_mask=torch.ones_like(given)).logits[0].float()
        for way, is_short in ((self._unembedded, True), (self._by_the_whole, False)):
            try:
                with torch.no_grad():
                    found = way(states).float()
            except (RuntimeError, AttributeError, TypeError):  # no such head, or one of another width
                continue
            if found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-3, rtol=1e-3):
                return is_short
        kind = type(self.network).__name__
        raise EncoderUnavailable(f"how {kind} makes words of states is not known; take another model")

    def read(self, text: str) -> Read:
        """Run one text through the model; InvalidInput for one without tokens."""
        import torch

        encoding = self.tokenizer.encode(checked(text, None))
        if not encoding.ids:
            raise InvalidInput("the text has no tokens, so it has no states; leave it out")
        taps = [Tap(HIDDEN, layer) for layer in range(self.n_layers + 1)]
        states = torch.empty((len(taps), len(encoding.ids), self.anatomy.dim))

        def take(tap: Tap, found: Any) -> None:
            states[tap.layer] = found[0].float()

        ids = torch.tensor([encoding.ids])
        self.last = torch.tensor([len(encoding.ids) - 1])
        cache = {"use_cache": False} if self.is_causal else {}
        with torch.no_grad(), recording(self.anatomy, taps, take, stop=False):
            logits = self.network(input_ids=ids, attention_mask=torch.ones_like(ids), **cache).logits[0].float()
        words = self.words(encoding.ids)
        return Read(np.array(encoding.ids), words, states.numpy(), logits.numpy(), bool(encoding.overflowing))

    def last_states(self, texts: Sequence[Sequence[int]]) -> Any:
        """The stream behind the last block at the last of token ids, (n, dim), as a tensor.

        ``last`` says meanwhile where each ends. InvalidInput for one without tokens, or with more than the model reads.
        """
        import torch

        held: list[Any] = []

        def take(tap: Tap, states: Any) -> None:
            held.append(states[torch.arange(len(states)), self.last].float())

        with recording(self.anatomy, [Tap(HIDDEN, self.n_layers)], take), suppress(Stopped):
            self.run(texts)
        return held[0]

    def run(self, texts: Sequence[Sequence[int]]) -> Any:
        """Logits (n, n_tokens, vocabulary) of token ids, padded on the right, as a tensor; ``last``: where each ends.

        InvalidInput for one without tokens, or with more than the model reads.
        """
        import torch

        lengths = [len(one) for one in texts]
        if not lengths or min(lengths) < 1 or max(lengths) > self.model.max_tokens:
            told = f"{max(lengths)} tokens" if lengths else "none"
            raise InvalidInput(
                f"the longest prompt has {told}; the model reads 1 to {self.model.max_tokens}: show fewer examples, or"
                " shorter ones"
            )
        ids = torch.full((len(texts), max(lengths)), pad_id(self.model))
        mask = torch.zeros_like(ids)
        for line, one in enumerate(texts):
            ids[line, : len(one)] = torch.as_tensor(list(one))
            mask[line, : len(one)] = 1
        self.last = torch.tensor(lengths) - 1
        cache = {"use_cache": False} if self.is_causal else {}
        return self.network(input_ids=ids, attention_mask=mask, **cache).logits

    def token_ids(self, text: str) -> list[int]:
        """A prompt as the model reads it: all of it, begun as its tokenizer begins texts, and not ended."""
        encoding = self._prompts.encode(checked(text, None))
        ids, special = list(encoding.ids), list(encoding.special_tokens_mask)
        while ids and special[-1] and len(ids) > 1:
            ids.pop()
            special.pop()
        return ids

    def words(self, ids: Sequence[int]) -> list[str]:
        """Tokens as they are spelled."""
        return [shown_token(self.tokenizer.id_to_token(int(one)) or f"<{one}>") for one in ids]


def shown_token(token: str) -> str:
    """A token with its leading blank as such, however its vocabulary marks that."""
    return token.replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\\n")


def open_headed(name: str, *, allow_network: bool = False) -> HeadedModel:
    """A language model by local path or hub name.

    EncoderUnavailable for a folder that is no model, holds pickled weights, needs code of its own, or whose weights
    lack the head that its words come from.
    """
    folder = transformer_folder(name, allow_network=allow_network)
    model = read_transformer(folder, for_states=True)
    if model.architecture.get("is_encoder_decoder"):
        raise InvalidInput(f"the model in {folder} has an encoder and a decoder; a lens reads models of one stack")
    network, causal = _loaded(folder)
    return HeadedModel(model, network.eval(), load_fast_tokenizer(model), causal=causal)


def _loaded(folder: Path) -> tuple[Any, bool]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    kept: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        try:
            config = AutoConfig.from_pretrained(str(folder), **kept)
            named = " ".join(config.architectures or [])
            masked = "MaskedLM" in named or (
                "CausalLM" not in named and "LMHead" not in named
                and type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
            )  # fmt: skip
            kind: Any = AutoModelForMaskedLM if masked else AutoModelForCausalLM
            network, told = kind.from_pretrained(
                str(folder), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **kept
            )
        # Libraries raise OSError, ValueError, KeyError and more for the one fact: no such model.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderUnavailable(f"the model in {folder} cannot be loaded with a head: {reason}") from error
    lacking = sorted(told["missing_keys"])
    if lacking:
        raise EncoderUnavailable(
            f"the weights in {folder} hold no language-modelling head (no {lacking[0]}), so no layer can say words;"
            " take a causal or masked language model"
        )
    return network, not masked
