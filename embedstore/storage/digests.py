"""The digest of a collection or space: a sum over the hashes of its rows, kept up with every write."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

_FEW = 16
_PAIR = struct.Struct("<QQ")
_WORD = 2**64 - 1


def shift_digest(digest: bytes, *, added: Sequence[bytes] = (), removed: Sequence[bytes] = ()) -> bytes:
    """A digest after rows came and went: the sum of 16-byte row hashes, modulo 2**64 in each half.

    The sum does not depend on the order of the rows, so two stores with the same rows have the same digest.
    """
    if len(added) + len(removed) <= _FEW:  # where NumPy takes longer to be called than to add
        return _shifted_one_by_one(digest, added, removed)
    total = np.frombuffer(digest, "<u8").copy()
    with np.errstate(over="ignore"):
        if added:
            total += _halves(added).sum(axis=0, dtype=np.uint64)
        if removed:
            total -= _halves(removed).sum(axis=0, dtype=np.uint64)
    return total.tobytes()


def _shifted_one_by_one(digest: bytes, added: Sequence[bytes], removed: Sequence[bytes]) -> bytes:
    low, high = _PAIR.unpack(digest)
    for one in added:
        first, second = _PAIR.unpack(one)
        low, high = low + first, high + second
    for one in removed:
        first, second = _PAIR.unpack(one)
        low, high = low - first, high - second
    return _PAIR.pack(low & _WORD, high & _WORD)


def _halves(hashes: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)  # (n, 2)
