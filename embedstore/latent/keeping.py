"""Keeps what was computed of records in their metadata, so that it can be filtered by."""

from __future__ import annotations

from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from embedstore.errors import InvalidInput, RecordNotFound
from embedstore.reading import checked_where, count_records
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow
from embedstore.storage.database import Transaction
from embedstore.storing.committing import commit_metadata

if TYPE_CHECKING:
    from embedstore.collection import Collection

_PAGE = 1000
_OWN = ("key", "text", "image", "row", "vector", "vectors", "uri", "metadata")


def check_field(transaction: Transaction, owner: CollectionRow, name: str, stored: Several[str]) -> None:
    """InvalidInput for a field that records have for something else than an object of the names ``stored``."""
    if not isinstance(name, str) or not name or name.startswith("_"):
        raise InvalidInput(f"store_as is {name!r}; give the name of a field, which begins with no underscore")
    if "." in name or name in _OWN:
        raise InvalidInput(f"store_as is {name!r}; give a name without a dot that is no part of a record itself")
    kinds = catalog.field_kinds(transaction, owner.collection_id)
    others = [path for path, _ in kinds if path[0] == name and path[1:] not in [(one,) for one in stored]]
    there = {name: {"$exists": True}}
    if others and count_records(transaction, owner, checked_where(transaction, owner, there)):
        raise InvalidInput(f"records have a field {name!r} that holds something else; give store_as another name")


def keep_field(collection: Collection, name: str, values: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Give records, by key, a field; others, which may have it of an earlier time, have it no longer."""
    kept: set[str] = set()

    def noted() -> Iterator[tuple[str, Mapping[str, Any]]]:
        for key, value in values:
            kept.add(key)
            yield key, {name: value}

    _keep(collection, noted())
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        known = any(path[0] == name for path, _ in catalog.field_kinds(transaction, owner.collection_id))
    if known:
        others = [one.key for one in collection.records({name: {"$exists": True}}) if one.key not in kept]
        _keep(collection, ((key, {name: None}) for key in others))


def _keep(collection: Collection, fields: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Merge fields into the metadata of records, by key; those that were deleted meanwhile are passed over."""
    waiting = iter(fields)
    while page := list(islice(waiting, _PAGE)):
        try:
            commit_metadata(collection.store.database, collection.name, dict(page))
        except RecordNotFound:  # some were deleted since they were read
            for key, change in page:
                with suppress(RecordNotFound):
                    commit_metadata(collection.store.database, collection.name, {key: change})
