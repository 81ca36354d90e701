"""The rows that describe collections, their spaces and their fields."""

from __future__ import annotations

import datetime
import json
import secrets
import uuid
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import orjson

from embedstore.errors import CollectionNotFound, DamagedRow
from embedstore.metadata import FieldKinds, FieldPath
from embedstore.model import Metric
from embedstore.storage.database import Row, Transaction
from embedstore.storage.head import NO_COMMIT
from embedstore.storage.layout import ID_SHIFT, OLDEST_RELEASE

EMPTY_DIGEST = bytes(16)
_METRICS = {metric.value for metric in Metric}


class CollectionRow(NamedTuple):  # a tuple: rows are made anew at every write, and a data class takes thrice as long
    """A row of ``collections``. ``last_change`` is the number of its newest commit."""

    collection_id: int
    name: str
    default_space: str
    last_change: int
    log_floor: int
    last_serial: int
    n_records: int
    digest: bytes


class SpaceRow(NamedTuple):
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


_COLLECTION = (
    f"o.collection_id, o.name, o.default_space, c.commit_key - o.collection_id * {ID_SHIFT}, o.log_floor,"
    " c.last_serial, c.n_records, c.digest"
)
_NEWEST = (
    "LEFT JOIN commits AS c ON c.commit_key = (SELECT max(d.commit_key) FROM commits AS d"
    f" WHERE d.commit_key BETWEEN {{0}}.collection_id * {ID_SHIFT}"
    f" AND {{0}}.collection_id * {ID_SHIFT} + {ID_SHIFT - 1})"
)
_COLLECTIONS = f"collections AS o {_NEWEST.format('o')}"
_SPACE = "space_id, collection_id, name, dim, metric, dtype, encoder, fingerprint, recipe"
_SPACES = f"spaces AS s {_NEWEST.format('s')}"


def collection_row(row: Row) -> CollectionRow:
    """A row of ``collections`` with its newest commit; DamagedRow for values that were never written."""
    found = CollectionRow(*_cells(row))
    numbers = (found.collection_id, found.last_change, found.log_floor, found.last_serial, found.n_records)
    if not (_are_counts(numbers) and _are_texts((found.name, found.default_space)) and _is_digest(found.digest)):
        raise DamagedRow(f"the row of collection {found.collection_id!r} holds values that were never written")
    return found


def space_row(row: Row) -> SpaceRow:
    """A row of ``spaces`` with what the newest commit says of it; DamagedRow for values that were never written."""
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
    memory = transaction.memory
    if memory is not None and (known := memory.get(("collection", name))) is not None:
        return known  # type: ignore[no-any-return]
    row = transaction.one(f"SELECT {_COLLECTION} FROM {_COLLECTIONS} WHERE o.name = :name", {"name": name})
    if row is None:
        return None
    found = collection_row(row)
    if memory is not None:
        memory["collection", name] = found
    return found


def require_collection(transaction: Transaction, name: str) -> CollectionRow:
    """The collection called ``name``; CollectionNotFound where there is none."""
    row = find_collection(transaction, name)
    if row is None:
        raise CollectionNotFound(f"the collection {name!r} does not exist yet; its first write creates it")
    return row


def lock_collection(transaction: Transaction, name: str) -> CollectionRow | None:
    """The collection called ``name``, kept from other writers until the transaction ends; None where it is not."""
    if transaction.dialect.for_update:
        # By itself: what stands beside a row that was waited for would be of before the wait.
        transaction.one(
            f"SELECT 1 FROM collections WHERE name = :name{transaction.dialect.for_update}", {"name": name}
        )
    return find_collection(transaction, name)


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
    rows = transaction.all(f"SELECT {_COLLECTION} FROM {_COLLECTIONS} ORDER BY o.name")
    return [collection_row(row) for row in rows]


def spaces_of(transaction: Transaction, collection_id: int) -> dict[str, SpaceRow]:
    """The spaces of a collection by name, in the order of their creation, for the caller to keep."""
    return dict(known_spaces(transaction, collection_id))


