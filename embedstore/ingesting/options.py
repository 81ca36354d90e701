"""How an input is read: which fields mean what, what happens to rows that cannot be stored, who is told."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from embedstore.checks import is_numbers
from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources.delimited import CellFormat
from embedstore.model import Modality

KEY_FIELDS = ("key", "id", "_id")
TEXT_FIELDS = ("text", "content", "document", "body")
VECTOR_FIELDS = ("vector", "embedding")
IMAGE_FIELDS = ("image", "picture", "image_path", "file")
_ROW = frozenset({Modality.ROW})


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an ingest has come: ``position`` of ``total`` ``unit``s of the input, and what was written."""

    phase: str
    source: str
    position: int
    total: int | None
    unit: str
    n_rows: int


@dataclass(frozen=True, slots=True)
class IngestOptions:
    """The options of ``Collection.ingest``.

    text: the field that holds the text; several names, in a list or joined by commas, are joined by a blank.
    Joined fields stay in the metadata too. image: the field that holds the path of a picture; of a folder, True takes
    its pictures and nothing else. embed_bytes: keep the bytes of pictures rather than where they lie; None: as
    the collection's newest picture is kept.
    key: the field of the key. vector: that of a vector computed elsewhere, or columns of numbers that make one, in a
    list or joined by commas; ``pixel*`` stands for all columns of such names, in order. Several stay in the metadata
    too. metadata: the fields to keep (None: every other one).
    types: by CSV column, 'text', 'integer', 'number' or 'boolean' instead of what is inferred.
    delimiter: what parts the cells of CSV and TSV files, where it is not the usual one; columns: names of the columns
    of such files without a header line; encoding: theirs, where it is not UTF-8, such as 'latin-1'.
    chunk: cut texts into pieces of at most so many tokens, which overlap by ``chunk_overlap``.
    prune: delete records whose keys the input no longer holds. on_error: 'abort' or 'skip'; rejects: a file that takes
    the rows that were skipped, as JSON lines. refresh: bring the caches up to date at the end rather than at the next
    search. progress: True for a line on stderr, or a function that is called.
    """

    text: str | Sequence[str] | None = None
    key: str | None = None
    vector: str | Sequence[str] | None = None
    image: str | bool = False
    embed_bytes: bool | None = None
    metadata: Sequence[str] | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    delimiter: str | None = None
    columns: Sequence[str] | None = None
    encoding: str | None = None
    chunk: int | None = None
    chunk_overlap: int = 0
    prune: bool = False
    on_error: str | None = None
    rejects: str | None = None
    progress: bool | Callable[[Progress], None] = False
    refresh: bool = True
    stdin: Any = None

    def __post_init__(self) -> None:
        if self.on_error not in (None, "abort", "skip"):
            raise InvalidInput(f"on_error is {self.on_error!r}; it must be 'abort' or 'skip'")
        if self.rejects is not None and self.on_error == "abort":
            raise InvalidInput("rejects takes the rows that were skipped; it needs on_error='skip'")
        if self.prune and self.on_error == "skip":
            raise InvalidInput("prune would delete the records of rows that are skipped; use one or the other")
        if self.chunk is not None and self.chunk < 8:
            raise InvalidInput(f"chunk is {self.chunk}; a piece must have at least 8 tokens")
        if self.columns is not None:
            if isinstance(self.columns, (str, bytes)) or not isinstance(self.columns, Iterable):
                raise InvalidInput("columns are a list of names: columns=['a', 'b']")
            object.__setattr__(self, "columns", tuple(self.columns))
        _ = self.written  # refuses what cannot be
        if not 0 <= self.chunk_overlap < (self.chunk or 1):
            raise InvalidInput(f"chunk_overlap is {self.chunk_overlap}; it must be less than chunk")


    @property
    def written(self) -> CellFormat:
        """How CSV and TSV files are written."""
        return CellFormat(self.delimiter, None if self.columns is None else tuple(self.columns), self.encoding)


