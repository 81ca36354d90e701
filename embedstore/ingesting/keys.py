"""Keys of an input: which it has held, and ones made of what a row holds, where nothing else tells it from others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
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
_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


class ContentKeys:
    """Makes the keys of rows of an input that has no lasting name, so that the same row has the same key again."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._seen = SeenKeys()

    def key_of(self, record: Mapping[str, Any]) -> str:
        """A key made of all that a record holds but its key; of equal rows the second ends in ``-2``, and so on."""
        held = {name: value for name, value in record.items() if name != "key"}
        try:
            encoded = orjson.dumps(held, default=_plain, option=_OPTIONS)
        except TypeError:  # what JSON cannot hold is refused with its field, once it has a key
            encoded = repr(held).encode(errors="backslashreplace")
        first = key = f"{self._label}:{blake2b(encoded, digest_size=8).hexdigest()}"
        number = 1
        while self._seen.holds(key):
            number += 1
            key = f"{first}-{number}"
        self._seen.add(key, 0)
        return key


def _plain(value: Any) -> Any:
    """What stands for a value that JSON does not know: the bytes of a picture or an array, else how it is written."""
    data = getattr(value, "data", None)
    if not isinstance(data, bytes) and hasattr(value, "tobytes"):
        data = value.tobytes()
    held = blake2b(data).hexdigest() if isinstance(data, bytes) else str(value)
    return f"{type(value).__name__} {held}"


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


def without_other_files(
    collection: Collection, batch: Batch, on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None
) -> Batch:
    """A batch of files without those whose keys are other files', which are still there and would be overwritten.

    on_error: is told of them; without it the first raises InvalidRecord.
    """
    if not collection.store.exists():
        return batch
    with collection.store.reading() as transaction:
        row = catalog.find_collection(transaction, collection.name)
        pieces = [f"{key}#1" for key in batch.keys]  # of a text that was cut
        held = {} if row is None else uris_by_key(transaction, row, [*batch.keys, *pieces])
    held = {key.removesuffix("#1"): uri for key, uri in held.items()} | held
    others = {
        place for place, (key, uri) in enumerate(zip(batch.keys, batch.uris, strict=True))
        if key in held and uri is not None and _are_two_files(held[key], uri)
    }  # fmt: skip
    for place in sorted(others):
        key = batch.keys[place]
        error = InvalidRecord(
            f"the key {shown(key)} is that of {shown(held[key], 200)}, whose record would be overwritten; give the"
            " folder above both, or take another collection", row=batch.row_numbers[place], field="key",
        )  # fmt: skip
        if on_error is None:
            raise error
        on_error(error, {"key": key, "uri": batch.uris[place]})
    return batch.subset([place for place in range(len(batch)) if place not in others]) if others else batch


def _are_two_files(one: str, other: str) -> bool:
    try:
        return os.path.abspath(one) != os.path.abspath(other) and not os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there
        return False


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little")
