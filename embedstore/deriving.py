"""Spaces that are made of other spaces: added, filled, and kept true to what they are made of."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedstore.encoders.spec import EncoderSpec, derived_location
from embedstore.errors import DamagedRow, InvalidInput
from embedstore.indexing.faiss_index import require_served
from embedstore.model import Metric
from embedstore.names import check_collection_name
from embedstore.records import vector_is_whole
from embedstore.storage import catalog
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.existing import stored_vectors
from embedstore.storage.fitted import put_fitted
from embedstore.storage.layout import id_range
from embedstore.storage.writing import CollectionWriter
from embedstore.storing.vectors import usable_lines
from embedstore.transforms import Transform, derived_spaces, is_derived, parents_of, spec_of, stored, transform_of

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LOG = logging.getLogger("embedstore")
_PAGE = 2000
_NONE_PLACED: Mapping[int, np.ndarray] = {}


def refuse_where_derived(spaces: Mapping[str, SpaceRow], row: SpaceRow, what_to_do: str) -> None:
    """InvalidInput where other spaces are made of this one."""
    made_of_it = [one.name for one in derived_spaces(spaces, row.name)]
    if made_of_it:
        raise InvalidInput(f"of the space {row.name!r} others are made: {', '.join(made_of_it)}; {what_to_do}")


def named_newly(spaces: Mapping[str, SpaceRow], row: SpaceRow, name: str) -> dict[str, str]:
    """By derived space of this one, its encoder once this one has another name."""
    renamed: dict[str, str] = {}
    for one in derived_spaces(spaces, row.name):
        spec = EncoderSpec.from_json(one.encoder)
        parents = [name if parent == row.name else parent for parent in spec.parents]
        renamed[one.name] = replace(spec, location=derived_location(parents)).to_json()
    return renamed


def add_derived_space(
    collection: Collection, name: str, transform: Transform, about: Mapping[str, Any], *,
    method: str, parents: Sequence[SpaceRow], metric: Metric, recipe: str, placed: Mapping[int, np.ndarray],
) -> int:  # fmt: skip
    """Add a space that is made of others, with a vector for every record that has one in each of them; how many.

    ``placed``: by vector id in the first parent, vectors that the transform need not make. InvalidInput where a parent
    is not what it was when the transform was fitted.
    """
    check_collection_name(name)
    require_served(recipe, metric)
    database = collection.store.database
    spec = spec_of(transform, method, {parent.name: parent.fingerprint for parent in parents})
    with database.write() as transaction:
        transaction.alone()
        owner = catalog.require_collection(transaction, collection.name)
        spaces = catalog.spaces_of(transaction, owner.collection_id)
        if name in spaces:
            raise InvalidInput(
                f"the collection {collection.name!r} has a space {name!r} already; give another name, or drop it first"
                " (where an interruption left it filled in part, fill_spaces() goes on, spaces --fill)"
            )
        for parent in parents:
            here = spaces.get(parent.name)
            if here is None or (here.space_id, here.fingerprint) != (parent.space_id, parent.fingerprint):
                raise InvalidInput(f"another writer changed the space {parent.name!r} meanwhile; try again")
        made = catalog.create_space(
            transaction, owner.collection_id, name, dim=transform.dim, metric=metric.value, encoder=spec.to_json(),
            fingerprint=spec.fingerprint, recipe=recipe,
        )  # fmt: skip
        put_fitted(transaction, made.space_id, stored(transform, about))
    return fill_derived(collection, name, placed)


def fill_derived(collection: Collection, name: str, placed: Mapping[int, np.ndarray] = _NONE_PLACED) -> int:
    """Give every record that has a vector in each parent of a derived space one there; how many lacked it.

    A page is read, transformed and written under the writer's lock, so that no other write comes between.
    """
    n, after = 0, 0
    while True:
        with collection.store.database.write() as transaction:
            writer = CollectionWriter(transaction, collection.name)
            space = writer.spaces.get(name)
            if space is None or not is_derived(space):
                return n
            parents = parents_of(space, writer.spaces)
            page = _lacking(transaction, parents[0], space, after)
            if not page:
                return n
            after = page[-1].vector_id
            page = _with_the_others(transaction, parents[1:], page)
            if not page:
                continue
            matrix = transform_of(transaction, space).apply(np.stack([one.vector for one in page]))
            for line, one in enumerate(page):
                if one.vector_id in placed:
                    matrix[line] = placed[one.vector_id]
            usable = np.flatnonzero(usable_lines(space, matrix))
            writer.add_vectors(
                name, [page[line].record_id for line in usable], [page[line].key for line in usable], matrix[usable]
            )
            writer.finish()
            n += len(usable)
            if len(usable) < len(page):
                _LOG.warning("%s: %d vectors come to nothing there and are left out", name, len(page) - len(usable))


class _Lacking(NamedTuple):
    vector_id: int
    record_id: int
    key: str
    vector: np.ndarray


def _lacking(transaction: Transaction, parent: SpaceRow, space: SpaceRow, after: int) -> list[_Lacking]:
    """Vectors of the parent, in order of id, whose records have none in the derived space."""
    low, high = id_range(parent.space_id)
    rows = transaction.all(
        "SELECT v.vector_id, v.record_id, r.key, v.vec, v.row_hash FROM vectors AS v"
        " JOIN records AS r ON r.record_id = v.record_id"
        " WHERE v.vector_id BETWEEN :low AND :high AND NOT EXISTS"
        " (SELECT 1 FROM vectors AS d WHERE d.record_id = v.record_id AND d.space_id = :space)"
        f" ORDER BY v.vector_id LIMIT {_PAGE}",
        {"low": max(low, after + 1), "high": high, "space": space.space_id},
    )
    for _, record_id, key, vec, hashed in rows:
        if not vector_is_whole(vec, hashed, key):
            raise DamagedRow(f"the vector of record {record_id} in space {parent.space_id} is not what was written")
    return [
        _Lacking(vector_id, record_id, key, np.frombuffer(vec, "<f4")) for vector_id, record_id, key, vec, _ in rows
    ]


def _with_the_others(transaction: Transaction, others: Sequence[SpaceRow], page: list[_Lacking]) -> list[_Lacking]:
    """Those of a page whose records have vectors in all other parents, too; the vectors side by side."""
    keys = {one.record_id: one.key for one in page}
    for parent in others:
        beside = stored_vectors(transaction, parent.space_id, keys)
        page = [
            one._replace(vector=np.concatenate([one.vector, beside[one.record_id]]))
            for one in page
            if one.record_id in beside
        ]
    return page
