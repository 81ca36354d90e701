"""Checks what a user gives as records, and turns it into a batch ready to be written.

A record is given as a mapping. ``key``, ``text``, ``image``, ``row``, ``vector``, ``vectors``, ``uri`` and ``metadata``
have their own meaning; every other field is metadata. What cannot be stored is refused with its row and field.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from embedstore.errors import DuplicateKey, InvalidInput, InvalidRecord
from embedstore.model import FloatVector, Modality, choose

if TYPE_CHECKING:
    from embedstore.pictures import Picture

MAX_KEY_BYTES = 512
MAX_NAME_BYTES = 255
MAX_DEPTH = 32
MIN_LENGTH, MAX_LENGTH = 1e-18, 1e18
HASH_BYTES = 16
_FEW_PICTURES = 8

_LEAST, _MOST = MIN_LENGTH**2, MAX_LENGTH**2
_JSON_OPTIONS = orjson.OPT_SORT_KEYS
_SCALARS = {str: "text", int: "integer", float: "real", bool: "boolean"}

_TEXT, _IMAGE = Modality.TEXT, Modality.IMAGE
_TEXT_ALONE = frozenset({Modality.TEXT})

FieldPath = tuple[str, ...]


class FieldKinds(set[tuple[FieldPath, str]]):
    """Pairs of a metadata path and the kind of value seen there: integer, real, text, boolean or list.

    ``known`` holds the pairs of paths of one name with the name bare, since that is quicker to look up.
    """

    __slots__ = ("known",)

    def __init__(self, pairs: Iterable[tuple[FieldPath, str]] = ()) -> None:
        super().__init__()
        self.known: set[tuple[str, str]] = set()
        for pair in pairs:
            self.add(pair)

    def add(self, pair: tuple[FieldPath, str]) -> None:
        """Note a pair."""
        super().add(pair)
        path, kind = pair
        if len(path) == 1:
            self.known.add((path[0], kind))

    def take(self, others: FieldKinds) -> None:
        """Note the pairs of others."""
        for pair in others:
            self.add(pair)


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
            return Modality.ROW, *self._take_row(cells, row)
        return _TEXT, text, None

    def _prepared_ahead(self, records: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, Any]:
        """By row, the pictures of many records, decoded and prepared by all cores, or why they cannot be."""
        given = [(row, one["image"]) for row, one in records if isinstance(one, Mapping) and "image" in one]
        if len(given) < _FEW_PICTURES:
            return {}
        with ThreadPoolExecutor() as pool:
            return dict(zip([row for row, _ in given], pool.map(self._picture, [one for _, one in given]), strict=True))

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
        for space, value in by_space.items():
            vectors.setdefault(space, check_vector(value, row, f"vectors.{space}"))
        return vectors


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


def shown(text: str, limit: int = 60) -> str:
    """``text`` quoted for a message, cut to ``limit`` characters, unprintable characters escaped."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def check_key(key: Any, row: int | None = None) -> str:
    """A key as stored: a string of 1 to 512 UTF-8 bytes without control characters; integers become decimal.

    None becomes a fresh random key.
    """
    if type(key) is str:
        if 0 < len(key) <= MAX_KEY_BYTES and key.isascii() and key.isprintable():
            return key
    elif key is None:
        return uuid.uuid4().hex
    elif isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return str(int(key))
    elif isinstance(key, str):
        key = str(key)
    else:
        raise InvalidRecord(f"a key must be a string or an integer, not {type(key).__name__}", row=row, field="key")
    encoded = encode_text(key, row, "key")
    if not encoded:
        raise InvalidRecord("the key is empty; give each record a key of 1 to 512 bytes", row=row, field="key")
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidRecord(
            f"the key {shown(key)} has {len(encoded):,} bytes; at most {MAX_KEY_BYTES} are allowed",
            row=row, field="key",
        )  # fmt: skip
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise InvalidRecord(f"the key {shown(key)} holds a control character", row=row, field="key")
    return str(key)


