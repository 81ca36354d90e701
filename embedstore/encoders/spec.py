"""What decides an encoder's vectors, as one value that can be stored and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedstore.errors import InvalidInput, UnsupportedFormat
from embedstore.model import Metric, Modality

FORMAT_VERSION = 1
"""The version of the JSON that ``EncoderSpec.to_json`` writes."""

MINILM = "minilm"
MINILM_INT8 = "minilm-int8"
SENTENCE_TRANSFORMERS = "sentence-transformers"
TRANSFORMERS = "transformers"
IMAGE_VAE = "image-vae"
TABLE_VAE = "table-vae"
TINY_AUTOENCODER = "taesd"
DIFFUSERS = "diffusers"
CLIP = "sentence-transformers-clip"
LAYER_STATES = "layer-states"
"""Pooled states of one place in a transformer, by hooks."""
DERIVED = "derived"
"""Of a space that is made of the vectors of others, whose names are the lines of the location."""

_TEXT = frozenset({Modality.TEXT})
_READ = {
    IMAGE_VAE: frozenset({Modality.IMAGE}), TINY_AUTOENCODER: frozenset({Modality.IMAGE}),
    DIFFUSERS: frozenset({Modality.IMAGE}), TABLE_VAE: frozenset({Modality.ROW}),
    CLIP: frozenset({Modality.TEXT, Modality.IMAGE}), DERIVED: frozenset(),
}  # fmt: skip

_NOT_DECIDING = ("name", "location")


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """What decides the vectors of an encoder.

    name: as the user gives it, in canonical form: ``minilm``, ``st:PATH_OR_NAME``,
        ``hf:PATH_OR_NAME@layer=5,pool=mean``.
    family: ``minilm``, ``minilm-int8``, ``sentence-transformers``, ``transformers``, or what another package calls its
        own.
    dim: numbers in a vector. max_tokens: tokens that are read of a text, special ones included.
    layer: index in the hidden states, 0 being the embeddings; None where the model has its own pipeline.
    pool: mean, first, last, max, or the model's own word. normalize: whether vectors have length 1.
    weights, tokenizer, pipeline: SHA-256 in hex of the weights, of tokenizer.json and of the settings that
        matter; empty where there is none.
    location: the folder last used; of a derived space the names of its parents, a line each. Like the name it is not
        part of the fingerprint.
    """

    name: str
    family: str
    dim: int
    max_tokens: int = 0
    layer: int | None = None
    pool: str = ""
    normalize: bool = False
    weights: str = ""
    tokenizer: str = ""
    pipeline: str = ""
    location: str | None = None

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the encoder reads: texts, pictures, rows; texts where another package made it."""
        return _READ.get(self.family, _TEXT)

    @property
    def parents(self) -> tuple[str, ...]:
        """The names of the spaces whose vectors it is made of; empty for all that encode things."""
        return tuple((self.location or "").split("\n")) if self.family == DERIVED else ()

    @property
    def metric(self) -> Metric:
        """How its vectors are compared where nothing else is asked for: distance, for means of a latent space."""
        return Metric.EUCLIDEAN if self.family in (IMAGE_VAE, TABLE_VAE, TINY_AUTOENCODER, DIFFUSERS) else Metric.COSINE

    @property
    def fingerprint(self) -> str:
        """32 hex digits: BLAKE2b-128 of everything that decides the vectors."""
        fields = {
            name: value for name, value in dataclasses.asdict(self).items() if name not in _NOT_DECIDING
        }
        if self.family == MINILM:  # the same files opened by path make the same vectors
            fields["family"] = SENTENCE_TRANSFORMERS
        canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    def describe(self) -> str:
        """One line for messages: ``minilm (384 numbers, 256 tokens, weights 53aa5117…)``."""
        parts = [f"{self.dim} numbers"]
        if self.max_tokens:
            parts.append(f"{self.max_tokens} tokens")
        if self.layer is not None:
            parts.append(f"layer {self.layer}")
        if self.weights:
            parts.append(f"weights {self.weights[:8]}…")
        made_of = f" of {' and '.join(self.parents)}" if self.parents else ""
        return f"{self.name}{made_of} ({', '.join(parts)})"

    def to_json(self) -> str:
        """The spec as a JSON object that ``from_json`` reads."""
        return json.dumps({"version": FORMAT_VERSION, **dataclasses.asdict(self)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """Read what ``to_json`` wrote.

        Raises UnsupportedFormat for another version, InvalidInput for anything that is not a spec.
        """
        try:
            fields: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"an encoder spec is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise InvalidInput(f"an encoder spec is a JSON {type(fields).__name__}; it must be an object")
        version = fields.pop("version", None)
        if version != FORMAT_VERSION:
            raise UnsupportedFormat(
                f"an encoder spec has version {version!r}; this release reads version {FORMAT_VERSION}:"
                " upgrade embedstore"
            )
        _check_fields(fields)
        return cls(**fields)


def derived_location(parents: Iterable[str]) -> str:
    """The location of a spec that is made of spaces of these names, which hold no line breaks."""
    return "\n".join(parents)


def _check_fields(fields: dict[str, Any]) -> None:
    """Raise InvalidInput unless ``fields`` are those of an EncoderSpec, each of its type."""
    types: dict[str, tuple[type, ...]] = {
        "name": (str,), "family": (str,), "dim": (int,), "max_tokens": (int,), "layer": (int, type(None)),
        "pool": (str,), "normalize": (bool,), "weights": (str,), "tokenizer": (str,), "pipeline": (str,),
        "location": (str, type(None)),
    }  # fmt: skip
    if fields.keys() != types.keys():
        odd = ", ".join(sorted(fields.keys() ^ types.keys()))
        raise InvalidInput(f"an encoder spec has missing or unknown fields: {odd}")
    for name, allowed in types.items():
        if not isinstance(fields[name], allowed) or (isinstance(fields[name], bool) and bool not in allowed):
            raise InvalidInput(f"field {name!r} of an encoder spec is {fields[name]!r}")
