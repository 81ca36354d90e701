"""Remembers which keys an input has held, eight bytes a key."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

from embedstore.checks import shown
from embedstore.errors import DuplicateKey

_RECENT = 200_000


class SeenKeys:
    """The keys of an input, as 64-bit hashes: a clash of two different keys is a chance of one in 2**64 a pair.

    The newest lie in a dictionary with their rows, the older ones in one sorted array.
    """

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._older = np.empty(0, np.uint64)

    def __len__(self) -> int:
        return len(self._recent) + self._older.size

    def add(self, key: str, row: int) -> None:
        """Note a key; DuplicateKey where it was there before."""
        hashed = _hash(key)
        if hashed in self._recent:
            raise DuplicateKey(f"key {shown(key)} is in row {self._recent[hashed]:,} already", row=row, field="key")
        if self._is_older(hashed):
            raise DuplicateKey(f"key {shown(key)} is in an earlier row already", row=row, field="key")
        self._recent[hashed] = row
        if len(self._recent) >= _RECENT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._older = np.sort(np.concatenate([self._older, recent]))
            self._recent.clear()

    def holds(self, key: str) -> bool:
        """Whether the key was noted."""
        hashed = _hash(key)
        return hashed in self._recent or self._is_older(hashed)

    def _is_older(self, hashed: int) -> bool:
        if self._older.size == 0:
            return False
        place = int(np.searchsorted(self._older, np.uint64(hashed)))
        return place < self._older.size and int(self._older[place]) == hashed


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