def known_spaces(transaction: Transaction, collection_id: int) -> Mapping[str, SpaceRow]:
    """The spaces of a collection by name, in the order of their creation."""
    memory = transaction.memory
    if memory is not None and (known := memory.get(("spaces", collection_id))) is not None:
        return known  # type: ignore[no-any-return]
    rows = transaction.all(
        f"SELECT s.{_SPACE.replace(', ', ', s.')}, c.spaces FROM {_SPACES} WHERE s.collection_id = :collection"
        " ORDER BY s.space_id",
        {"collection": collection_id},
    )
    states = space_states(rows[0][-1]) if rows else {}
    found = {row[2]: space_row((*row[:-1], *states.get(row[0], _NO_VECTORS))) for row in rows}
    if memory is not None:
        memory["spaces", collection_id] = found
    return found


def create_collection(transaction: Transaction, name: str, default_space: str) -> CollectionRow:
    """Insert a collection without records."""
    forget(transaction)
    row = CollectionRow(_next_id(transaction, "last_collection_id"), name, default_space, 0, 0, 0, 0, EMPTY_DIGEST)
    transaction.insert(
        "collections",
        ["collection_id", "name", "default_space", "log_floor", "created_at"],
        [(row.collection_id, name, default_space, 0, now())],
    )
    insert_commit(transaction, row, {}, [], [])
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
    forget(transaction)
    row = SpaceRow(
        _next_id(transaction, "last_space_id"), collection_id, name, dim, metric, "float32", encoder, fingerprint,
        recipe, 0, 0, EMPTY_DIGEST,
    )  # fmt: skip
    values = (row.space_id, collection_id, name, dim, metric, row.dtype, encoder, fingerprint, recipe)
    transaction.insert("spaces", _SPACE.split(", "), [values])
    return row


def space_states(text: Any) -> dict[int, tuple[int, int, bytes]]:
    """By space id, the last seq, number of vectors and digest that a commit says; DamagedRow where it says nothing."""
    try:
        return {
            int(one): (last_seq, n_live, bytes.fromhex(digest))
            for one, (last_seq, n_live, digest) in orjson.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError):
        raise DamagedRow("the newest commit of a collection holds values that were never written") from None


_NO_VECTORS = (0, 0, EMPTY_DIGEST)


def commit_key(collection_id: int, change: int) -> int:
    """The key of a collection's commit."""
    return collection_id * ID_SHIFT + change


def commit_name(transaction: Transaction, collection_id: int, change: int) -> str | None:
    """The id of a collection's commit in hex, or None where the history that is kept has none of that number."""
    row = transaction.one(
        "SELECT commit_id FROM commits WHERE commit_key = :key", {"key": commit_key(collection_id, change)}
    )
    return None if row is None else bytes(row[0]).hex()


def insert_commit(
    transaction: Transaction,
    collection: CollectionRow,
    spaces: dict[str, SpaceRow],
    changed_records: Iterable[int],
    dead_vectors: Iterable[tuple[int, int]],
) -> None:
    """Insert the commit that leaves a collection and its spaces as they are given, by its own name and number."""
    states = {str(one.space_id): (one.last_seq, one.n_live, one.digest.hex()) for one in spaces.values()}
    state = orjson.dumps(states, option=orjson.OPT_SORT_KEYS).decode()
    name = commit_id(secrets.token_bytes(8), collection, state, changed_records, dead_vectors)
    transaction.run(
        "INSERT INTO commits (commit_key, commit_id, number, last_serial, n_records, digest, spaces)"
        " VALUES (:key, :name, :number, :last_serial, :n_records, :digest, :spaces)",
        {
            "key": commit_key(collection.collection_id, collection.last_change), "name": name,
            "number": transaction.commit_number(name), "last_serial": collection.last_serial,
            "n_records": collection.n_records, "digest": collection.digest, "spaces": state,
        },
    )  # fmt: skip


def forget_logs(transaction: Transaction, collection_id: int, floor: int) -> int:
    """Remove what is logged up to a change; that commit itself stays, to know caches by. The number of rows removed."""
    mine = {"collection": collection_id, "floor": floor}
    n_rows = transaction.run(
        "DELETE FROM changed_records WHERE collection_id = :collection AND change <= :floor", mine
    )
    n_rows += transaction.run(
        "DELETE FROM dead_vectors WHERE change <= :floor"
        " AND space_id IN (SELECT space_id FROM spaces WHERE collection_id = :collection)",
        mine,
    )
    n_rows += transaction.run(
        "DELETE FROM commits WHERE commit_key >= :low AND commit_key < :high",
        {"low": commit_key(collection_id, 0), "high": commit_key(collection_id, floor)},
    )
    transaction.run(
        "UPDATE collections SET log_floor = :floor WHERE collection_id = :collection AND log_floor < :floor", mine
    )
    return n_rows


