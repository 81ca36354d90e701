"""Keeps the states of single words or tokens: one record for each, with a vector in the space of every layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.making_spaces import add_vector_spaces
from embedstore.model import FloatMatrix, Metric, Record, WriteReport, choose
from embedstore.probing.capturing import States, opened_model
from embedstore.probing.examples import with_vectors
from embedstore.states.taps import HIDDEN, Tap

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.states.running import Tokenized

UNITS = ("word", "token")
POOLS = ("mean", "first", "last")
_PAGE = 512
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Unit:
    """A word or token of a record: its characters in the text, and the tokens that stand for it."""

    text: str
    place: int
    start: int
    end: int
    tokens: list[int]
    fields: dict[str, Any]


def words(
    collection: Collection,
    into: str,
    model: str,
    *,
    unit: str = "word",
    layers: str | int | Iterable[int] = "all",
    sites: Sequence[str] = (HIDDEN,),
    pool: str = "mean",
    split: str | None = None,
    fields: Sequence[str] = (),
    only: Iterable[str] | None = None,
    where: Where | None = None,
    prefix: str = "",
    random_seed: int | None = None,
    metric: str = "cosine",
) -> States:
    """Keep the states of every word of a collection's texts as records of the collection ``into``.

    unit: 'word', or 'token', as the model's tokenizer cuts a text.
    pool: over the tokens of a word: 'mean', 'first' or 'last'.
    split: a metadata field that lists the words of a text in their order; else words and marks are found by themselves.
    fields: metadata fields that list something of each word, such as its part of speech, to be kept with it.
    only: the words that are kept, whatever their case; all by default.
    random_seed: of weights that are drawn in the place of those that were learned.

    A record has the key ``SOURCE#POSITION``, the word as its text, and as metadata ``source``, ``position``, ``start``,
    ``end`` (characters) and the fields. Interrupted, the same call goes on where it was. InvalidInput for a word of
    ``split`` that is not in its text, or a field that does not list as many.
    """
    if unit not in UNITS:
        raise InvalidInput(f"unit is {unit!r}; it must be one of {', '.join(UNITS)}")
    if pool not in POOLS:
        raise InvalidInput(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    if unit == "token" and (split is not None or fields):
        raise InvalidInput("split and fields speak of words; with unit='token' the model's tokenizer says what is one")
    if into == collection.name:
        raise InvalidInput(f"into names the collection itself, {into!r}; give another one for its words")
    if isinstance(fields, str):
        raise InvalidInput(f"fields is {fields!r}; give a list of names: fields=[{fields!r}]")
    wanted = None if only is None else {one.casefold() for one in only}
    opened = opened_model(collection, model, random_seed)
    taps = opened.taps(sites, layers)
    names = {tap: f"{prefix}{tap.space_name}" for tap in taps}
    target = collection.store.collection(into, encoder="none")
    dims = {name: opened.dim_of(tap) for tap, name in names.items()}
    add_vector_spaces(target, dims, metric=choose(Metric, metric, "metric"), default=names[taps[-1]])
    report = WriteReport()
    records = (one for one in collection.records(where) if one.content)
    while page := list(islice(records, _PAGE)):
        found = [
            (record, tokens, units)
            for record, tokens in zip(page, opened.tokenize([one.content or "" for one in page]), strict=True)
            if (units := list(_units(record, tokens, unit, split, fields, wanted)))
        ]
        found = _not_kept(target, found, list(names.values()))
        if not found:
            continue
        report.truncated += sum(tokens.truncated for _, tokens, _ in found)
        states = opened.token_states([tokens for _, tokens, _ in found], taps)
        rows = [
            _row(record, one, states[number], names, pool)
            for number, (record, _, units) in enumerate(found)
            for one in units
        ]
        report += target.upsert(rows)
    return States(target, model, names, report)


def _units(
    record: Record, tokens: Tokenized, unit: str, split: str | None, fields: Sequence[str], wanted: set[str] | None
) -> Iterator[Unit]:
    """The words of a record that the model read whole."""
    text = record.content or ""
    if unit == "token":
        for place, (start, end) in enumerate(tokens.offsets.tolist()):
            if not tokens.special[place] and (wanted is None or text[start:end].strip().casefold() in wanted):
                yield Unit(text[start:end].strip() or text[start:end], place, start, end, [place], {})
        return
    spans = _spans(record, text, split)
    lists: dict[str, Sequence[Any]] = {}
    for name in fields:
        listed = record.metadata.get(name)
        if not isinstance(listed, list) or len(listed) != len(spans):
            n = len(listed) if isinstance(listed, list) else "no list"
            raise InvalidInput(f"{record.key}: the field {name!r} has {n} for {len(spans)} words")
        lists[name] = listed
    real = ~tokens.special & (tokens.offsets[:, 1] > tokens.offsets[:, 0])
    for place, (start, end) in enumerate(spans):
        if wanted is not None and text[start:end].casefold() not in wanted:
            continue
        inside = real & (tokens.offsets[:, 0] < end) & (tokens.offsets[:, 1] > start)
        where = np.flatnonzero(inside).tolist()
        if where and tokens.offsets[where, 1].max() >= end:  # else the text was cut off before its end
            told = {name: listed[place] for name, listed in lists.items()}
            yield Unit(text[start:end], place, start, end, where, told)


def _spans(record: Record, text: str, split: str | None) -> list[tuple[int, int]]:
    if split is None:
        return [match.span() for match in _WORD.finditer(text)]
    listed = record.metadata.get(split)
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise InvalidInput(f"{record.key}: the field {split!r} lists no words")
    spans, after = [], 0
    for word in listed:
        start = text.find(word, after)
        if start < 0 or not word:
            raise InvalidInput(f"{record.key}: the word {word!r} of {split!r} is not in its text from {after} on")
        after = start + len(word)
        spans.append((start, after))
    return spans


def _not_kept(
    target: Collection, found: list[tuple[Record, Tokenized, list[Unit]]], spaces: Sequence[str]
) -> list[tuple[Record, Tokenized, list[Unit]]]:
    """Those records of which some word lacks a vector in one of the spaces, or is another word."""
    keys = {f"{record.key}#{one.place}": one.text for record, _, units in found for one in units}
    same = [one.key for one in target.get_many(list(keys)) if one.content == keys[one.key]]
    kept = with_vectors(target, same, spaces)
    return [
        (record, tokens, units)
        for record, tokens, units in found
        if not all(f"{record.key}#{one.place}" in kept for one in units)
    ]


def _row(
    record: Record, unit: Unit, states: dict[Tap, FloatMatrix], names: dict[Tap, str], pool: str
) -> dict[str, Any]:
    vectors = {}
    for tap, name in names.items():
        mine = states[tap][unit.tokens]
        vectors[name] = mine.mean(axis=0) if pool == "mean" else mine[0 if pool == "first" else -1]
    return {
        "key": f"{record.key}#{unit.place}", "text": unit.text, "vectors": vectors,
        "metadata": {"source": record.key, "position": unit.place, "start": unit.start, "end": unit.end, **unit.fields},
    }  # fmt: skip
