"""The rows that describe collections, their spaces and their fields."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import orjson

from embedstore.errors import CollectionNotFound, DamagedRow
from embedstore.model import Metric
from embedstore.records import FieldKinds, FieldPath
from embedstore.storage.database import Row, Transaction
from embedstore.storage.head import NO_COMMIT
from embedstore.storage.layout import OLDEST_RELEASE

EMPTY_DIGEST = bytes(16)
_METRICS = {metric.value for metric in Metric}


@dataclass(frozen=True, slots=True)
class CollectionRow:
    """A row of ``collections``. ``last_change`` is the number of its newest commit."""

    collection_id: int
    name: str
    default_space: str
    last_change: int
    log_floor: int
    last_serial: int
    n_records: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class SpaceRow:
    """A row of ``spaces``. ``dim`` is None until the first vector; ``encoder`` is '' where there is none."""

    space_id: int
    collection_id: int
    name: str
    dim: int | None
    metric: str
    dtype: str
    encoder: str
    fingerprint: str
    recipe: str
    last_seq: int
    n_live: int
    digest: bytes


_COLLECTION = "collection_id, name, default_space, last_change, log_floor, last_serial, n_records, digest"
_SPACE = (
    "space_id, collection_id, name, dim, metric, dtype, encoder, fingerprint, recipe, last_seq, n_live, digest"
)


def collection_row(row: Row) -> CollectionRow:
    """A row of ``collections``; DamagedRow for values that were never written."""
    found = CollectionRow(*_cells(row))
    numbers = (found.collection_id, found.last_change, found.log_floor, found.last_serial, found.n_records)
    if not (_are_counts(numbers) and _are_texts((found.name, found.default_space)) and _is_digest(found.digest)):
        raise DamagedRow(f"the row of collection {found.collection_id!r} holds values that were never written")
    return found


def space_row(row: Row) -> SpaceRow:
    """A row of ``spaces``; DamagedRow for values that were never written."""
    found = SpaceRow(*_cells(row))
    numbers = (found.space_id, found.collection_id, found.last_seq, found.n_live, found.dim or 0)
    texts = (found.name, found.encoder, found.fingerprint, found.recipe)
    known = found.metric in _METRICS and found.dtype == "float32"
    if not (known and _are_counts(numbers) and _are_texts(texts) and _is_digest(found.digest)):
        raise DamagedRow(f"the row of space {found.space_id!r} holds values that were never written")
    return found


def _cells(row: Row) -> list[Any]:
    return [bytes(cell) if isinstance(cell, memoryview) else cell for cell in row]


def _are_counts(values: Iterable[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _are_texts(values: Iterable[Any]) -> bool:
    return all(type(value) is str for value in values)


def _is_digest(value: Any) -> bool:
    return type(value) is bytes and len(value) == len(EMPTY_DIGEST)


def find_collection(transaction: Transaction, name: str) -> CollectionRow | None:
    """The collection called ``name``, or None."""
    row = transaction.one(f"SELECT {_COLLECTION} FROM collections WHERE name = :name", {"name": name})
    return None if row is None else collection_row(row)


def require_collection(transaction: Transaction, name: str) -> CollectionRow:
    """The collection called ``name``; CollectionNotFound where there is none."""
    row = find_collection(transaction, name)
    if row is None:
        raise CollectionNotFound(f"the collection {name!r} does not exist yet; its first write creates it")
    return row


def lock_collection(transaction: Transaction, name: str) -> CollectionRow | None:
    """The collection called ``name``, kept from other writers until the transaction ends; None where it is not."""
    row = transaction.one(
        f"SELECT {_COLLECTION} FROM collections WHERE name = :name{transaction.dialect.for_update}", {"name": name}
    )
    return None if row is None else collection_row(row)


def _next_id(transaction: Transaction, counter: str) -> int:
    """An id that was never handed out before, so that nothing kept of a deleted owner can be taken for the new."""
    transaction.alone()
    row = transaction.one(
        "UPDATE store_info SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT) WHERE name = :counter RETURNING value",
        {"counter": counter},
    )
    assert row is not None  # noted by ``note_store``
    return int(row[0])


def all_collections(transaction: Transaction) -> list[CollectionRow]:
    """Every collection, by name."""
    rows = transaction.all(f"SELECT {_COLLECTION} FROM collections ORDER BY name")
    return [collection_row(row) for row in rows]


def spaces_of(transaction: Transaction, collection_id: int) -> dict[str, SpaceRow]:
    """The spaces of a collection by name, in the order of their creation."""
    rows = transaction.all(
        f"SELECT {_SPACE} FROM spaces WHERE collection_id = :collection ORDER BY space_id",
        {"collection": collection_id},
    )
    return {row[2]: space_row(row) for row in rows}


def create_collection(transaction: Transaction, name: str, default_space: str) -> CollectionRow:
    """Insert a collection without records."""
    row = CollectionRow(_next_id(transaction, "last_collection_id"), name, default_space, 0, 0, 0, 0, EMPTY_DIGEST)
    transaction.insert(
        "collections",
        _COLLECTION.split(", ") + ["created_at"],
        [(row.collection_id, name, default_space, 0, 0, 0, 0, EMPTY_DIGEST, now())],
    )
    return row


def create_space(
    transaction: Transaction,
    collection_id: int,
    name: str,
    *,
    dim: int | None,
    metric: str,
    encoder: str,
    fingerprint: str,
    recipe: str,
) -> SpaceRow:
    """Insert a space without vectors."""
    row = SpaceRow(
        _next_id(transaction, "last_space_id"), collection_id, name, dim, metric, "float32", encoder, fingerprint,
        recipe, 0, 0, EMPTY_DIGEST,
    )  # fmt: skip
    values = (
        row.space_id, collection_id, name, dim, metric, row.dtype, encoder, fingerprint, recipe, 0, 0, EMPTY_DIGEST
    )  # fmt: skip
    transaction.insert("spaces", _SPACE.split(", "), [values])
    return row


def field_kinds(transaction: Transaction, collection_id: int) -> FieldKinds:
    """Every metadata path that the collection's records have had, with the kinds of values seen there."""
    rows = transaction.all(
        "SELECT path, kind FROM fields WHERE collection_id = :collection", {"collection": collection_id}
    )
    try:
        return FieldKinds((tuple(json.loads(path)), kind) for path, kind in rows)
    except (TypeError, ValueError):
        raise DamagedRow(f"the fields of collection {collection_id} hold values that were never written") from None