def field_kinds(transaction: Transaction, collection_id: int) -> FieldKinds:
    """Every metadata path that the collection's records have had, with the kinds of values seen there."""
    memory = transaction.memory
    if memory is not None and ("fields", collection_id) in memory:
        return memory["fields", collection_id]  # type: ignore[no-any-return]
    rows = transaction.all(
        "SELECT path, kind FROM fields WHERE collection_id = :collection", {"collection": collection_id}
    )
    try:
        found = FieldKinds((tuple(json.loads(path)), kind) for path, kind in rows)
    except (TypeError, ValueError):
        raise DamagedRow(f"the fields of collection {collection_id} hold values that were never written") from None
    if memory is not None:
        memory["fields", collection_id] = found
    return found


def add_field_kinds(transaction: Transaction, collection_id: int, kinds: FieldKinds) -> None:
    """Note the pairs of ``kinds`` that are new."""
    if not kinds:
        return
    known = field_kinds(transaction, collection_id)
    if kinds <= known:
        return
    new = [(collection_id, path_json(path), kind) for path, kind in kinds - known]
    transaction.insert("fields", ["collection_id", "path", "kind"], sorted(new))
    if transaction.memory is not None:
        transaction.memory.pop(("fields", collection_id), None)


def forget(transaction: Transaction) -> None:
    """Forget what is remembered of the catalog, since it is about to change."""
    memory = transaction.memory
    if memory is not None:
        for key in [key for key in memory if key[0] in ("collection", "spaces", "fields", "tuning")]:
            del memory[key]


def remember(transaction: Transaction, collection: CollectionRow, spaces: dict[str, SpaceRow]) -> None:
    """Remember rows as this transaction leaves them; whatever else it changed of the catalog is remembered too."""
    if transaction.memory is not None:
        transaction.memory["collection", collection.name] = collection
        transaction.memory["spaces", collection.collection_id] = dict(spaces)
        transaction.vouch()


@lru_cache(maxsize=4096)
def path_json(path: FieldPath) -> str:
    """A metadata path as it is stored."""
    return json.dumps(list(path), ensure_ascii=False)


def tuning_of(transaction: Transaction, space_id: int) -> dict[str, Any] | None:
    """What was measured when a space was tuned; None where it never was. DamagedRow for what was never written."""
    memory = transaction.memory
    if memory is not None and ("tuning", space_id) in memory:
        return memory["tuning", space_id]  # type: ignore[no-any-return]
    row = transaction.one("SELECT report, row_hash FROM tunings WHERE space_id = :space", {"space": space_id})
    found: dict[str, Any] | None = None
    if row is not None:
        if not isinstance(row[0], str) or tuning_hash(space_id, row[0]) != bytes(row[1]):
            raise DamagedRow(f"the tuning of space {space_id} is not what was written")
        found = orjson.loads(row[0])
    if memory is not None:
        memory["tuning", space_id] = found
    return found


def put_tuning(transaction: Transaction, space_id: int, report: dict[str, Any]) -> None:
    """Note what was measured when a space was tuned."""
    text = orjson.dumps(report, option=orjson.OPT_SORT_KEYS).decode()
    transaction.run("DELETE FROM tunings WHERE space_id = :space", {"space": space_id})
    transaction.insert("tunings", ["space_id", "report", "row_hash"], [(space_id, text, tuning_hash(space_id, text))])
    if transaction.memory is not None:
        transaction.memory.pop(("tuning", space_id), None)


def tuning_hash(space_id: int, text: str) -> bytes:
    """The row hash of what was measured when a space was tuned, as JSON."""
    return blake2b(f"{space_id}\0{text}".encode(), digest_size=16).digest()


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
    collection: CollectionRow,
    spaces: str,
    changed_records: Iterable[int],
    dead_vectors: Iterable[tuple[int, int]],
) -> bytes:
    """16 bytes that name one commit: 8 random ones, and a hash over what it wrote to the logs and left behind.

    spaces: as the commit's row holds them; changed_records: their ids; dead_vectors: pairs of space id and seq; both in
    any order.
    """
    written = [
        collection.collection_id, collection.last_change, sorted(changed_records), sorted(dead_vectors),
        collection.last_serial, collection.n_records, collection.digest.hex(), spaces,
    ]  # fmt: skip
    return random + blake2b(random + orjson.dumps(written), digest_size=8).digest()