def encode_text(text: str, row: int | None, name: str) -> bytes:
    """``text`` in UTF-8; InvalidRecord for a NUL or a lone surrogate."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(
            f"character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X}), which is not text",
            row=row,
            field=name,
        ) from None
    if b"\0" in encoded:
        raise InvalidRecord(f"character {text.index(chr(0))} is NUL, which cannot be stored", row=row, field=name)
    return encoded


def check_text(text: Any, row: int | None = None, *, required: bool = True, name: str = "text") -> bytes | None:
    """A text in UTF-8; InvalidRecord where it is no string, empty, only white space, or not Unicode text."""
    if text is None:
        if required:
            raise InvalidRecord("the text is missing", row=row, field=name)
        return None
    if not isinstance(text, str):
        raise InvalidRecord(f"the text must be a string, not {type(text).__name__}", row=row, field=name)
    encoded = encode_text(text, row, name)
    if not text or text.isspace():
        raise InvalidRecord("the text is empty" + (" but for white space" if text else ""), row=row, field=name)
    return encoded


def check_uri(uri: Any, row: int | None) -> str | None:
    """An address as stored: a non-empty string, or None."""
    if uri is None:
        return None
    if not isinstance(uri, str) or not uri:
        raise InvalidRecord("the uri must be a string that is not empty", row=row, field="uri")
    encode_text(uri, row, "uri")
    return uri


def check_vector(value: Any, row: int | None = None, name: str = "vector") -> FloatVector:
    """A vector as float32 (dim,); InvalidRecord where it is not one row of finite numbers."""
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRecord(
            f"a vector must be a list of numbers, not {type(value).__name__}", row=row, field=name
        ) from None
    if vector.ndim != 1 or vector.shape[0] == 0:
        raise InvalidRecord(
            f"a vector must be one row of numbers; this has shape {vector.shape}", row=row, field=name
        )
    return vector


def check_finite(matrix: np.ndarray, row_numbers: Sequence[int | None], name: str, *, nonzero: bool) -> None:
    """Refuse a row of ``matrix`` (n, dim) that holds NaN or infinity, or only zeros where ``nonzero``."""
    if len(matrix) == 1 and _LEAST < float(np.vdot(matrix, matrix)) < _MOST:
        return  # the quickest way to ask this of one vector
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("ij,ij->i", matrix, matrix)  # one pass: NaN and infinity survive a sum of squares
    if squared.size == 0 or (squared.min() > _LEAST and squared.max() < _MOST):
        return  # nor is NaN among them: it would be the least and the greatest
    suspects = np.flatnonzero(~((squared > _LEAST) & (squared < _MOST)))  # NaN among them
    for position in suspects.tolist():
        line = matrix[position]
        bad = np.flatnonzero(~np.isfinite(line))
        if bad.size:
            raise InvalidRecord(
                f"number {int(bad[0])} of the vector is {line[bad[0]]}; every number must be finite",
                row=row_numbers[position], field=name,
            )  # fmt: skip
        if nonzero and not line.any():
            raise InvalidRecord(
                "the vector is all zeros, which has no direction; use metric='dot' or 'euclidean' for such vectors",
                row=row_numbers[position], field=name,
            )  # fmt: skip
        check_length(float(np.linalg.norm(line.astype(np.float64))), row_numbers[position], name)


def check_length(length: float, row: int | None, name: str) -> None:
    """Refuse a vector whose length would make its scores overflow or vanish in float32."""
    if length and not MIN_LENGTH < length < MAX_LENGTH:
        raise InvalidRecord(
            f"the vector's length is {length:.3g}; lengths must lie between {MIN_LENGTH:g} and {MAX_LENGTH:g}",
            row=row, field=name,
        )  # fmt: skip


def merge_metadata(fields: dict[str, Any], row: int | None) -> dict[str, Any]:
    """The metadata of a record: its own fields, together with those inside a field ``metadata``."""
    nested = fields.pop("metadata", None)
    if nested is None:
        return fields
    if not fields and type(nested) is dict:
        return nested
    if not isinstance(nested, Mapping):
        raise InvalidRecord(f"must be a mapping of fields, not {type(nested).__name__}", row=row, field="metadata")
    for name in nested:
        if name in fields:
            raise InvalidRecord(
                f"{shown(str(name))} is given both beside and inside 'metadata'", row=row, field="metadata"
            )
    fields.update(nested)
    return fields


def metadata_json(
    metadata: Mapping[str, Any], row: int | None, kinds: FieldKinds, known: Set[tuple[str, str]] = frozenset()
) -> bytes:
    """Canonical JSON of ``metadata``; the paths and kinds of its values are added to ``kinds``.

    known: names with the kinds of their values that need not be added. Dates become ISO 8601 text, NumPy scalars plain
    numbers. InvalidRecord names what cannot be stored.
    """
    if not metadata:
        return b"{}"
    plain: dict[str, Any] = {}
    for name, value in metadata.items():
        kind = _SCALARS.get(type(value))
        if kind == "text":
            if not value.isascii() or "\0" in value:
                encode_text(value, row, str(name))
        elif kind == "boolean":
            pass
        elif kind is None or not -(2**53) <= value <= 2**53:  # neither for NaN nor for what is to be looked at closer
            if value is None:
                plain[check_name(name, row)] = None
                continue
            value, kind = _plain_value(value, row, (check_name(name, row),), kinds)
        if kind is not None and (name, kind) not in known and (name, kind) not in kinds.known:
            kinds.add(((check_name(name, row),), kind))
        plain[name] = value
    return orjson.dumps(plain, option=_JSON_OPTIONS)


def check_name(name: Any, row: int | None) -> str:
    """A metadata field's name: a string of 1 to 255 UTF-8 bytes without control characters."""
    if type(name) is str and name in _GOOD_NAMES:
        return name
    checked = _checked_name(name, row)
    if len(_GOOD_NAMES) < _MAX_GOOD_NAMES:
        _GOOD_NAMES.add(checked)
    return checked


