"""Reads records without searching: by key, by filter, in order, or at random."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from embedstore.checks import encode_text, shown
from embedstore.errors import DamagedRow, InvalidInput, RecordNotFound, SpaceNotFound
from embedstore.filters import Node, check_fields, parse_where
from embedstore.filters.parse import Where
from embedstore.filters.sql import compile_where
from embedstore.model import FloatMatrix, Modality, Record
from embedstore.records import HASH_BYTES, row_hash, vector_is_whole
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import PackedRecord, Transaction
from embedstore.storage.layout import id_range

RECORD_COLUMNS = (
    "r.record_id, r.key, r.content, CAST(r.metadata AS text), r.modality, r.uri, r.content_hash, r.row_hash"
)
_CHUNK = 5000
_KEY_BITS = 1700  # 512 decimal digits
_MODALITIES = {one.value: one for one in Modality}


def checked_where(transaction: Transaction, collection: CollectionRow, where: Where | Node) -> Node:
    """A filter as a tree whose fields the collection's records have."""
    tree = parse_where(where)
    if collection.n_records:
        check_fields(tree, catalog.field_kinds(transaction, collection.collection_id), collection.name)
    return tree


def _scope(
    transaction: Transaction, collection: CollectionRow, where: Node | None
) -> tuple[str, dict[str, Any]]:
    """A condition on ``records AS r`` for a collection's records under a filter, and its parameters."""
    low, high = id_range(collection.collection_id)
    condition = ""
    parameters: dict[str, Any] = {}
    if where is not None:
        compiled, parameters = compile_where(where, transaction.dialect.name)
        condition = f" AND {compiled}"
    return f"r.record_id BETWEEN :low AND :high{condition}", {**parameters, "low": low, "high": high}


def count_records(transaction: Transaction, collection: CollectionRow, where: Node | None) -> int:
    """How many records there are under a filter."""
    if where is None:
        return collection.n_records
    scope, parameters = _scope(transaction, collection, where)
    row = transaction.one(f"SELECT count(*) FROM records AS r WHERE {scope}", parameters)
    return int(row[0]) if row is not None else 0


def record_ids_where(transaction: Transaction, collection: CollectionRow, where: Node | None) -> list[int]:
    """The ids of the records under a filter, in order."""
    scope, parameters = _scope(transaction, collection, where)
    rows = transaction.all(f"SELECT r.record_id FROM records AS r WHERE {scope} ORDER BY r.record_id", parameters)
    return [row[0] for row in rows]


def record_ids_of(transaction: Transaction, collection: CollectionRow, keys: Sequence[str]) -> dict[str, int]:
    """By key, the ids of those records that exist."""
    found: dict[str, int] = {}
    for start in range(0, len(keys), _CHUNK):
        rows = transaction.all(
            "SELECT key, record_id FROM records WHERE collection_id = :collection"
            f" AND key IN {transaction.dialect.members('keys', 'text')}",
            {
                "collection": collection.collection_id,
                "keys": transaction.dialect.list_parameter(list(keys[start : start + _CHUNK])),
            },
        )
        found.update(rows)
    return found


def records_by_id(transaction: Transaction, record_ids: Sequence[int]) -> dict[int, Record]:
    """By id, the records; DamagedRow where one that an index or a vector leads to is not there."""
    packed = transaction.records_packed(record_ids) if len(record_ids) <= _CHUNK else None
    if packed is not None and len(packed) == len(record_ids):  # nearly always
        return {row[0]: made_record(row) for row in packed}
    return {record_id: make() for record_id, make in unmade_records(transaction, record_ids).items()}


def unmade_records(transaction: Transaction, record_ids: Sequence[int]) -> dict[int, Callable[[], Record]]:
    """By id, what makes each record of the row that was read of it, and raises DamagedRow where that is damaged.

    Raises DamagedRow for a record that an index or a vector leads to and that is not there.
    """
    found: dict[int, Callable[[], Record]] = {}
    members = transaction.dialect.members("ids", "integer")
    for start in range(0, len(record_ids), _CHUNK):
        chunk = record_ids[start : start + _CHUNK]
        packed = transaction.records_packed(chunk)
        if packed is not None:
            for packed_row in packed:
                found[packed_row[0]] = partial(made_record, packed_row)
            continue
        rows = transaction.all(
            f"SELECT {RECORD_COLUMNS} FROM records AS r WHERE r.record_id IN {members}",
            {"ids": transaction.dialect.list_parameter(list(chunk))},
        )
        for row in rows:
            found[row[0]] = partial(_record, row)
    if len(found) < len(record_ids) and any(one not in found for one in record_ids):
        missing = next(one for one in record_ids if one not in found)
        raise DamagedRow(f"the record of number {missing} is not there, but an index or a vector leads to it")
    return found


