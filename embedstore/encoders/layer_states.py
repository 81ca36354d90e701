"""The encoder of one place in a transformer; those of one model share it, so that one pass serves them all."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from embedstore.devices import Device, DeviceKind
from embedstore.encoders.model_folder import POOLS, TextModel, read_transformer
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import LAYER_STATES, EncoderSpec
from embedstore.encoders.torch_device import may_have_gpu, torch_gpus
from embedstore.errors import InvalidInput
from embedstore.model import FloatVector

if TYPE_CHECKING:
    from embedstore.states import StateModel, Tap

OPTIONS = ("site", "layer", "head", "pool", "special", "stack", "dtype", "random", "max_tokens")
_AT_ONCE = 4096


class SharedModel:
    """A model that is loaded when it is first used, and the settings that decide what it gives."""

    def __init__(self, folder: Path, settings: Mapping[str, str], device: Device) -> None:
        self.folder = folder
        self.settings = dict(settings)
        self.text_model: TextModel = read_transformer(
            folder, max_tokens=_whole(settings, "max_tokens"), for_states=True
        )
        self._device = device
        self._lock = threading.Lock()
        self._model: StateModel | None = None

    def opened(self) -> StateModel:
        """The model."""
        from embedstore.states.running import open_folder

        with self._lock:
            if self._model is None:
                gpu = self._device.must_be_gpu or (self._device.kind is DeviceKind.AUTO and may_have_gpu())
                self._model = open_folder(
                    self.text_model, device=torch_gpus(self._device)[0] if gpu else "cpu",
                    dtype=self.settings.get("dtype", "float32"), stack=self.settings.get("stack"),
                    random_seed=_whole(self.settings, "random"),
                )  # fmt: skip
            return self._model

    def encode_by(self, encoders: Sequence[LayerEncoder], texts: Sequence[str]) -> list[Encoded]:
        """The same texts by several encoders of the model: each text goes through it once."""
        import numpy as np

        if isinstance(texts, str):
            raise InvalidInput("encode() takes a sequence of texts and was given one text; put it into a list")
        model = self.opened()
        for one in encoders:
            model.check(one.tap)
        found = [np.empty((len(texts), one.spec.dim), np.float32) for one in encoders]
        n_truncated = 0
        for start in range(0, len(texts), _AT_ONCE):
            tokens = model.tokenize(texts[start : start + _AT_ONCE], first=start)
            n_truncated += sum(one.truncated for one in tokens)
            wanted = [(one.tap, *one.pooling) for one in encoders]
            for place, vectors in enumerate(model.pooled_all(tokens, wanted, first=start)):
                found[place][start : start + len(tokens)] = vectors
        return [Encoded(vectors, n_truncated) for vectors in found]

    def close(self) -> None:
        """Let go of the model; the next call loads it again."""
        with self._lock:
            self._model = None


_shared: WeakValueDictionary[tuple[Any, ...], SharedModel] = WeakValueDictionary()
_shared_lock = threading.Lock()


def shared_model(folder: Path, settings: Mapping[str, str], device: Device) -> SharedModel:
    """The one model of a folder with these settings."""
    names = ("stack", "dtype", "random", "max_tokens")
    deciding = tuple(sorted((name, settings[name]) for name in names if name in settings))
    asked = (str(folder), deciding, str(device))
    with _shared_lock:
        found = _shared.get(asked)
        if found is None:
            found = _shared[asked] = SharedModel(folder, dict(deciding), device)
        return found


class LayerEncoder:
    """Texts as the pooled states of one place in a transformer."""

    def __init__(self, name: str, options: Mapping[str, str], shared: SharedModel) -> None:
        """options: of ``OPTIONS``. InvalidInput for one that means nothing, or a place that the model does not have."""
        from embedstore.states.taps import FINAL_NORM, HEAD, HIDDEN, SITES, Tap, layer_numbers

        site = options.get("site", HIDDEN)
        if site not in SITES:
            raise InvalidInput(f"site is {site!r}; it must be one of {', '.join(SITES)}")
        self._pool = options.get("pool", "mean")
        if self._pool not in POOLS:
            raise InvalidInput(f"pool is {self._pool!r}; it must be one of {', '.join(POOLS)}")
        if options.get("special", "true") not in ("true", "false"):
            raise InvalidInput(f"special is {options['special']!r}; it must be true or false")
        _whole(options, "random")
        if (site == HEAD) != ("head" in options):
            raise InvalidInput("head says which head, and goes with site=head alone")
        self._special = options.get("special", "true") == "true"
        n_layers = shared.text_model.n_layers(options.get("stack"))
        given = _whole(options, "layer")
        layer = n_layers if given is None or site == FINAL_NORM else given
        layer = layer_numbers([layer], n_layers, where=str(shared.folder))[0]
        if layer == 0 and site != HIDDEN:
            raise InvalidInput(f"layer 0 is the embeddings, which have no {site!r}; its layers are 1 to {n_layers}")
        self.shared = shared
        self.tap: Tap = Tap(site, layer, _whole(options, "head"))
        self._spec = self._described(name, options)

    def _described(self, name: str, options: Mapping[str, str]) -> EncoderSpec:
        model, tap = self.shared.text_model, self.tap
        dim = model.dim if tap.head is None else model.head_dim
        spec = model.spec(name)
        deciding = [
            spec.pipeline, tap.site, tap.layer, tap.head, self._special, options.get("stack"),
            options.get("dtype", "float32"), *([int(options["random"])] if "random" in options else []),
        ]  # fmt: skip
        return EncoderSpec(
            name=name, family=LAYER_STATES, dim=dim, max_tokens=spec.max_tokens, layer=tap.layer, pool=self._pool,
            weights=spec.weights, tokenizer=spec.tokenizer,
            pipeline=hashlib.sha256(json.dumps(deciding).encode()).hexdigest(), location=spec.location,
        )  # fmt: skip

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def pooling(self) -> tuple[str, bool]:
        """How tokens are reduced to one vector, and whether special ones count."""
        return self._pool, self._special

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode any number of texts; InvalidInput for one that has no tokens."""
        return self.shared.encode_by([self], texts)[0]

    def encode_query(self, text: str) -> FloatVector:
        """Encode one text: float32 (dim,)."""
        vector: FloatVector = self.encode([text]).vectors[0]
        return vector

    def count_tokens(self, text: str) -> int:
        """How many tokens the whole text has, special ones included."""
        return self.shared.opened().count_tokens(text)

    def close(self) -> None:
        """Let go of the memory that the model holds, for all encoders that share it."""
        self.shared.close()


def _whole(options: Mapping[str, str], name: str) -> int | None:
    if name not in options:
        return None
    try:
        return int(options[name])
    except ValueError:
        raise InvalidInput(f"{name} is {options[name]!r}; it must be a whole number") from None
