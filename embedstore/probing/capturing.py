"""Keeps the states of a transformer for every record of a collection: one space for each place that is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.making_spaces import add_encoder_spaces
from embedstore.model import Metric, WriteReport, choose
from embedstore.states.taps import HIDDEN, Tap

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.encoders.layer_states import LayerEncoder
    from embedstore.space import Space
    from embedstore.states import StateModel


@dataclass(frozen=True, slots=True)
class States:
    """The spaces that hold a model's states, by place, and what was written for them."""

    collection: Collection
    model: str
    names: dict[Tap, str]
    report: WriteReport

    def __getitem__(self, layer: int) -> Space:
        """The space of a layer of the residual stream; negative numbers count from the last."""
        found = {tap.layer: name for tap, name in self.names.items() if tap.site == HIDDEN}
        layers = sorted(found)
        wanted = layers[layer] if layer < 0 and -layer <= len(layers) else layer
        if wanted not in found:
            raise InvalidInput(f"layer {layer} was not captured; there are {', '.join(map(str, layers)) or 'none'}")
        return self.collection.space(found[wanted])

    @property
    def spaces(self) -> list[Space]:
        """All spaces, in the order of the model."""
        return [self.collection.space(name) for name in self.names.values()]

    def to_dict(self) -> dict[str, Any]:
        """What was done, as plain values."""
        return {"model": self.model, "spaces": list(self.names.values()), **self.report.to_dict()}


def capture(
    collection: Collection,
    model: str,
    *,
    layers: str | int | Iterable[int] = "all",
    sites: Sequence[str] = (HIDDEN,),
    pool: str = "mean",
    special: bool = True,
    prefix: str = "",
    random_seed: int | None = None,
    dtype: str = "float32",
    stack: str | None = None,
    max_tokens: int | None = None,
    threads: int | None = None,
    metric: str = "cosine",
    recipe: str = "flat",
) -> States:
    """Keep the states of a model for every text of a collection, one space a place: ``layer-00``, ``layer-01``, ...

    model: a folder, a hub name (which must be in the cache unless the store allows downloads) or 'minilm'.
    layers: 'all', or numbers: 0 is the embeddings, i what block i leaves in the residual stream, before any final norm;
        negative ones count from the last.
    sites: of 'hidden' (the residual stream), 'final_norm' (after the last norm), 'attention' and 'mlp' (what these add
        to the stream in a block), 'head' (each attention head by itself).
    pool: over a text's tokens: 'mean', 'last', 'first' or 'max'; ``special`` says whether tokens that the tokenizer
        adds count.
    prefix: put before the names of the spaces, so that several models can be held side by side.
    random_seed: of weights that are drawn in the place of those that were learned: what the architecture gives alone.
    dtype: 'float32', 'bfloat16' or 'float16'; what is stored is float32. stack: of a model with an encoder and a
        decoder, which of them. max_tokens: of a text, the rest is not read. threads: cores in use.

    Each text goes through the model once, up to the highest layer asked for. Interrupted, the same call goes on where
    it was. The spaces have encoders of their own, so that texts which come later are captured, too, and queries can be.
    """
    from embedstore.encoders.layer_states import LayerEncoder

    chosen = choose(Metric, metric, "metric")
    check_seed(random_seed or 0)
    options = {"pool": pool, **({} if special else {"special": "false"}), **({} if stack is None else {"stack": stack})}
    options |= {"dtype": dtype} if dtype != "float32" else {}
    options |= {} if random_seed is None else {"random": str(random_seed)}
    options |= {} if max_tokens is None else {"max_tokens": str(max_tokens)}
    first = _encoder(collection, model, {"site": HIDDEN, "layer": "0", **options})
    opened = first.shared.opened()
    if threads is not None:
        check_whole("threads", threads, 1)
    encoders: dict[Tap, LayerEncoder] = {}
    for tap in opened.taps(sites, layers):
        place = {"site": tap.site, "layer": str(tap.layer), **({} if tap.head is None else {"head": str(tap.head)})}
        found = _encoder(collection, model, {**place, **options})
        assert isinstance(found, LayerEncoder)
        encoders[tap] = found
    names = {tap: f"{prefix}{tap.space_name}" for tap in encoders}
    usual, opened.threads = opened.threads, threads or opened.threads
    try:
        report = add_encoder_spaces(
            collection, {names[tap]: one.spec for tap, one in encoders.items()}, metric=chosen, recipe=recipe
        )
    finally:
        opened.threads = usual
    collection.spaces_changed()
    return States(collection, model, names, report)


def opened_model(collection: Collection, model: str, random_seed: int | None = None) -> StateModel:
    """The model by which a collection's texts are read, shared with the encoders of its layers."""
    check_seed(random_seed or 0)
    options = {"site": HIDDEN, "layer": "0", **({} if random_seed is None else {"random": str(random_seed)})}
    return _encoder(collection, model, options).shared.opened()


def _encoder(collection: Collection, model: str, options: dict[str, str]) -> LayerEncoder:
    from embedstore.encoders.layer_states import OPTIONS, LayerEncoder

    given = ",".join(f"{name}={options[name]}" for name in OPTIONS if name in options)
    if not isinstance(model, str) or not model:
        raise InvalidInput(f"model is {model!r}; give a folder, a hub name or 'minilm'")
    kind, colon, rest = model.partition(":")
    bare = rest if colon and kind in ("hf", "st") else model
    found = collection.store.load_encoder(f"hf:{bare}@{given}")
    assert isinstance(found, LayerEncoder)
    return found
