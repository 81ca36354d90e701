"""What SQL holds of the records of a batch before it is written: their hashes, and their vectors in a space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedstore.checks import shown
from embedstore.errors import DamagedRow
from embedstore.records import vector_is_whole
from embedstore.storage.database import Row, Transaction

_CHUNK = 5000
_EXISTING = "SELECT key, record_id, content_hash, row_hash FROM records WHERE collection_id = :collection"


@dataclass(frozen=True, slots=True)
class Existing:
    """What SQL holds for a key of a batch."""

    record_id: int
    content_hash: bytes | None
    row_hash: bytes


def find_existing(transaction: Transaction, collection_id: int, keys: Sequence[str]) -> dict[str, Existing]:
    """The records of a collection among ``keys``."""
    if len(keys) == 1:
        row = transaction.one(f"{_EXISTING} AND key = :key", {"collection": collection_id, "key": keys[0]})
        return {} if row is None else {row[0]: _existing(row)}
    found: dict[str, Existing] = {}
    members = transaction.dialect.members("keys", "text")
    for start in range(0, len(keys), _CHUNK):
        rows = transaction.all(
            f"{_EXISTING} AND key IN {members}",
            {
                "collection": collection_id,
                "keys": transaction.dialect.list_parameter(keys[start : start + _CHUNK]),
            },
        )
        for row in rows:
            found[row[0]] = _existing(row)
    return found


def _existing(row: Row) -> Existing:
    _, record_id, content_hash, row_hash = row
    return Existing(record_id, None if content_hash is None else bytes(content_hash), bytes(row_hash))


def find_vectors(
    transaction: Transaction, space_id: int, record_ids: Sequence[int]
) -> dict[int, tuple[int, bytes]]:
    """By record id: the id and the row hash of its live vector in a space."""
    found: dict[int, tuple[int, bytes]] = {}
    members = transaction.dialect.members("records", "integer")
    for start in range(0, len(record_ids), _CHUNK):
        rows = transaction.all(
            "SELECT record_id, vector_id, row_hash FROM vectors"
            f" WHERE space_id = :space AND record_id IN {members}",
            {
                "space": space_id,
                "records": transaction.dialect.list_parameter(list(record_ids[start : start + _CHUNK])),
            },
        )
        for record_id, vector_id, row_hash in rows:
            found[record_id] = (vector_id, bytes(row_hash))
    return found


def stored_vectors(transaction: Transaction, space_id: int, keys: Mapping[int, str]) -> dict[int, np.ndarray]:
    """By record id, the vectors float32 (dim,) that a space has of records, which are given with their keys."""
    found: dict[int, np.ndarray] = {}
    members = transaction.dialect.members("records", "integer")
    record_ids = list(keys)
    for start in range(0, len(record_ids), _CHUNK):
        rows = transaction.all(
            f"SELECT record_id, vec, row_hash FROM vectors WHERE space_id = :space AND record_id IN {members}",
            {
                "space": space_id,
                "records": transaction.dialect.list_parameter(record_ids[start : start + _CHUNK]),
            },
        )
        for record_id, vec, hashed in rows:
            if not vector_is_whole(vec, hashed, keys[record_id]):
                raise DamagedRow(f"the vector of {shown(keys[record_id])} in space {space_id} is not what was written")
            found[record_id] = np.frombuffer(vec, "<f4")
    return found
