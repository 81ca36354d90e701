"""Writes batches of records: decides what must be encoded, encodes it outside any lock, and commits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from embedstore.checks import check_finite, shown, usable_vectors
from embedstore.errors import DamagedRow, InvalidInput, InvalidRecord, RecordNotFound, SpaceNotFound, WrongDimension
from embedstore.metadata import FieldKinds, metadata_json
from embedstore.model import FloatMatrix, Metric, Modality, WriteReport
from embedstore.reading import RECORD_COLUMNS, record_fault
from embedstore.records import Batch, row_hash
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Database, Transaction
from embedstore.storage.writing import (
    CollectionWriter,
    Derive,
    MetadataChange,
    Raced,
    SpaceVectors,
    find_existing,
    find_vectors,
)
from embedstore.transforms import derived_spaces, is_derived, parents_of, transform_of

if TYPE_CHECKING:
    from embedstore.encoders import Encoder

_MAX_ATTEMPTS = 10
_CHUNK = 5000
_COSINE = Metric.COSINE.value

Encoding = Callable[[SpaceRow], "Encoder"]
"""Gives the encoder of a space."""


class LayoutChanged(Exception):
    """A collection's spaces are not those for which a batch was prepared; prepare it again."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What records are prepared for: a collection, its spaces and fields, as they were when they were last looked at.

    Fields only ever come to be, so those seen once need not be noted again.
    """

    collection: CollectionRow
    spaces: dict[str, SpaceRow]
    kinds: FieldKinds
    encoded_spaces: Mapping[str, frozenset[Modality]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoded_spaces", read_by_encoders(self.spaces))

    def require(self, writer: CollectionWriter) -> None:
        """Raise LayoutChanged unless the collection still has these spaces, with these encoders."""
        now, then = writer.collection, self.collection
        if now.collection_id != then.collection_id or now.default_space != then.default_space:
            raise LayoutChanged
        spaces = writer.spaces
        if len(spaces) != len(self.spaces):
            raise LayoutChanged
        for name, known in self.spaces.items():
            space = spaces.get(name)
            if space is None or space.space_id != known.space_id or space.fingerprint != known.fingerprint:
                raise LayoutChanged


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


def encoder_spaces(spaces: Mapping[str, SpaceRow]) -> dict[str, SpaceRow]:
    """Those spaces whose vectors an encoder makes of records."""
    return {name: space for name, space in spaces.items() if space.encoder and not is_derived(space)}


def read_by_encoders(spaces: Mapping[str, SpaceRow]) -> dict[str, frozenset[Modality]]:
    """By name of those spaces whose vectors an encoder makes, what it reads."""
    return {name: modalities_read(space) for name, space in encoder_spaces(spaces).items()}


@functools.lru_cache(maxsize=256)
def _modalities_of(encoder: str) -> frozenset[Modality]:
    from embedstore.encoders import EncoderSpec

    return EncoderSpec.from_json(encoder).modalities


def modalities_read(space: SpaceRow) -> frozenset[Modality]:
    """What the encoder of a space reads."""
    return _modalities_of(space.encoder)


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
                vectors = _vectors_by_space(batch, spaces, encoded)
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
        report = writer.upsert(unchanged, _vectors_by_space(unchanged, writer.spaces, kept), derive=derive)
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


def _vectors_by_space(batch: Batch, spaces: Mapping[str, SpaceRow], encoded: Encoded) -> dict[str, SpaceVectors]:
    """Given and computed vectors of a batch as one checked matrix a space."""
    by_space: dict[str, SpaceVectors] = {}
    for name in batch.vectors:
        if name not in spaces:
            raise SpaceNotFound(f"a record brings a vector for the space {name!r}; there are {', '.join(spaces)}")
    for name, space in spaces.items():
        given = batch.vectors.get(name)
        made = encoded.vectors.get(name)
        if given is None and not made:
            continue
        lines: list[np.ndarray | None] = [None] * len(batch) if given is None else list(given)
        for position, vector in made.items() if made else ():
            lines[position] = vector
        present = [line for line in lines if line is not None]
        if not present:
            continue
        positions: Sequence[int] = range(len(lines))
        if len(present) < len(lines):
            positions = [position for position, line in enumerate(lines) if line is not None]
        by_space[name] = SpaceVectors(positions, _stacked(batch, space, present, positions))
    return by_space


def deriver(transaction: Transaction, spaces: Mapping[str, SpaceRow]) -> Derive | None:
    """What makes the vectors of derived spaces while a batch is written; None where there are no such spaces."""
    parents = {space.name: [one.name for one in parents_of(space, spaces)] for space in derived_spaces(spaces)}
    if not parents:
        return None

    def derive(space: SpaceRow, vectors: FloatMatrix) -> tuple[FloatMatrix, np.ndarray]:
        made = transform_of(transaction, space).apply(vectors)
        return made, usable_lines(space, made)

    return Derive(parents, derive)


def usable_lines(space: SpaceRow, matrix: FloatMatrix) -> np.ndarray:
    """Which of the vectors that were made for a space can be compared there: bool (n,).

    One that came to nothing, or out of all bounds, is left out, for the record itself is sound.
    """
    return usable_vectors(matrix, nonzero=space.metric == _COSINE)


def _stacked(
    batch: Batch, space: SpaceRow, lines: Sequence[np.ndarray], positions: Sequence[int]
) -> FloatMatrix:
    """Vectors as one matrix (n, dim), checked against their space."""
    dim = len(lines[0]) if space.dim is None else space.dim
    for line, position in zip(lines, positions, strict=True):
        if len(line) != dim:
            raise wrong_dimension(space.name, dim, len(line), batch.row_numbers[position])
    matrix = (lines[0] if len(lines) == 1 else np.concatenate(lines)).reshape(-1, dim)  # (n, dim)
    rows = [batch.row_numbers[position] for position in positions]
    check_finite(matrix, rows, "vector", nonzero=space.metric == _COSINE)
    return matrix


class VectorChecker:
    """Checks the vectors that records bring, batch after batch; the first vector of a new space fixes its dimension."""

    def __init__(self, spaces: Mapping[str, SpaceRow], new_metric: Metric = Metric.COSINE) -> None:
        self._spaces = spaces
        self._new_metric = new_metric
        self._dims: dict[str, int] = {name: space.dim for name, space in spaces.items() if space.dim is not None}

    def check(
        self, batch: Batch, on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None = None
    ) -> Batch:
        """The batch, if its vectors are right; else raises InvalidRecord, or leaves records out and tells why."""
        bad: dict[int, InvalidRecord] = {}
        for name, lines in batch.vectors.items():
            if self._all_right(name, lines):
                continue
            for position in range(len(batch)):
                fault = self._fault(name, lines[position], batch.row_numbers[position])
                if fault is not None:
                    bad.setdefault(position, fault)
        if not bad:
            return batch
        if on_error is None:
            raise bad[min(bad)]
        for position in sorted(bad):
            on_error(bad[position], {"key": batch.keys[position], "text": batch.contents[position]})
        return batch.subset([position for position in range(len(batch)) if position not in bad])

    def _all_right(self, name: str, lines: Sequence[np.ndarray | None]) -> bool:
        """Whether nothing is wrong with any of these vectors, asked at once since that is the common case."""
        held = [line for line in lines if line is not None]
        dim = self.dim_of(name, held)
        if any(len(line) != dim for line in held):
            return False
        try:
            check_finite(np.concatenate(held or [np.empty(0)]).reshape(-1, max(dim, 1)), [0] * len(held), name,
                         nonzero=self._metric(name) is Metric.COSINE)  # fmt: skip
        except InvalidRecord:
            return False
        return True

    def _metric(self, name: str) -> Metric:
        return Metric(self._spaces[name].metric) if name in self._spaces else self._new_metric

    def _fault(self, name: str, line: np.ndarray | None, row: int) -> InvalidRecord | None:
        if line is None:
            return None
        if len(line) != self.dim_of(name, [line]):
            return wrong_dimension(name, self._dims[name], len(line), row)
        try:
            check_finite(line[None, :], [row], "vector", nonzero=self._metric(name) is Metric.COSINE)
        except InvalidRecord as error:
            return error
        return None

    def dim_of(self, name: str, lines: Sequence[np.ndarray | None]) -> int:
        """The dimension of a space; where it is not known yet, the first vector's."""
        if name not in self._dims:
            self._dims[name] = next((len(line) for line in lines if line is not None), 0)
        return self._dims[name]


def wrong_dimension(space: str, dim: int, n_numbers: int, row: int) -> WrongDimension:
    """The error for a vector of another dimension than its space's."""
    return WrongDimension(
        f"the vector has {n_numbers} numbers; the space {space!r} holds {dim}", row=row, field="vector"
    )


def refuse_given_vectors(batch: Batch, spaces: dict[str, SpaceRow]) -> None:
    """Refuse vectors that a user brings for a space whose vectors an encoder makes."""
    for name, lines in batch.vectors.items():
        if name in spaces and spaces[name].encoder:
            position = next((p for p, line in enumerate(lines) if line is not None), None)
            if position is not None:
                made_by = "of other spaces" if is_derived(spaces[name]) else "by its encoder"
                raise InvalidRecord(
                    f"the vectors of space {name!r} are made {made_by}; leave the vector out, or keep vectors"
                    " computed elsewhere in a collection with encoder='none'",
                    row=batch.row_numbers[position], field="vector",
                )  # fmt: skip
