"""The nouns as plain values: records, hits, reports and the words that name choices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from embedstore.errors import InvalidInput
from embedstore.wording import counted, short_score, told_score

if TYPE_CHECKING:
    import pandas
    import pyarrow
    from PIL.Image import Image

FloatMatrix = npt.NDArray[np.float32]
"""A float32 array of shape (n, dim), C-contiguous."""
FloatVector = npt.NDArray[np.float32]
"""A float32 array of shape (dim,)."""
IntVector = npt.NDArray[np.int64]
"""An int64 array of shape (n,)."""
BoolVector = npt.NDArray[np.bool_]
"""A boolean array of shape (n,)."""

Choice = TypeVar("Choice", bound=Enum)


class Metric(Enum):
    """How two vectors of a space are compared. The score is greater for nearer in every one."""

    COSINE = "cosine"
    """score = cosine of the angle, -1 to 1"""
    DOT = "dot"
    """score = inner product"""
    EUCLIDEAN = "euclidean"
    """score = minus the Euclidean distance, at most 0"""


class Mode(Enum):
    """What a search compares: vectors, words, or both ranks fused."""

    VECTOR = "vector"
    TEXT = "text"
    HYBRID = "hybrid"


class Modality(Enum):
    """What kind of thing a record's content is."""

    TEXT = "text"
    IMAGE = "image"
    ROW = "row"


def choose(kind: type[Choice], word: str | Choice, what: str) -> Choice:
    """Turn a word given by a user into a member of an enum; ``InvalidInput`` lists the words there are."""
    if isinstance(word, kind):
        return word
    try:
        return kind(word)
    except ValueError:
        words = ", ".join(str(member.value) for member in kind)
        raise InvalidInput(f"{what} is {word!r}; it must be one of {words}") from None


@dataclass(slots=True)  # not frozen, nor are hits: an answer has many, and a frozen one takes four times as long
class Record:
    """One stored item.

    ``content`` is the text itself (None for a record that is only a vector or an address); of a picture its bytes as a
    data URL, or their name (``ni:``) where they lie in the file ``uri``; of a row its JSON. ``uri`` is the address of
    what it was read from, ``metadata`` a JSON object.
    """

    key: str
    content: str | None
    metadata: dict[str, Any]
    modality: Modality = Modality.TEXT
    uri: str | None = None

    def image(self) -> Image:
        """The picture of a record, as Pillow's; InvalidInput where it has none, or its file is gone or has changed."""
        from embedstore.pictures import picture_of_record

        return picture_of_record(self.content, self.uri).decode()

    @property
    def row(self) -> dict[str, Any]:
        """The row of a record, columns to values; InvalidInput where it is none."""
        if self.modality is not Modality.ROW or self.content is None:
            raise InvalidInput(f"the record {self.key!r} is a {self.modality.value}, not a row")
        found: dict[str, Any] = json.loads(self.content)
        return found

    @property
    def summary(self) -> str:
        """The content in a line of text, for display: a picture by where it lies."""
        if self.modality is Modality.IMAGE:
            return self.uri or "(a picture)"
        return " ".join((self.content or "").split())

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: key, text (or image, or row), metadata, and uri where there is one."""
        fields: dict[str, Any] = {"key": self.key, "text": self.content, "metadata": self.metadata}
        if self.modality is Modality.IMAGE:
            fields = {"key": self.key, "image": self.content, "metadata": self.metadata}
        elif self.modality is Modality.ROW:
            fields = {"key": self.key, "row": self.row, "metadata": self.metadata}
        if self.uri is not None:
            fields["uri"] = self.uri
        return fields


@dataclass(slots=True)
class Hit:
    """One search result: a record, its score (greater is nearer) and its rank from 1."""

    record: Record
    score: float
    rank: int

    @property
    def key(self) -> str:
        """The record's key."""
        return self.record.key

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready form: rank, key, score, then the record's text and metadata."""
        return {"rank": self.rank, "score": told_score(self.score), **self.record.to_dict()}


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest records of many queries, by number alone: both arrays are (n_queries, k), best first.

    ``numbers`` int64 tell the records apart within the store (``Collection.keys_of`` gives their keys), -1 where there
    are fewer than ``k``; ``scores`` float32, -inf there. ``exact`` is True where every allowed vector was compared.
    """

    numbers: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    exact: bool
    plan: str


class Hits(Sequence[Hit]):
    """The answer of one search, best first.

    ``exact`` is True where the ranking was computed over every allowed vector rather than approximated;
    ``plan`` is a one-line account of how it was computed, ``explanation`` the same as a mapping.
    """

    def __init__(
        self,
        hits: Sequence[Hit] | Callable[[], Sequence[Hit]],
        *,
        exact: bool,
        plan: str,
        explanation: Mapping[str, Any],
    ) -> None:
        """hits: the hits, or what makes them of rows that were read already, called when they are first looked at."""
        self._made = None if callable(hits) else tuple(hits)
        self._make = hits if callable(hits) else None
        self.exact = exact
        self.plan = plan
        self.explanation = dict(explanation)

    @property
    def _hits(self) -> tuple[Hit, ...]:
        made, make = self._made, self._make
        if made is None:
            assert make is not None  # kept, since another thread may be making them too
            made = self._made = tuple(make())
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What is copied: the hits themselves, not what would make them."""
        return {**self.__dict__, "_made": self._hits, "_make": None}

    def __len__(self) -> int:
        return len(self._hits)

    @overload
    def __getitem__(self, position: int) -> Hit: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Hit]: ...
    def __getitem__(self, position: int | slice) -> Hit | Sequence[Hit]:
        return self._hits[position]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self._hits)

    @property
    def keys(self) -> list[str]:
        """The keys of the hits, best first."""
        return [hit.record.key for hit in self._hits]

    def __repr__(self) -> str:
        lines = [f"{counted(len(self), 'hit')} ({self.plan})"]
        for hit in self._hits:
            text = hit.record.summary
            text = text if len(text) <= 70 else text[:69] + "…"
            lines.append(f"{hit.rank:>4}  {short_score(hit.score):>8}  {hit.record.key}  {text}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from html import escape

        rows = "".join(
            f"<tr><td>{hit.rank}</td><td>{short_score(hit.score)}</td><td>{escape(hit.key)}</td>"
            f"<td>{_shown(hit.record)}</td><td>{escape(str(hit.record.metadata))}</td></tr>"
            for hit in self._hits
        )
        head = "<tr><th>rank</th><th>score</th><th>key</th><th>text</th><th>metadata</th></tr>"
        return f"<table>{head}{rows}</table><p>{escape(self.plan)}</p>"

    def to_arrow(self) -> pyarrow.Table:
        """A table with rank, key, score, text and one column per metadata field."""
        import pyarrow

        names = list(dict.fromkeys(name for hit in self._hits for name in hit.record.metadata))
        fixed: dict[str, Any] = {
            "rank": pyarrow.array([hit.rank for hit in self._hits], pyarrow.int64()),
            "key": pyarrow.array(self.keys, pyarrow.string()),
            "score": pyarrow.array([hit.score for hit in self._hits], pyarrow.float64()),
            "text": pyarrow.array([hit.record.content for hit in self._hits], pyarrow.string()),
        }
        for name in names:
            column = name if name not in fixed else f"metadata.{name}"
            values = [hit.record.metadata.get(name) for hit in self._hits]
            try:
                fixed[column] = pyarrow.array(values)
            except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):  # a field of mixed types
                fixed[column] = pyarrow.array([None if v is None else str(v) for v in values], pyarrow.string())
        return pyarrow.table(fixed)

    def to_pandas(self) -> pandas.DataFrame:
        """A DataFrame with rank, key, score, text and one column per metadata field."""
        from embedstore.optional import require

        require("pandas", "pandas")
        frame: pandas.DataFrame = self.to_arrow().to_pandas()
        return frame


