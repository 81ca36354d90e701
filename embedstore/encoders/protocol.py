"""What every encoder offers: the protocol that the store calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from embedstore.encoders.spec import EncoderSpec
from embedstore.model import FloatMatrix, FloatVector


@dataclass(frozen=True, slots=True)
class Encoded:
    """The vectors of a batch.

    vectors: float32, shape (n, dim), C-contiguous, in the order of the texts.
    n_truncated: how many of the texts were longer than the encoder reads.
    """

    vectors: FloatMatrix
    n_truncated: int = 0


@runtime_checkable
class Encoder(Protocol):
    """Maps texts to the vectors of one space."""

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
