"""What probes learn from: the states of records by layer, and what the records' fields say of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.points import field_of
from embedstore.model import FloatMatrix, IntVector
from embedstore.reading import (
    checked_where,
    record_ids_of,
    record_ids_where,
    records_by_id,
    space_row,
    stream_records,
    vectors_of,
)
from embedstore.states.taps import HEAD, HIDDEN, SITES, Tap
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow
from embedstore.storage.database import Transaction

if TYPE_CHECKING:
    from embedstore.collection import Collection

_PAGE = 4096


@dataclass(frozen=True, slots=True)
class LayerSpace:
    """A space that holds a layer's states, and which layer that is."""

    layer: int
    name: str


@dataclass(frozen=True, slots=True)
class Examples:
    """Records that say something of themselves: their ids, contents, labels, and what they are grouped by."""

    record_ids: list[int]
    texts: list[str]
    labels: list[Any]
    groups: list[Any]

    def __len__(self) -> int:
        return len(self.record_ids)

    def subset(self, places: IntVector) -> Examples:
        """Those at some places."""
        return Examples(*([given[place] for place in places.tolist()] for given in self._all()))

    def _all(self) -> tuple[list[Any], ...]:
        return self.record_ids, self.texts, self.labels, self.groups


def layer_spaces(
    collection: Collection, layers: str | int | Iterable[int] = "all", *, prefix: str = "", site: str = HIDDEN
) -> list[LayerSpace]:
    """The spaces of captured layers, in their order; InvalidInput where there are none, or one is not there."""
    if site not in SITES:
        raise InvalidInput(f"site is {site!r}; it must be one of {', '.join(SITES)}")
    place = Tap(site, 0, 0 if site == HEAD else None)
    pattern = re.compile(re.escape(prefix) + re.sub(r"\d+", r"(\\d+)", place.space_name))
    found: dict[int, list[str]] = {}
    last = 0
    for space in collection.spaces():
        match, hidden = pattern.fullmatch(space.name), re.fullmatch(re.escape(prefix) + r"layer-(\d+)", space.name)
        last = max(last, int(hidden[1]) if hidden else 0)
        if match:
            found.setdefault(int(match[1]) if match.groups() else -1, []).append(space.name)
    if -1 in found:  # the final norm, behind the last layer
        found[last] = found.pop(-1)
    if not found:
        held = ", ".join(space.name for space in collection.spaces())
        told = f"{site!r} layers{f' under the prefix {prefix!r}' if prefix else ''}"
        raise InvalidInput(
            f"{collection.name!r} holds no {told} (it has {held}); capture them first: probing.capture(...), embedstore"
            " probe capture"
        )
    if layers == "all":
        return [LayerSpace(layer, name) for layer in sorted(found) for name in sorted(found[layer])]
    given = [layers] if isinstance(layers, int) else layers
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidInput(f"layers is {layers!r}; give 'all' or a list of numbers, such as [0, 3, -1]")
    held_layers, wanted = sorted(found), []
    for layer in dict.fromkeys(given):
        number = held_layers[layer] if isinstance(layer, int) and -len(held_layers) <= layer < 0 else layer
        if number not in found:
            under = f" under the prefix {prefix!r}" if prefix else ""
            there = ", ".join(map(str, held_layers))
            raise InvalidInput(f"layer {layer} was not captured{under}; there are {there}")
        wanted += [LayerSpace(number, name) for name in sorted(found[number])]
    return wanted


