"""Commits batches of records, of vectors that were missing, and changes of metadata, each in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from embedstore.checks import shown
from embedstore.errors import DamagedRow, InvalidInput, RecordNotFound
from embedstore.metadata import FieldKinds, metadata_json
from embedstore.model import FloatMatrix, Modality, WriteReport
from embedstore.reading import RECORD_COLUMNS, record_fault
from embedstore.records import Batch, row_hash
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Database, Transaction
from embedstore.storage.existing import find_existing
from embedstore.storage.writing import CollectionWriter, Derive, MetadataChange, Raced
from embedstore.storing.encoding import Encoded, Encoding, encode_batch
from embedstore.storing.layout import Layout, read_by_encoders
from embedstore.storing.vectors import usable_lines, vectors_by_space
from embedstore.transforms import derived_spaces, parents_of, transform_of

_MAX_ATTEMPTS = 10
_CHUNK = 5000


def commit_batch(
    database: Database,
    collection: str,
    batch: Batch,
    encoder_of: Encoding,
    *,
    replace_existing: bool,
    encoded: Encoded | None = None,
    layout: Layout | None = None,
    timeout: float | None = None,
    also: Callable[[Transaction], None] | None = None,
) -> WriteReport:
    """Encode what needs it and commit a batch whole; ``also`` runs in the same transaction.

    ``encoded``, where given, is all that needs encoding, unless another writer changed something meanwhile. Raises
    LayoutChanged where the collection's spaces are not those of ``layout``.

    Raises DuplicateKey (unless ``replace_existing``), SpaceMismatch or InvalidRecord with nothing written.
    """
    if encoded is None:
        encoded = encode_batch(database, collection, batch, encoder_of)
    for _ in range(_MAX_ATTEMPTS):
        try:
            with database.write(timeout) as transaction:
                writer = CollectionWriter(transaction, collection)
                if layout is not None:
                    layout.require(writer)
                spaces = writer.spaces  # as they are under the lock: the dimension, and by whom they were made
                if encoded.fingerprints:
                    encoded.drop_others(spaces)
                vectors = vectors_by_space(batch, spaces, encoded)
                by_encoders = read_by_encoders(spaces) if layout is None else layout.encoded_spaces
                report = writer.upsert(
                    batch, vectors, encoded_spaces=by_encoders, replace_existing=replace_existing,
                    derive=deriver(transaction, spaces),
                )  # fmt: skip
                writer.finish()
                if also is not None:
                    also(transaction)
            _count(report, encoded)
            return report
        except Raced:
            encoded = encode_batch(database, collection, batch, encoder_of, encoded)
    raise InvalidInput(f"other writers kept changing the records of this batch of {collection!r}; try again")


def commit_missing_vectors(
    database: Database, collection: str, batch: Batch, encoder_of: Encoding, encoded: Encoded | None = None
) -> WriteReport:
    """Encode a batch of stored records into the spaces where they lack a vector, and commit those vectors alone.

    ``encoded`` is what was encoded before. Records that another writer changed or deleted meanwhile are passed over:
    that writer encoded them itself.
    """
    if encoded is None:
        encoded = encode_batch(database, collection, batch, encoder_of)
    with database.write() as transaction:
        writer = CollectionWriter(transaction, collection)
        existing = find_existing(transaction, writer.collection.collection_id, batch.keys)
        same = [
            position
            for position, key in enumerate(batch.keys)
            if key in existing and existing[key].row_hash == batch.row_hashes[position]
        ]
        kept = Encoded({
            name: {place: made[position] for place, position in enumerate(same) if position in made}
            for name, made in encoded.vectors.items()
        }, encoded.fingerprints)  # fmt: skip
        unchanged = batch.subset(same)
        kept.drop_others(writer.spaces)
        derive = deriver(transaction, writer.spaces)
        report = writer.upsert(unchanged, vectors_by_space(unchanged, writer.spaces, kept), derive=derive)
        writer.finish()
    _count(report, encoded)
    return report


def _count(report: WriteReport, encoded: Encoded) -> None:
    report.encoded, report.truncated, report.unknown = encoded.n_encoded, encoded.n_truncated, encoded.n_unknown


def commit_metadata(
    database: Database, collection: str, changes: Mapping[str, Mapping[str, Any]], timeout: float | None = None
) -> WriteReport:
    """Merge fields into the metadata of records, by key, in one transaction; a field given as None is removed.

    Raises RecordNotFound, with nothing written, for a key that no record has.
    """
    with database.write(timeout) as transaction:
        writer = CollectionWriter(transaction, collection)
        held = _stored_rows(transaction, writer.collection, list(changes))
        kinds = FieldKinds()
        made = []
        for key, fields in changes.items():
            if key not in held:
                raise RecordNotFound(f"no record of {collection!r} has the key {shown(key)}")
            stored = held[key]
            merged = {**stored.metadata, **fields}
            kept = {name: value for name, value in merged.items() if value is not None or name not in fields}
            metadata = metadata_json(kept, None, kinds)
            hashed = row_hash(key, stored.modality, stored.content_hash, stored.uri, metadata)
            if hashed != stored.row_hash:
                made.append(MetadataChange(stored.record_id, metadata, hashed, stored.row_hash))
        writer.overwrite_metadata(made)
        writer.note_fields(kinds)
        writer.finish()
    return WriteReport(updated=len(made), unchanged=len(changes) - len(made))


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a record's row holds besides its content."""

    record_id: int
    modality: Modality
    uri: str | None
    metadata: dict[str, Any]
    content_hash: bytes | None
    row_hash: bytes


def _stored_rows(transaction: Transaction, collection: CollectionRow, keys: Sequence[str]) -> dict[str, _Stored]:
    found: dict[str, _Stored] = {}
    members = transaction.dialect.members("keys", "text")
    for start in range(0, len(keys), _CHUNK):
        rows = transaction.all(
            f"SELECT {RECORD_COLUMNS} FROM records AS r WHERE r.collection_id = :collection AND r.key IN {members}",
            {
                "collection": collection.collection_id,
                "keys": transaction.dialect.list_parameter(keys[start : start + _CHUNK]),
            },
        )
        for row in rows:
            fault = record_fault(row)
            if fault is not None:  # with a new hash its damage would never be found again
                raise DamagedRow(fault)
            record_id, key, _, metadata, modality, uri, content_hash, hashed = row
            found[key] = _Stored(
                record_id, Modality(modality), uri, orjson.loads(metadata),
                None if content_hash is None else bytes(content_hash), bytes(hashed),
            )  # fmt: skip
    return found


def deriver(transaction: Transaction, spaces: Mapping[str, SpaceRow]) -> Derive | None:
    """What makes the vectors of derived spaces while a batch is written; None where there are no such spaces."""
    parents = {space.name: [one.name for one in parents_of(space, spaces)] for space in derived_spaces(spaces)}
    if not parents:
        return None

    def derive(space: SpaceRow, vectors: FloatMatrix) -> tuple[FloatMatrix, np.ndarray]:
        made = transform_of(transaction, space).apply(vectors)
        return made, usable_lines(space, made)

    return Derive(parents, derive)
