"""Checks what a user gives as records, and turns it into a batch ready to be written.

A record is given as a mapping. ``key``, ``text``, ``image``, ``row``, ``vector``, ``vectors``, ``uri`` and ``metadata``
have their own meaning; every other field is metadata. What cannot be stored is refused with its row and field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from embedstore.checks import check_key, check_text, check_uri, check_vector, shown
from embedstore.errors import DuplicateKey, InvalidInput, InvalidRecord
from embedstore.metadata import FieldKinds, merge_metadata, metadata_json
from embedstore.model import FloatVector, Modality, choose
from embedstore.side_by_side import side_by_side

if TYPE_CHECKING:
    from embedstore.pictures import Picture

HASH_BYTES = 16
_FEW_PICTURES = 8
_TEXT, _IMAGE = Modality.TEXT, Modality.IMAGE
_OWN_FIELDS = frozenset({"uri", "vector", "vectors", "metadata"})
_TEXT_ALONE = frozenset({Modality.TEXT})


@dataclass(slots=True)
class Batch:
    """Checked records as parallel lists, one entry a record.

    ``metadata`` holds canonical JSON (UTF-8, sorted keys), ``content_hashes`` and ``row_hashes`` BLAKE2b-128,
    ``vectors`` by space name the given vectors (float32 (dim,), None where a record brings none),
    ``row_numbers`` the 1-based places in the input, ``modalities`` what each content is. ``prepared`` holds, by place,
    what an encoder takes of a content that is no text, where that was made already.
    """

    keys: list[str] = field(default_factory=list)
    contents: list[str | None] = field(default_factory=list)
    uris: list[str | None] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)
    content_hashes: list[bytes | None] = field(default_factory=list)
    row_hashes: list[bytes] = field(default_factory=list)
    vectors: dict[str, list[FloatVector | None]] = field(default_factory=dict)
    row_numbers: list[int] = field(default_factory=list)
    kinds: FieldKinds = field(default_factory=FieldKinds)
    modalities: list[Modality] = field(default_factory=list)
    prepared: dict[int, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def subset(self, positions: Sequence[int]) -> Batch:
        """The records at these places, as a batch."""

        def at(column: list[Any]) -> list[Any]:
            return [column[position] for position in positions]

        return Batch(
            at(self.keys), at(self.contents), at(self.uris), at(self.metadata), at(self.content_hashes),
            at(self.row_hashes), {space: at(column) for space, column in self.vectors.items()},
            at(self.row_numbers), self.kinds, at(self.modalities),
            {place: self.prepared[old] for place, old in enumerate(positions) if old in self.prepared},
        )  # fmt: skip


class KeyMemory(Protocol):
    """Remembers keys; ``add`` raises DuplicateKey for one that it has."""

    def add(self, key: str, row: int) -> None:
        """Note a key and the row that holds it."""


class _BatchKeys:
    """The keys of one batch."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def add(self, key: str, row: int) -> None:
        if key in self._keys:
            raise DuplicateKey(f"key {shown(key)} was given before in this input", row=row, field="key")
        self._keys.add(key)