def add_field_kinds(transaction: Transaction, collection_id: int, kinds: FieldKinds) -> None:
    """Note the pairs of ``kinds`` that are new."""
    if not kinds:
        return
    mine = {"collection": collection_id}
    known = set(transaction.all("SELECT path, kind FROM fields WHERE collection_id = :collection", mine))
    new = {(path_json(path), kind) for path, kind in kinds} - known
    if new:
        transaction.insert(
            "fields", ["collection_id", "path", "kind"], [(collection_id, path, kind) for path, kind in sorted(new)]
        )


@lru_cache(maxsize=4096)
def path_json(path: FieldPath) -> str:
    """A metadata path as it is stored."""
    return json.dumps(list(path), ensure_ascii=False)


def store_uuid(transaction: Transaction) -> str:
    """The random identity that tells this store from every other."""
    row = transaction.one("SELECT value FROM store_info WHERE name = 'uuid'")
    assert row is not None  # noted by ``note_store``, in the transaction that made the tables
    return str(row[0])


def note_store(transaction: Transaction, release: str) -> None:
    """Give a new store its identity."""
    rows = [
        ("uuid", str(uuid.uuid4())), ("created_by", f"embedstore {release}"), ("created_at", now()),
        ("last_collection_id", "0"), ("last_space_id", "0"), ("head", NO_COMMIT.to_text()),
        ("needs", OLDEST_RELEASE),
    ]  # fmt: skip
    transaction.insert("store_info", ["name", "value"], rows)


def now() -> str:
    """The time in UTC, to the second; only ever shown, never compared."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def commit_id(
    random: bytes,
    collection_id: int,
    change: int,
    changed_records: Iterable[int],
    dead_vectors: Iterable[tuple[int, int]],
) -> bytes:
    """16 bytes that name one commit: 8 random ones, and a hash over what the commit wrote to the logs.

    changed_records: their ids; dead_vectors: pairs of space id and seq; both in any order.
    """
    logged = [collection_id, change, sorted(changed_records), sorted(dead_vectors)]
    return random + blake2b(random + orjson.dumps(logged), digest_size=8).digest()
