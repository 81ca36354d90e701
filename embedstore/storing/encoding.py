"""Encodes those contents of a batch that have no vector yet, each once, for all spaces whose encoders read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedstore.checks import shown
from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.model import Modality
from embedstore.records import Batch
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Database, Transaction
from embedstore.storage.existing import find_existing, find_vectors
from embedstore.storage.writing import Raced
from embedstore.storing.layout import encoder_spaces, modalities_read

if TYPE_CHECKING:
    from embedstore.encoders import Encoder

Encoding = Callable[[SpaceRow], "Encoder"]
"""Gives the encoder of a space."""


@dataclass(slots=True)
class Encoded:
    """What was computed for one batch: vectors by space and place, and what encoders said of it in numbers."""

    vectors: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    fingerprints: dict[str, tuple[int, str]] = field(default_factory=dict)
    n_encoded: int = 0
    n_truncated: int = 0
    n_unknown: int = 0

    def drop_others(self, spaces: Mapping[str, SpaceRow]) -> None:
        """Forget vectors of spaces that were made anew meanwhile, perhaps by another encoder; raises Raced."""
        others = [
            name
            for name, made_for in self.fingerprints.items()
            if name not in spaces or made_for != (spaces[name].space_id, spaces[name].fingerprint)
        ]
        for name in others:
            self.vectors.pop(name, None)
            self.fingerprints.pop(name)
        if others:
            raise Raced


def encode_batch(
    database: Database, collection: str, batch: Batch, encoder_of: Encoding, encoded: Encoded | None = None
) -> Encoded:
    """Encode those contents of a batch that have no vector yet in a space whose encoder reads them.

    What ``encoded`` already holds, from an earlier attempt, is kept. Equal contents are encoded once.
    """
    encoded = encoded if encoded is not None else Encoded()
    with database.read() as transaction:
        row = catalog.find_collection(transaction, collection)
        assert row is not None  # created before anything is encoded
        spaces = encoder_spaces(catalog.spaces_of(transaction, row.collection_id))
        if not spaces:
            return encoded
        needed = {
            name: _needed(transaction, row, space, batch, encoded.vectors.get(name, {}))
            for name, space in spaces.items()
        }
        default = row.default_space
    for names in _together(needed, spaces, encoder_of):
        positions = needed[names[0]]
        first_with: dict[bytes | None, int] = {}
        for position in positions:
            first_with.setdefault(batch.content_hashes[position], position)
        encoders: list[Any] = [encoder_of(spaces[name]) for name in names]
        # What the batch holds prepared was prepared for the encoder of the default space.
        prepared = names[0] == default
        items = [_item(batch, position, encoders[0], prepared=prepared) for position in first_with.values()]
        try:
            results = [encoders[0].encode(items)] if len(names) == 1 else encoders[0].shared.encode_by(encoders, items)
        except InvalidInput as error:
            place = getattr(error, "position", None)  # which of the items it is, where that is known
            if place is None:
                raise
            at = list(first_with.values())[place]
            raise InvalidRecord(
                f"{shown(batch.keys[at])}: its text has no tokens, so it has no states", row=batch.row_numbers[at],
                field="text",
            ) from None  # fmt: skip
        line_of = {content_hash: line for line, content_hash in enumerate(first_with)}
        for name, result in zip(names, results, strict=True):
            made = encoded.vectors.setdefault(name, {})
            encoded.fingerprints[name] = (spaces[name].space_id, spaces[name].fingerprint)
            for position in positions:
                made[position] = result.vectors[line_of[batch.content_hashes[position]]]
        encoded.n_encoded += len(items)
        encoded.n_truncated += results[0].n_truncated
        encoded.n_unknown += results[0].n_unknown
    return encoded


def _together(
    needed: Mapping[str, list[int]], spaces: Mapping[str, SpaceRow], encoder_of: Encoding
) -> list[list[str]]:
    """The spaces that need vectors; those of places in one model that need them of the same records together."""
    groups: dict[Any, list[str]] = {}
    for name, positions in needed.items():
        if positions:
            shared = getattr(encoder_of(spaces[name]), "shared", None)
            groups.setdefault(name if shared is None else (id(shared), tuple(positions)), []).append(name)
    return list(groups.values())


def _item(batch: Batch, position: int, encoder: Any, *, prepared: bool) -> Any:
    """A record's content as its encoder takes it; InvalidRecord where a picture's file has changed or is gone."""
    modality = batch.modalities[position]
    if prepared and position in batch.prepared:
        return batch.prepared[position]
    try:
        return prepared_content(encoder, modality, batch.contents[position], batch.uris[position])
    except InvalidInput as error:
        raise InvalidRecord(
            f"{shown(batch.keys[position])}: {error}", row=batch.row_numbers[position], field=modality.value
        ) from None


def prepared_content(encoder: Any, modality: Modality, content: str | None, uri: str | None) -> Any:
    """A record's content as its encoder takes it; InvalidInput where a picture's file has changed or is gone."""
    if modality is Modality.TEXT:
        return content
    if modality is Modality.ROW:
        return encoder.prepare(orjson.loads(content or "{}"))
    from embedstore.pictures import picture_of_record

    return encoder.prepare(picture_of_record(content, uri))


def _needed(
    transaction: Transaction, collection: CollectionRow, space: SpaceRow, batch: Batch, made: dict[int, np.ndarray]
) -> list[int]:
    """The places of a batch whose content the space's encoder reads and that has no vector there, stored or made."""
    existing = find_existing(transaction, collection.collection_id, batch.keys)
    stored = find_vectors(transaction, space.space_id, [one.record_id for one in existing.values()])
    given = batch.vectors.get(space.name)
    read = modalities_read(space)
    needed = []
    for position, key in enumerate(batch.keys):
        if batch.contents[position] is None or batch.modalities[position] not in read or position in made:
            continue
        if given is not None and given[position] is not None:
            continue
        found = existing.get(key)
        same = found is not None and found.content_hash == batch.content_hashes[position]
        if not (same and found is not None and found.record_id in stored):
            needed.append(position)
    return needed
