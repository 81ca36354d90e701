"""Keeps the states of single words or tokens: one record for each, with a vector in the space of every layer."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.making_spaces import add_vector_spaces, record_pages
from embedstore.model import FloatMatrix, Metric, Record, WriteReport, choose
from embedstore.probing.capturing import States, opened_model
from embedstore.probing.examples import with_vectors
from embedstore.states.taps import HIDDEN, Tap
from embedstore.storage.fitted import STATES, Fitted, fitted_of
from embedstore.storage.writing import CollectionWriter

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.states import StateModel
    from embedstore.states.running import Tokenized

UNITS = ("word", "token")
POOLS = ("mean", "first", "last")
_PAGE = 512
_PAGE_BYTES = 64 << 20
_KEPT = "states"


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
    split: a metadata field that lists the words of a text in their order, or spans of characters, [start, end]; else
        words and marks are found by themselves.
    fields: metadata fields that list something of each word, such as its part of speech, to be kept with it.
    only: the words that are kept, whatever their case; all by default.
    random_seed: of weights that are drawn in the place of those that were learned.

    Called again, words that a text no longer says are deleted, and those of a text that was changed made anew. A
    record has the key ``SOURCE#POSITION``, the word as its text, and as metadata ``source``, ``position``, ``start``,
    ``end`` (characters), ``context`` (a hash of the text) and the fields. Interrupted, the same call goes on where it
    was. InvalidInput for a word of ``split`` that is not in its text, a field that does not list as many, or spaces
    that hold states of another model.
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
    made_by, cut = _made_by(opened, pool), [unit, split]
    kind = choose(Metric, metric, "metric")
    report, begun = WriteReport(), False
    for page in record_pages(collection, where, _PAGE):
        tokenized = opened.tokenize([one.content or "" for one in page])
        found = [
            (record, tokens, units)
            for record, tokens in zip(page, tokenized, strict=True)
            if (units := list(_units(record, tokens, unit, split, fields, wanted)))
        ]
        if found and not begun:  # only now is anything made, when the first words were found
            add_vector_spaces(target, dims, metric=kind, default=names[taps[-1]])
            _claim(target, list(names.values()), made_by, cut)
            begun = True
        if not begun:
            continue
        report.deleted += _forget_what_changed(target, page, found)
        found = _not_kept(target, found, list(names.values()))
        for part in _parts(found, sum(dims.values())):
            report.truncated += sum(tokens.truncated for _, tokens, _ in part)
            report.encoded += len(part)
            states = opened.token_states([tokens for _, tokens, _ in part], taps)
            report += target.upsert([
                _row(record, one, states[number], names, pool)
                for number, (record, _, units) in enumerate(part)
                for one in units
            ])  # fmt: skip
    if not begun:
        raise InvalidInput(f"no text of {collection.name!r} that was asked for has such a word; nothing was made")
    return States(target, model, names, report)


def _made_by(model: StateModel, pool: str) -> str:
    """What decides the vectors of words: the model, and how tokens are reduced."""
    spec = model.model.spec("words")
    deciding = [spec.fingerprint, pool, model.random_seed, model.dtype, model.stack]
    return hashlib.blake2b(json.dumps(deciding).encode(), digest_size=16).hexdigest()


def _claim(target: Collection, spaces: Sequence[str], made_by: str, cut: Sequence[str | None]) -> None:
    """Note of spaces whose states they hold; InvalidInput where they hold others, or the words were cut otherwise."""
    with target.store.database.write() as transaction:
        writer = CollectionWriter(transaction, target.name)
        for other in writer.spaces.values():
            kept = fitted_of(transaction, other.space_id, _KEPT)
            if kept is not None and list(kept.description.get("cut", ())) != list(cut):
                raise InvalidInput(
                    f"the words of {target.name!r} were made with another unit or split; give these another collection"
                )
        for name in spaces:
            kept = fitted_of(transaction, writer.spaces[name].space_id, _KEPT)
            if kept is None:
                if writer.spaces[name].n_live:
                    held = f"the space {name!r} of {target.name!r}"
                    raise InvalidInput(f"{held} holds vectors from elsewhere; give a prefix")
                writer.keep_fitted(name, Fitted(_KEPT, STATES, {"made_by": made_by, "cut": list(cut)}, {}))
            elif kept.description.get("made_by") != made_by:
                raise InvalidInput(
                    f"the space {name!r} of {target.name!r} holds states of another model, or reduced in another way;"
                    " give these a prefix, or another collection"
                )
        writer.finish()


def context_of(text: str) -> str:
    """The text that a word stands in, as 16 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _forget_what_changed(
    target: Collection, records: Sequence[Record], found: list[tuple[Record, Tokenized, list[Unit]]]
) -> int:
    """Delete the words of texts that were others when they were read, and those that are other words now; how many."""
    if not len(target):
        return 0
    contexts = {record.key: context_of(record.content or "") for record in records}
    now = {f"{record.key}#{one.place}": one.text for record, _, units in found for one in units}
    gone = [
        one.key for one in target.records({"source": {"$in": list(contexts)}})
        if one.metadata.get("context") != contexts.get(str(one.metadata.get("source")))
        or now.get(one.key, one.content) != one.content
    ]  # fmt: skip
    return target.delete(gone) if gone else 0