def require_whole(transaction: Transaction, record_ids: Sequence[int]) -> None:
    """Raise DamagedRow for a record that is not what was written, so that nothing is done by what damage says."""
    for start in range(0, len(record_ids), _CHUNK):
        records_by_id(transaction, record_ids[start : start + _CHUNK])


def stream_records(
    transaction: Transaction, collection: CollectionRow, where: Node | None, limit: int | None = None,
    *, after: int = 0,
) -> Iterator[tuple[int, Record]]:  # fmt: skip
    """The records under a filter with their ids, in the order in which they were first added; those behind an id."""
    scope, parameters = _scope(transaction, collection, where)
    if after:
        scope, parameters["after"] = f"{scope} AND r.record_id > :after", after
    bounded = "" if limit is None else " LIMIT :limit"
    if limit is not None:
        parameters["limit"] = limit
    for row in transaction.stream(
        f"SELECT {RECORD_COLUMNS} FROM records AS r WHERE {scope} ORDER BY r.record_id{bounded}", parameters
    ):
        yield row[0], _record(row)


def sample_ids(
    transaction: Transaction, collection: CollectionRow, n: int, where: Node | None, seed: int | None
) -> list[int]:
    """The ids of ``n`` records drawn at random without replacement, in random order."""
    ids = record_ids_where(transaction, collection, where)
    return random.Random(seed).sample(ids, min(n, len(ids)))


def newest_picture_is_embedded(transaction: Transaction, collection: CollectionRow) -> bool:
    """Whether the picture that was added last is kept with its bytes; False where there is none."""
    low, high = id_range(collection.collection_id)
    row = transaction.one(
        "SELECT substr(content, 1, 5) FROM records WHERE record_id BETWEEN :low AND :high AND modality = :image"
        " ORDER BY record_id DESC LIMIT 1",
        {"low": low, "high": high, "image": Modality.IMAGE.value},
    )
    return row is not None and row[0] == "data:"


def _record(row: tuple[Any, ...]) -> Record:
    """The record of a row; DamagedRow where it is not what was written."""
    fault = record_fault(row)
    if fault is not None:
        raise DamagedRow(fault)
    _, key, content, metadata, modality, uri, _, _ = row
    return Record(key, content, orjson.loads(metadata), _MODALITIES[modality], uri)


def made_record(row: PackedRecord) -> Record:
    """The record of a packed row; DamagedRow where it is not what was written."""
    record_id, key, content, metadata, modality, uri, hashed = row
    try:  # as ``record_fault`` does, in one piece, since this runs for every record of every answer
        found = ""
        if content is not None:
            found = blake2b(content.encode(), digest_size=HASH_BYTES).hexdigest()
        joined = f"{key}\0{modality}\0{found}\0{uri or ''}\0{metadata}"
        if blake2b(joined.encode(), digest_size=HASH_BYTES).hexdigest().upper() == hashed:
            return Record(key, content, orjson.loads(metadata), _MODALITIES[modality], uri)
    except (KeyError, AttributeError, TypeError, ValueError):
        pass
    raise DamagedRow(f"the record {shown(str(key))} (number {record_id}) is not what was written")


def record_fault(row: tuple[Any, ...]) -> str | None:
    """What is wrong with a row of ``RECORD_COLUMNS`` by its own hashes; None where nothing is."""
    record_id, key, content, metadata, modality, uri, content_hash, hashed = row
    try:
        content_hashed = None if content is None else blake2b(content.encode(), digest_size=HASH_BYTES).digest()
        found = row_hash(key, _MODALITIES[modality], content_hashed, uri, metadata.encode())
    except (KeyError, AttributeError, TypeError, ValueError):
        return f"the row of record {record_id} holds values of other kinds than were written"
    if found != hashed or content_hashed != content_hash:
        return f"the record {shown(str(key))} (number {record_id}) is not what was written"
    return None


