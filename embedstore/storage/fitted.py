"""What is kept with a space: how it is made of others, directions, probes, and whose states it holds."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import orjson

from embedstore.errors import DamagedRow, InvalidInput
from embedstore.storage.database import Transaction

TRANSFORM = "transform"
DIRECTION = "direction"
PROBE = "probe"
STATES = "states"
_KINDS = (TRANSFORM, DIRECTION, PROBE, STATES)
_COLUMNS = "space_id, name, kind, description, body, row_hash"


@dataclass(frozen=True, slots=True)
class Fitted:
    """One row: ``description`` is JSON, ``arrays`` are float32 or int64. A space's transform has the name ''."""

    name: str
    kind: str
    description: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]


def fitted_of(transaction: Transaction, space_id: int, name: str) -> Fitted | None:
    """What a space keeps under a name; None where that is nothing. DamagedRow for what was never written."""
    row = transaction.one(
        f"SELECT {_COLUMNS} FROM fitted WHERE space_id = :space AND name = :name", {"space": space_id, "name": name}
    )
    return None if row is None else made_fitted(row)


def all_fitted(transaction: Transaction, space_id: int) -> list[Fitted]:
    """Everything that a space keeps, by name."""
    rows = transaction.all(f"SELECT {_COLUMNS} FROM fitted WHERE space_id = :space ORDER BY name", {"space": space_id})
    return [made_fitted(row) for row in rows]


def put_fitted(transaction: Transaction, space_id: int, fitted: Fitted) -> None:
    """Keep something with a space, in the place of what has its name."""
    from safetensors.numpy import save

    description = orjson.dumps(fitted.description, option=orjson.OPT_SORT_KEYS).decode()
    body = save({name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()})
    drop_fitted(transaction, space_id, fitted.name)
    hashed = row_hash(space_id, fitted.name, fitted.kind, description, body)
    row = (space_id, fitted.name, fitted.kind, description, body, hashed)
    transaction.insert("fitted", _COLUMNS.split(", "), [row])


def drop_fitted(transaction: Transaction, space_id: int, name: str) -> int:
    """Forget what a space keeps under a name; how many rows that were, 0 or 1."""
    return transaction.run(
        "DELETE FROM fitted WHERE space_id = :space AND name = :name", {"space": space_id, "name": name}
    )


def made_fitted(row: tuple[Any, ...]) -> Fitted:
    """The row as it was written; DamagedRow where it is not."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    space_id, name, kind, description, body, hashed = row
    try:
        if row_hash(space_id, name, kind, description, bytes(body)) != bytes(hashed):
            raise ValueError
        return Fitted(name, kind, orjson.loads(description), load(bytes(body)))
    except (ValueError, TypeError, AttributeError, SafetensorError):
        what = f"the {kind} {name!r}" if name else "how it is made of another space"
        raise DamagedRow(f"what space {space_id} keeps, {what}, is not what was written") from None


def fitted_to_json(fitted: Fitted) -> dict[str, Any]:
    """As a JSON object that ``fitted_from_json`` reads."""
    from safetensors.numpy import save

    body = save({name: np.ascontiguousarray(array) for name, array in fitted.arrays.items()})
    return {
        "name": fitted.name, "kind": fitted.kind, "description": dict(fitted.description),
        "body": base64.b64encode(body).decode(),
    }  # fmt: skip


def fitted_from_json(fields: Mapping[str, Any]) -> Fitted:
    """Read what ``fitted_to_json`` gave; InvalidInput for anything else."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        name, kind, description = fields["name"], fields["kind"], fields["description"]
        right = isinstance(name, str) and kind in _KINDS and isinstance(description, dict)
        if not right or (kind == TRANSFORM) != (name == ""):
            raise ValueError(f"a {kind!r} with the name {name!r}")
        return Fitted(name, kind, description, load(base64.b64decode(fields["body"], validate=True)))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise InvalidInput(f"what was fitted in a space cannot be read: {error}") from None


def row_hash(space_id: int, name: str, kind: str, description: str, body: bytes) -> bytes:
    """BLAKE2b-128 over a row, its parts joined by NUL, which no part but the last can hold."""
    hashed = blake2b(f"{space_id}\0{name}\0{kind}\0{description}\0".encode(), digest_size=16)
    hashed.update(body)
    return hashed.digest()