def _parts(
    found: list[tuple[Record, Tokenized, list[Unit]]], n_numbers: int
) -> Iterator[list[tuple[Record, Tokenized, list[Unit]]]]:
    """Texts in parts whose states, of so many numbers a token, need no more than some memory."""
    part: list[tuple[Record, Tokenized, list[Unit]]] = []
    n_bytes = 0
    for one in found:
        needed = 4 * n_numbers * len(one[1].ids)
        if part and n_bytes + needed > _PAGE_BYTES:
            yield part
            part, n_bytes = [], 0
        part.append(one)
        n_bytes += needed
    if part:
        yield part


@functools.cache
def _word() -> re.Pattern[str]:
    """A word with its marks and apostrophes, or one other character."""
    marks = "".join(chr(one) for one in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(one))[0] == "M")
    letter = f"[\\w{re.escape(marks)}]"
    return re.compile(rf"{letter}+(?:['’]{letter}+)*|[^\w\s]")


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
        if where and (not tokens.truncated or tokens.offsets[where, 1].max() >= end):  # else it was cut off
            told = {name: listed[place] for name, listed in lists.items()}
            yield Unit(text[start:end], place, start, end, where, told)


def _spans(record: Record, text: str, split: str | None) -> list[tuple[int, int]]:
    if split is None:
        return [match.span() for match in _word().finditer(text)]
    listed = record.metadata.get(split)
    if not isinstance(listed, list) or not all(isinstance(one, (str, list)) for one in listed):
        raise InvalidInput(f"{record.key}: the field {split!r} lists no words")
    spans, after = [], 0
    for word in listed:
        if isinstance(word, list):
            spans.append(_span(record, text, split, word))
            continue
        start = text.find(word, after)
        if start < 0 or not word:
            raise InvalidInput(f"{record.key}: the word {word!r} of {split!r} is not in its text from {after} on")
        after = start + len(word)
        spans.append((start, after))
    return spans


def _span(record: Record, text: str, split: str, given: list[Any]) -> tuple[int, int]:
    """Characters of a text, from the first to behind the last."""
    right = len(given) == 2 and all(isinstance(one, int) and not isinstance(one, bool) for one in given)
    if not right or not 0 <= given[0] < given[1] <= len(text):
        raise InvalidInput(
            f"{record.key}: {given!r} of {split!r} is no span of its {len(text)} characters; give [start, end]"
        )
    return given[0], given[1]


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
        "metadata": {"source": record.key, "position": unit.place, "start": unit.start, "end": unit.end,
                     "context": context_of(record.content or ""), **unit.fields},
    }  # fmt: skip