class Preparer:
    """Turns mappings into batches, remembering nothing but the keys of the batch in hand.

    ``vector_space`` is the space that a field ``vector`` belongs to. ``required`` are the modalities of which every
    record must have a content (an encoder needs one; empty where there is none). ``known`` are the fields that the
    collection is known to have. ``prepare``, where given, makes what the encoder takes of a picture or a row, and is
    called while records are checked. ``embed_bytes`` keeps the bytes of pictures in files, rather than their names.
    ``stored`` says that records come as they are stored, with ``modality`` beside ``text``.
    ``on_error``, where given, is called with the error and the record instead of raising.
    """

    def __init__(
        self,
        *,
        vector_space: str,
        required: frozenset[Modality] = frozenset(),
        on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None = None,
        known: FieldKinds | None = None,
        prepare: Callable[[Any], Any] | None = None,
        embed_bytes: bool = False,
        stored: bool = False,
    ) -> None:
        self._known = set() if known is None else known.known
        self._vector_space = vector_space
        self._required = required
        self._text_required = required == _TEXT_ALONE
        self._on_error = on_error
        self._prepare = prepare
        self._embed_bytes = embed_bytes
        self._stored = stored

    def prepare(self, records: Iterable[Mapping[str, Any]], *, first_row: int = 1) -> Batch:
        """Check and hash ``records``; row numbers count from ``first_row``.

        Raises InvalidRecord for what cannot be stored, DuplicateKey for a key given twice.
        """
        return self.prepare_numbered(enumerate(records, start=first_row))

    def prepare_numbered(
        self, records: Iterable[tuple[int, Mapping[str, Any]]], seen: KeyMemory | None = None
    ) -> Batch:
        """Check and hash records that come with their row numbers; ``seen`` remembers the keys of other batches."""
        batch = Batch()
        memory: KeyMemory = _BatchKeys() if seen is None else seen
        ahead: dict[int, Any] = {}
        if self._prepare is not None:
            records = list(records)
            ahead = self._prepared_ahead(records)
        for row, record in records:
            try:
                self._append(batch, memory, row, record, ahead)
            except InvalidRecord as error:
                uri = record.get("uri") if isinstance(record, Mapping) else None
                if isinstance(uri, str):
                    error.reason += f" (in {shown(uri, 200)})"
                self.refuse(error, record if isinstance(record, Mapping) else {})
        return batch

    def refuse(self, error: InvalidRecord, record: Mapping[str, Any]) -> None:
        """Raise an error, or hand it with its record to whoever asked to be told instead."""
        if self._on_error is None:
            raise error
        self._on_error(error, record)

    def _append(
        self, batch: Batch, seen: KeyMemory, row: int, record: Mapping[str, Any], ahead: Mapping[int, Any]
    ) -> None:
        if type(record) is not dict and not isinstance(record, Mapping):  # asking the abstract class takes long
            raise InvalidRecord(f"a record must be a mapping of fields, not {type(record).__name__}", row=row)
        fields = dict(record)
        key = check_key(fields.pop("key", None), row)
        content = fields.pop("text", None)
        modality = _TEXT
        if "image" in fields or "row" in fields or self._stored:
            modality, content, prepared = self._other_content(fields, content, row, ahead)
            if prepared is not None:
                batch.prepared[len(batch.keys)] = prepared
        content_bytes = check_text(content, row, required=self._text_required)
        if self._required and not self._text_required:
            self._check_modality(modality, content, row)
        # Calls that have nothing to do for most records are asked about first: this runs once for every record.
        uri = check_uri(fields.pop("uri"), row) if "uri" in fields else None
        vectors = self._take_vectors(fields, row) if "vector" in fields or "vectors" in fields else {}
        if content is None and uri is None and not vectors:
            raise InvalidRecord("a record needs a text, an image, a row, a uri or a vector", row=row, field="text")
        if "metadata" in fields:
            fields = merge_metadata(fields, row)
        metadata = metadata_json(fields, row, batch.kinds, self._known)
        content_hash = None if content_bytes is None else blake2b(content_bytes, digest_size=HASH_BYTES).digest()
        seen.add(key, row)
        batch.keys.append(key)
        batch.contents.append(content)
        batch.uris.append(uri)
        batch.metadata.append(metadata)
        batch.content_hashes.append(content_hash)
        batch.row_hashes.append(row_hash(key, modality, content_hash, uri, metadata))
        batch.row_numbers.append(row)
        batch.modalities.append(modality)
        for space, column in batch.vectors.items():
            column.append(vectors.pop(space, None))
        for space, vector in vectors.items():  # the first that bring a vector for this space
            batch.vectors[space] = [None] * (len(batch.keys) - 1)
            batch.vectors[space].append(vector)

    def _other_content(
        self, fields: dict[str, Any], text: Any, row: int, ahead: Mapping[int, Any]
    ) -> tuple[Modality, str | None, Any]:
        """What a record holds that is no text: its modality, content, and what the encoder takes of it.

        Takes the fields that are used out of ``fields``.
        """
        if self._stored:
            return choose(Modality, fields.pop("modality", None) or _TEXT, "modality"), text, None
        picture, cells = fields.pop("image", None), fields.pop("row", None)
        given = [name for name, value in (("text", text), ("image", picture), ("row", cells)) if value is not None]
        if len(given) > 1:
            raise InvalidRecord(f"a record has one content; this has {' and '.join(given)}", row=row, field=given[1])
        if picture is not None:
            return _IMAGE, *self._take_picture(ahead.get(row, picture), fields, row)
        if cells is not None:
            content, prepared = self._take_row(cells, row)
            fields["metadata"] = _with_cells(fields, cells)  # so that it can be filtered by
            return Modality.ROW, content, prepared
        return _TEXT, text, None

    def _prepared_ahead(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, Any]:
        """By row, the pictures of many records, decoded and prepared or why they cannot be."""
        given = [(row, one["image"]) for row, one in records if isinstance(one, Mapping) and "image" in one]
        if len(given) < _FEW_PICTURES:
            return {}
        made = side_by_side([one for _, one in given], self._picture)
        return dict(zip([row for row, _ in given], made, strict=True))

    def _picture(self, given: Any) -> tuple[Picture, Any] | InvalidInput:
        """A picture with what the encoder takes of it, or why it is refused."""
        from embedstore.pictures import read_picture

        try:
            picture = read_picture(given)
            if self._prepare is not None and _IMAGE in self._required:
                return picture, self._prepare(picture)
            picture.decode()  # so that a broken one is refused now
        except InvalidInput as error:
            return error
        return picture, None

    def _take_picture(self, given: Any, fields: dict[str, Any], row: int) -> tuple[str, Any]:
        """The content of a picture's record, and what the encoder takes of it; sets the uri of one in a file."""
        made = given if isinstance(given, (tuple, InvalidInput)) else self._picture(given)
        if isinstance(made, InvalidInput):
            raise InvalidRecord(str(made), row=row, field="image") from None
        picture, prepared = made
        if picture.path is None or self._embed_bytes:
            return picture.data_url(), prepared
        fields["uri"] = picture.path
        return picture.name(), prepared

    def _take_row(self, cells: Any, row: int) -> tuple[str, Any]:
        if not isinstance(cells, Mapping) or not cells:
            raise InvalidRecord("a row must be a mapping of columns to values, of at least one", row=row, field="row")
        prepared = None
        if self._prepare is not None and Modality.ROW in self._required:
            try:
                prepared = self._prepare(cells)
            except InvalidInput as error:
                raise InvalidRecord(str(error), row=row, field="row") from None
        return metadata_json(cells, row, FieldKinds()).decode(), prepared

    def _check_modality(self, modality: Modality, content: str | None, row: int) -> None:
        """Refuse a record that the collection's encoder cannot encode."""
        if content is not None and modality in self._required:
            return
        wanted = " or ".join(sorted(one.value for one in self._required))
        came = f"a {modality.value}" if content is not None else "neither"
        raise InvalidRecord(f"the collection's encoder reads {wanted}; the record has {came}", row=row, field=wanted)

    def _take_vectors(self, fields: dict[str, Any], row: int) -> dict[str, FloatVector]:
        single = fields.pop("vector", None)
        vectors = {} if single is None else {self._vector_space: check_vector(single, row)}
        by_space = fields.pop("vectors", None)
        if by_space is None:
            return vectors
        if not isinstance(by_space, Mapping):
            raise InvalidRecord("must map names of spaces to vectors", row=row, field="vectors")
        if single is not None and self._vector_space in by_space:
            name = f"vectors.{self._vector_space}"
            raise InvalidRecord("is a vector of the same space as 'vector'; give one of them", row=row, field=name)
        for space, value in by_space.items():
            vectors.setdefault(space, check_vector(value, row, f"vectors.{space}"))
        return vectors


