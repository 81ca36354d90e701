"""What every encoder offers: the protocol that the store calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from embedstore.encoders.spec import EncoderSpec
from embedstore.model import FloatMatrix, FloatVector


@dataclass(frozen=True, slots=True)
class Encoded:
    """The vectors of a batch.

    vectors: float32, shape (n, dim), C-contiguous, in the order of the texts.
    n_truncated: how many of the texts were longer than the encoder reads.
    n_unknown: how many values of rows were of no category that the encoder had seen.
    """

    vectors: FloatMatrix
    n_truncated: int = 0
    n_unknown: int = 0


class Items(Protocol):
    """What an encoder of pictures or rows offers beside ``encode``, which then takes what ``prepare`` gave."""

    def prepare(self, item: Any) -> Any:
        """A picture (``pictures.Picture``) or a row (a mapping) as ``encode`` takes it; InvalidInput for a broken one.

        Called while records are checked, by several threads at once.
        """
        ...


@runtime_checkable
class Decoder(Protocol):
    """An encoder that also leads back, from a vector to a picture or a row."""

    def decode(self, vectors: FloatMatrix) -> list[Any]:
        """What vectors, float32 (n, dim), stand for: a Pillow image or a mapping for each."""
        ...


class Shared(Protocol):
    """What encoders have in common under the name ``shared`` that are of one model, which all can use at once."""

    def encode_by(self, encoders: Sequence[Any], texts: Sequence[str]) -> list[Encoded]:
        """The same texts by each of several encoders that share this."""
        ...


@runtime_checkable
class Encoder(Protocol):
    """Maps texts to the vectors of one space; those whose spec reads other modalities offer ``Items`` too."""

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode any number of texts for storing; no texts give vectors of shape (0, dim).

        Raises InvalidInput where an item is not a string or cannot be written as UTF-8.
        """
        ...

    def encode_query(self, text: str) -> FloatVector:
        """Encode one query with the least latency: float32, shape (dim,)."""
        ...

    def count_tokens(self, text: str) -> int:
        """How many tokens the whole text has, special ones included, however many are read."""
        ...

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        ...
