"""An encoder whose vectors can be computed in the head: how often a text has the letters a to e, and a constant."""

from __future__ import annotations

import numpy as np

from embedstore.encoders import Encoded, EncoderSpec

calls: list[int] = []
"""How many texts each call of ``encode`` was given."""


class LettersEncoder:
    """``letters``, or ``letters:SCALE`` whose last number is SCALE and whose vectors are another space's."""

    def __init__(self, argument: str) -> None:
        self._scale = float(argument or 1)
        name = f"letters:{argument}" if argument else "letters"
        self.spec = EncoderSpec(name=name, family="letters", dim=6, max_tokens=100, weights=str(self._scale))

    def encode(self, texts):
        calls.append(len(texts))
        rows = [[text.count(letter) for letter in "abcde"] + [self._scale] for text in texts]
        vectors = np.array(rows, np.float32).reshape(len(texts), 6)
        return Encoded(vectors, sum(len(text.split()) > 100 for text in texts))

    def encode_query(self, text):
        return self.encode([text]).vectors[0]

    def count_tokens(self, text):
        return len(text.split())

    def close(self):
        pass