def _with_cells(fields: Mapping[str, Any], cells: Mapping[str, Any]) -> Any:
    """The metadata of a row's record: what was given inside ``metadata``, and the cells that no other value shadows."""
    nested = fields.get("metadata")
    if nested is not None and not isinstance(nested, Mapping):
        return nested  # refused with all other metadata
    beside = fields.keys() - _OWN_FIELDS
    shown_cells = {name: value for name, value in cells.items() if value is not None and name not in beside}
    return shown_cells | dict(nested or {})


def row_hash(
    key: str, modality: Modality, content_hash: bytes | None, uri: str | None, metadata: bytes
) -> bytes:
    """BLAKE2b-128 over everything in a record's row. Parts are joined by NUL, which no part can hold.

    The content enters by its own hash in hexadecimal, which is empty where there is no content.
    """
    content = "" if content_hash is None else content_hash.hex()
    word = "text" if modality is Modality.TEXT else modality.value  # asking a member takes long
    joined = f"{key}\0{word}\0{content}\0{uri or ''}\0"
    return blake2b(joined.encode() + metadata, digest_size=HASH_BYTES).digest()


def vector_hash(key: str, vector_bytes: bytes | memoryview) -> bytes:
    """BLAKE2b-128 over a record's key, NUL, and its vector's bytes as stored."""
    hashed = blake2b(key.encode() + b"\0", digest_size=HASH_BYTES)
    hashed.update(vector_bytes)
    return hashed.digest()


def vector_is_whole(vector_bytes: Any, hashed: Any, key: Any) -> bool:
    """Whether a stored vector is what was written for the record with that key, by its row hash."""
    try:
        return bool(vector_hash(key, vector_bytes) == hashed)
    except (AttributeError, TypeError, ValueError):  # values of other kinds than were written
        return False