@dataclass(frozen=True, slots=True)
class FieldMap:
    """Which fields of an input's rows make up a record. ``key`` None: the source's name and row number do.

    ``metadata`` None: every field that is not ``used`` for something else. ``row``: the fields that are not used are
    the content itself, which is metadata too.
    """

    key: str | None
    text: tuple[str, ...]
    vector: tuple[str, ...]
    metadata: tuple[str, ...] | None
    used: frozenset[str | None]
    image: str | None = None
    row: bool = False

    @property
    def takes_vectors(self) -> bool:
        """Whether a field ``vectors`` is what a row brings for spaces, and nothing else that was asked for."""
        return "vectors" not in self.used and "vectors" not in (self.metadata or ())

    def record(self, label: str, number: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        """A row as a record; ``label`` stands for its source in a key made from the row number."""
        made: dict[str, Any] = {}
        if self.key is None:
            made["key"] = f"{label}:{number}"
        else:
            key = fields.get(self.key)
            made["key"] = "" if key is None else key  # refused as empty, rather than given a random one
        if len(self.text) == 1:
            made["text"] = fields.get(self.text[0])
        elif self.text:
            strings = [part for part in map(fields.get, self.text) if isinstance(part, str) and part]
            made["text"] = " ".join(strings) if strings else None
        if len(self.vector) == 1:
            given = fields.get(self.vector[0])
            made["vector"] = [given] if _is_number(given) else as_list(given)
        elif self.vector:
            made["vector"] = [_number(name, fields.get(name)) for name in self.vector]
        if self.image is not None:
            made["image"] = fields.get(self.image)
        vectors = _by_space(fields.get("vectors"))
        if vectors is not None and self.takes_vectors:
            made["vectors"] = vectors
            fields = {name: value for name, value in fields.items() if name != "vectors"}
        if self.row:
            apart = self.metadata or ()
            made["row"] = {name: value for name, value in fields.items() if name not in self.used | {*apart}}
            made["metadata"] = {name: fields[name] for name in apart if fields.get(name) is not None}
            return made
        if self.metadata is not None:
            made["metadata"] = {name: fields[name] for name in self.metadata if fields.get(name) is not None}
            return made
        kept = {name: value for name, value in fields.items() if value is not None and name not in self.used}
        if isinstance(kept.get("uri"), str):
            made["uri"] = kept.pop("uri")
        if isinstance(kept.get("metadata"), Mapping):  # a record as embedstore prints it
            kept = {**kept.pop("metadata"), **kept}
        made["metadata"] = kept
        return made


def _by_space(given: Any) -> Mapping[str, Any] | None:
    """Vectors by the names of their spaces; None for anything else that a field of that name may hold."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = orjson.loads(given)
        except orjson.JSONDecodeError:
            return None
    is_map = isinstance(given, Mapping) and bool(given)
    return given if is_map and all(is_numbers(one) for one in given.values()) else None


def as_list(vector: Any) -> Any:
    """A vector as it was given; one that a cell of a CSV file holds as JSON, ``[0.1, 0.2]``, as the list that it is."""
    if not (isinstance(vector, str) and vector.lstrip().startswith("[")):
        return vector
    try:
        return orjson.loads(vector)
    except orjson.JSONDecodeError:
        return vector  # which is refused as a text


def choose_fields(
    options: IngestOptions, columns: Sequence[str], source: str, *, read: frozenset[Modality]
) -> FieldMap:
    """The meaning of an input's fields: as the options say, else by the usual names.

    read: what the collection's encoder reads, so that it is needed; empty where there is none. Raises InvalidInput,
    with the names there are, where a field is missing or the choice is not clear.
    """
    key = options.key if options.key is not None else _first(KEY_FIELDS, columns)
    encoded = bool(read)
    image = options.image if isinstance(options.image, str) else None
    if image is None and (options.image or Modality.IMAGE in read):
        image = _first(IMAGE_FIELDS, columns)
    vector = _vector_fields(options.vector, columns)
    if options.vector is None and encoded:
        vector = []
    if encoded and vector:
        raise InvalidInput(
            f"{source}: a vector field ({', '.join(vector)}) was named, but this collection's vectors are made by its"
            " encoder; keep vectors computed elsewhere in a collection with encoder 'none'"
        )
    if read == _ROW:
        used = frozenset({key})
        return FieldMap(key, (), (), None if options.metadata is None else tuple(options.metadata), used, row=True)
    text = _text_fields(options.text, columns)
    if image is not None and text and not options.image and Modality.TEXT in read:
        image = None  # of an encoder that reads both; a field of pictures is then asked for by name
    if image is not None and options.text is None:
        text = []  # a record has one content
    if Modality.IMAGE in read and image is None and (Modality.TEXT not in read or not text):
        raise InvalidInput(
            f"{source}: which field holds the picture's path? Say --image NAME (image=...), or --image alone"
            f" (image=True) for the pictures of a folder; the fields are {', '.join(columns)}"
        )
    if not text and image is None and encoded:
        has_vectors = _first(VECTOR_FIELDS, columns) is not None
        hint = "; vectors computed elsewhere are for a collection with --encoder none" if has_vectors else ""
        raise InvalidInput(
            f"{source}: which field holds the text? Say --text NAME (text=...); the fields are {', '.join(columns)}"
            f"{hint}"
        )
    has_any = bool(vector) or "vectors" in columns
    if not encoded and not has_any and options.text is None and not text and image is None:
        raise InvalidInput(
            f"{source}: which field holds the vector? Say --vector NAME (vector=...); the fields are"
            f" {', '.join(columns)}"
        )
    asked = [("key", options.key), ("image", image)]
    asked += [("vector", name) for name in vector] + [("text", name) for name in text]
    asked += [("metadata", name) for name in options.metadata or ()]
    for what, name in asked:
        if name is not None and name not in columns:
            raise InvalidInput(
                f"{source} has no field {name!r}, which was named for {what}; its fields are {', '.join(columns)}"
            )
    # One field becomes the content or the vector and nothing else; of several, each keeps its own meaning.
    used = frozenset({key, image, *(text if len(text) == 1 else ()), *(vector if len(vector) == 1 else ())})
    kept = None if options.metadata is None else tuple(options.metadata)
    return FieldMap(key, tuple(text), tuple(vector), kept, used, image)


def _text_fields(asked: str | Sequence[str] | None, columns: Sequence[str]) -> list[str]:
    if asked is None:
        found = _first(TEXT_FIELDS, columns)
        return [] if found is None else [found]
    if isinstance(asked, str):
        return [asked] if asked in columns else [part.strip() for part in asked.split(",")]
    return list(asked)


def _vector_fields(asked: str | Sequence[str] | None, columns: Sequence[str]) -> list[str]:
    if asked is None:
        found = _first(VECTOR_FIELDS, columns)
        return [] if found is None else [found]
    if isinstance(asked, str):
        asked = [asked] if asked in columns else [part.strip() for part in asked.split(",") if part.strip()]
    if not isinstance(asked, Sequence) or not all(isinstance(name, str) for name in asked):
        raise InvalidInput(f"vector is {asked!r}; it is the name of a field, or a list of names of columns")
    named: list[str] = []
    for name in asked:
        matched = [] if name in columns or "*" not in name else fnmatch.filter(columns, name)
        named += matched or [name]
    return list(dict.fromkeys(named))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _number(name: str, value: Any) -> float:
    """The number in one of the columns that make a vector; InvalidRecord where there is none."""
    if _is_number(value):
        return value  # type: ignore[no-any-return]
    what = "is missing" if value is None else f"is of type {type(value).__name__}"
    raise InvalidRecord(f"a vector is made of numbers; {name!r} {what}", field=name)


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)