def examples_of(
    collection: Collection, label: str, spaces: Sequence[LayerSpace], *, where: Where | None = None,
    group_by: str | None = None, several: bool = False,
) -> Examples:  # fmt: skip
    """The records with a field ``label`` and a vector in every one of the spaces; InvalidInput where there are none.

    several: whether the field holds lists, of which each member is a label. group_by: a field; records that agree in it
    are never parted.
    """
    found = Examples([], [], [], [])
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        tree = None if where is None else checked_where(transaction, owner, where)
        for record_id, record in stream_records(transaction, owner, tree):
            value = record.metadata.get(label) if several else field_of(record.metadata, label)
            if value is None or (several and not isinstance(value, list)):
                continue
            group = record_id if group_by is None else field_of(record.metadata, group_by)
            if group is None:
                raise InvalidInput(f"the record {record.key!r} has no field {group_by!r} to be grouped by")
            found.record_ids.append(record_id)
            found.texts.append(record.content or "")
            found.labels.append([str(one) for one in value] if several else value)
            found.groups.append(str(group) if group_by is not None else record_id)
        if not found.record_ids:
            told = "a list in the field" if several else "the field"
            under = "" if where is None else " under the filter"
            raise InvalidInput(f"no record of {collection.name!r}{under} has {told} {label!r}")
        kept = _with_vectors(transaction, owner, found.record_ids, [space.name for space in spaces])
    if not kept:
        names = ", ".join(space.name for space in spaces)
        raise InvalidInput(f"no record with the field {label!r} has vectors in all of {names}")
    return found.subset(np.array([place for place, one in enumerate(found.record_ids) if one in kept]))


def holds_lists(collection: Collection, label: str) -> bool:
    """Whether the first record that has a field has a list in it."""
    try:
        found = list(collection.records({label: {"$exists": True}}, limit=1))
    except InvalidInput:  # no record has it, which is told where examples are read
        return False
    return bool(found) and isinstance(found[0].metadata.get(label), list)


def states_of(collection: Collection, space: str, record_ids: Sequence[int]) -> FloatMatrix:
    """The vectors of records as they were captured, float32 (n, dim)."""
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, space)
        held = vectors_of(transaction, row.space_id, record_ids)
        dim = row.dim or 0
    found = np.empty((len(record_ids), dim), np.float32)
    for line, record_id in enumerate(record_ids):
        if record_id not in held:
            raise InvalidInput(f"a record lost its vector in {space!r} meanwhile; try again")
        found[line] = np.frombuffer(held[record_id], "<f4")
    return found


def fields_of(collection: Collection, field: str, record_ids: Sequence[int]) -> list[Any]:
    """What a metadata field says of records; InvalidInput where one says nothing."""
    with collection.store.reading() as transaction:
        held = {record_id: field_of(record.metadata, field) for record_id, record in records_by_id(
            transaction, record_ids).items()}  # fmt: skip
    lacking = sum(held.get(one) is None for one in record_ids)
    if lacking:
        raise InvalidInput(f"{lacking:,} of {len(record_ids):,} records have no field {field!r} with a single value")
    return [held[one] for one in record_ids]


def with_vectors(collection: Collection, keys: Sequence[str], spaces: Sequence[str]) -> set[str]:
    """Those of the keys whose records have a vector in every one of the spaces."""
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        ids = record_ids_of(transaction, owner, keys)
        kept = _with_vectors(transaction, owner, list(ids.values()), spaces)
    return {key for key, record_id in ids.items() if record_id in kept}


def _with_vectors(
    transaction: Transaction, owner: CollectionRow, record_ids: Sequence[int], spaces: Sequence[str]
) -> set[int]:
    kept = set(record_ids)
    members = transaction.dialect.members("ids", "integer")
    for name in spaces:
        space_id = space_row(transaction, owner, name).space_id
        ids, held = sorted(kept), set[int]()
        for start in range(0, len(ids), _PAGE):
            chunk = transaction.dialect.list_parameter(ids[start : start + _PAGE])
            rows = transaction.all(
                f"SELECT record_id FROM vectors WHERE space_id = :space AND record_id IN {members}",
                {"space": space_id, "ids": chunk},
            )
            held.update(row[0] for row in rows)
        kept &= held
    return kept


def records_in(collection: Collection, spaces: Sequence[LayerSpace], where: Where | None = None) -> list[int]:
    """The records that have a vector in every one of the spaces, under a filter."""
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        tree = None if where is None else checked_where(transaction, owner, where)
        ids = record_ids_where(transaction, owner, tree)
        return sorted(_with_vectors(transaction, owner, ids, [space.name for space in spaces]))