def _shown(record: Record) -> str:
    """A record's content as HTML: a picture as a small one."""
    from html import escape

    if record.modality is not Modality.IMAGE:
        return escape(record.content or "")
    import base64

    from embedstore.pictures import picture_of_record, thumbnail

    try:
        small = base64.b64encode(thumbnail(picture_of_record(record.content, record.uri))).decode()
    except InvalidInput:  # its file is gone: what is known of it is shown all the same
        return escape(record.summary)
    return f"<img alt='{escape(record.key)}' src='data:image/png;base64,{small}'>"


@dataclass(slots=True)
class WriteReport:
    """What a write did, in numbers of records, and what it refused.

    ``encoded`` counts the contents that met the encoder, ``truncated`` the texts longer than it reads, ``unknown`` the
    values of rows that were of no category it had seen (which ``to_dict`` leaves out); ``errors`` holds a line for each
    failed record (the first hundred).
    """

    added: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: int = 0
    deleted: int = 0
    encoded: int = 0
    truncated: int = 0
    unknown: int = 0
    errors: list[str] = field(default_factory=list)

    def __iadd__(self, other: WriteReport) -> WriteReport:
        for name in ("added", "updated", "unchanged", "failed", "deleted", "encoded", "truncated", "unknown"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors = (self.errors + other.errors)[:100]
        return self

    def __str__(self) -> str:
        parts = [f"{self.added:,} added", f"{self.updated:,} updated", f"{self.unchanged:,} unchanged",
                 f"{self.failed:,} failed"]
        if self.deleted:
            parts.append(f"{self.deleted:,} deleted")
        if self.truncated:
            parts.append(f"{self.truncated:,} longer than the encoder reads (truncated)")
        if self.unknown:
            parts.append(f"{self.unknown:,} values of unknown categories")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "added": self.added, "updated": self.updated, "unchanged": self.unchanged, "failed": self.failed,
            "deleted": self.deleted, "encoded": self.encoded, "truncated": self.truncated,
        }  # fmt: skip
