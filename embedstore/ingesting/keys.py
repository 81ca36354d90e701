"""Keys of an input: which it has held, and ones made of what a row holds, where nothing else tells it from others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedstore.checks import shown
from embedstore.errors import DuplicateKey, InvalidRecord
from embedstore.reading import uris_by_key
from embedstore.records import Batch
from embedstore.storage import catalog

if TYPE_CHECKING:
    from embedstore.collection import Collection

_RECENT = 200_000


class ContentKeys:
    """Makes the keys of rows of an input that has no lasting name, so that the same row has the same key again."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._seen = SeenKeys()

    def key_of(self, record: Mapping[str, Any]) -> str:
        """A key made of all that a record holds but its key; of equal rows the second ends in ``-2``, and so on."""
        held = {name: value for name, value in record.items() if name != "key"}
        encoded = orjson.dumps(held, default=_plain, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY)
        first = key = f"{self._label}:{blake2b(encoded, digest_size=8).hexdigest()}"
        number = 1
        while self._seen.holds(key):
            number += 1
            key = f"{first}-{number}"
        self._seen.add(key, 0)
        return key


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know: the bytes of a picture, else its name."""
    data = getattr(value, "data", None)
    return blake2b(data).hexdigest() if isinstance(data, bytes) else f"{type(value).__name__} {value}"


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


def refuse_other_files(collection: Collection, batch: Batch) -> None:
    """Refuse files of a folder whose keys are those of other files that are still there, and would be overwritten."""
    with collection.store.reading() as transaction:
        row = catalog.find_collection(transaction, collection.name)
        if row is None:
            return
        held = uris_by_key(transaction, row, batch.keys)
    for key, uri, number in zip(batch.keys, batch.uris, batch.row_numbers, strict=True):
        other = held.get(key)
        if other is None or uri is None or os.path.abspath(other) == os.path.abspath(uri):
            continue
        if os.path.isfile(other) and os.path.isfile(uri) and not os.path.samefile(other, uri):
            raise InvalidRecord(
                f"the key {shown(key)} is that of {shown(other, 200)}, whose record would be overwritten; give the"
                " folder above both, or take another collection", row=number, field="key",
            )  # fmt: skip


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