def keys_by_id(transaction: Transaction, record_ids: Sequence[int]) -> dict[int, str]:
    """By id, the keys of those records that exist."""
    found: dict[int, str] = {}
    members = transaction.dialect.members("ids", "integer")
    for start in range(0, len(record_ids), _CHUNK):
        chunk = transaction.dialect.list_parameter(list(record_ids[start : start + _CHUNK]))
        rows = transaction.all(f"SELECT record_id, key FROM records WHERE record_id IN {members}", {"ids": chunk})
        found.update(rows)
    return found


def uris_by_key(transaction: Transaction, collection: CollectionRow, keys: Sequence[str]) -> dict[str, str | None]:
    """By key, the addresses of those records that exist; None for one without."""
    found: dict[str, str | None] = {}
    members = transaction.dialect.members("keys", "text")
    for start in range(0, len(keys), _CHUNK):
        rows = transaction.all(
            f"SELECT key, uri FROM records WHERE collection_id = :collection AND key IN {members}",
            {
                "collection": collection.collection_id,
                "keys": transaction.dialect.list_parameter(list(keys[start : start + _CHUNK])),
            },
        )
        found.update(rows)
    return found


def vectors_of(
    transaction: Transaction, space_id: int, record_ids: Sequence[int]
) -> dict[int, bytes]:
    """By record id, the bytes of its vector in a space; DamagedRow for one that is not what was written."""
    found: dict[int, bytes] = {}
    members = transaction.dialect.members("ids", "integer")
    for start in range(0, len(record_ids), _CHUNK):
        rows = transaction.all(
            "SELECT v.record_id, v.vec, v.row_hash, r.key FROM vectors AS v"
            " LEFT JOIN records AS r ON r.record_id = v.record_id"
            f" WHERE v.space_id = :space AND v.record_id IN {members}",
            {
                "space": space_id,
                "ids": transaction.dialect.list_parameter(list(record_ids[start : start + _CHUNK])),
            },
        )
        for record_id, vec, hashed, key in rows:
            if not vector_is_whole(vec, hashed, key):
                raise DamagedRow(f"the vector of record {record_id} in space {space_id} is not what was written")
            found[record_id] = bytes(vec)
    return found


def vectors_by_key(
    transaction: Transaction, collection: CollectionRow, keys: Sequence[str], space: str | None
) -> FloatMatrix:
    """The stored vectors of records, float32 (len(keys), dim); RecordNotFound where a key has none."""
    row = space_row(transaction, collection, space)
    keys = as_keys(keys)
    ids = record_ids_of(transaction, collection, keys)
    held = vectors_of(transaction, row.space_id, list(ids.values()))
    for key in keys:
        if key not in ids:
            raise unknown_key(collection.name, key)
        if ids[key] not in held:
            raise RecordNotFound(f"the record {shown(key)} of {collection.name!r} has no vector in space {row.name!r}")
    if not keys:
        return np.empty((0, row.dim or 0), np.float32)
    return np.frombuffer(b"".join(held[ids[key]] for key in keys), "<f4").reshape(len(keys), -1).copy()


def space_row(transaction: Transaction, collection: CollectionRow, name: str | None) -> SpaceRow:
    """A space of a collection by name, or its default one; SpaceNotFound lists those there are."""
    spaces = catalog.known_spaces(transaction, collection.collection_id)
    wanted = name or collection.default_space
    if wanted not in spaces:
        raise SpaceNotFound(f"{collection.name!r} has no space {wanted!r}; it has: {', '.join(spaces)}")
    return spaces[wanted]


def unknown_key(name: str, key: str) -> RecordNotFound:
    """The error for a key that no record of the collection called ``name`` has."""
    return RecordNotFound(f"no record of {name!r} has the key {shown(str(key))}")


def as_keys(keys: Iterable[Any]) -> list[str]:
    """Keys as they are stored: integers are written as decimals."""
    found = []
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise InvalidInput(f"keys are given as a list, such as ['p1']; this is {type(keys).__name__}")
    for key in keys:
        if isinstance(key, str):
            encode_text(key, None, "key")
            found.append(key)
        elif isinstance(key, int) and not isinstance(key, bool) and key.bit_length() <= _KEY_BITS:
            found.append(str(key))
        else:
            raise InvalidInput(f"a key is a string or an integer of at most 512 digits, not {type(key).__name__}")
    return found