_MAX_GOOD_NAMES = 10_000
_GOOD_NAMES: set[str] = set()
"""Names that were found to be right, since the same few come with every record."""


def _checked_name(name: Any, row: int | None) -> str:
    if not isinstance(name, str):
        raise InvalidRecord(f"a field's name must be a string, not {type(name).__name__}", row=row, field=repr(name))
    encoded = encode_text(name, row, ascii(name))
    if not 0 < len(encoded) <= MAX_NAME_BYTES or any(ord(character) < 32 for character in name):
        raise InvalidRecord(
            "a field's name must have 1 to 255 bytes and no control characters", row=row, field=shown(name)
        )
    return name


def _plain_value(value: Any, row: int | None, path: FieldPath, kinds: FieldKinds) -> tuple[Any, str | None]:
    """``value`` as plain JSON data, and its kind (None for null and for objects, whose fields are noted)."""
    name = ".".join(path)
    if len(path) > MAX_DEPTH:
        raise InvalidRecord(f"metadata is nested deeper than {MAX_DEPTH} levels", row=row, field=path[0])
    if value is None:
        return None, None
    if isinstance(value, np.generic):
        value = value.item()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, bool):
        return value, "boolean"
    if isinstance(value, str):
        encode_text(value, row, name)
        return str(value), "text"
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidRecord(f"{value} does not fit in 64 bits; store it as text", row=row, field=name)
        return int(value), "integer"
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRecord(f"is {value}, which JSON cannot hold; leave the field out", row=row, field=name)
        return float(value), "real"
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat(), "text"
    if isinstance(value, Mapping):
        inner = {}
        for key, item in value.items():
            inner_path = (*path, check_name(key, row))
            inner[key], kind = _plain_value(item, row, inner_path, kinds)
            if kind is not None:
                kinds.add((inner_path, kind))
        return inner, None
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        listed = FieldKinds()  # what lists hold is not addressable by a path
        return [_plain_value(item, row, (*path, "[]"), listed)[0] for item in items], "list"
    raise InvalidRecord(
        f"holds {type(value).__name__}; metadata holds text, numbers, booleans, null, lists and objects",
        row=row, field=name,
    )  # fmt: skip
