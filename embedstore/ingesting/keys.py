"""Keys of an input: which it has held, and ones made of what a row holds, where nothing else tells it from others."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from embedstore.checks import shown
from embedstore.errors import DuplicateKey

_RECENT = 200_000
_EXACT = 2**53
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class ContentKeys:
    """Makes the keys of rows of an input that has no lasting name, so that the same row has the same key again."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._seen = SeenKeys()
        self._repeated: dict[str, int] = {}

    def key_of(self, record: Mapping[str, Any]) -> str:
        """A key made of all that a record holds but its key; of equal rows the second ends in ``-2``, and so on."""
        held = {name: _canonical(value) for name, value in record.items() if name != "key"}
        try:
            encoded = orjson.dumps(held, default=_plain, option=_OPTIONS)
        except TypeError:  # what JSON cannot hold is refused with its field, once it has a key
            encoded = repr(held).encode(errors="backslashreplace")
        key = f"{self._label}:{blake2b(encoded, digest_size=8).hexdigest()}"
        if not self._seen.holds(key):
            self._seen.add(key, 0)
            return key
        self._repeated[key] = self._repeated.get(key, 1) + 1
        return f"{key}-{self._repeated[key]}"


def _canonical(value: Any) -> Any:
    """A value in the one form that it has in a list and in a column of numbers: 2 for 2.0."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _EXACT else value
    if isinstance(value, dict):
        return {name: _canonical(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_canonical(one) for one in value]
    return _canonical(value.tolist()) if isinstance(value, (np.ndarray, np.generic)) else value


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know: all that makes a picture, else how it is written."""
    data = getattr(value, "data", None)
    if isinstance(data, bytes):
        return blake2b(data).hexdigest()
    if hasattr(value, "tobytes"):
        told = [getattr(value, name, None) for name in ("mode", "size")]
        palette = value.getpalette() if hasattr(value, "getpalette") else None
        return [str(told), str(palette), blake2b(value.tobytes()).hexdigest()]
    return f"{type(value).__name__} {value}"


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
