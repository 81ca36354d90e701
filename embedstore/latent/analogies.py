"""Analogies between records: what is to c as b is to a, one at a time and a whole file of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from embedstore.checks import check_whole
from embedstore.errors import InvalidInput, RecordNotFound
from embedstore.filters.parse import Where
from embedstore.indexing.exact import top_k
from embedstore.latent.points import Points, look_at
from embedstore.model import FloatMatrix, Hit, Hits, IntVector
from embedstore.reading import as_keys, record_ids_of, records_by_id
from embedstore.transforms.affine import normalized

if TYPE_CHECKING:
    from embedstore.collection import Collection

EPSILON = 1e-6
"""Added below the line of 3CosMul, as gensim has it."""
_AT_ONCE = 1024
_MOST_FOUR = 4

Given = tuple[FloatMatrix, FloatMatrix, FloatMatrix]
"""Vectors of length one of a, b and c, (n, d) each."""


def _cos_add(given: Given, others: FloatMatrix) -> FloatMatrix:
    a, b, c = given
    scores: FloatMatrix = normalized(b - a + c) @ others.T
    return scores


def _cos_mul(given: Given, others: FloatMatrix) -> FloatMatrix:
    far, near, here = ((1 + one @ others.T) / 2 for one in given)
    return np.asarray(near * here / (far + np.float32(EPSILON)), np.float32)


def _pair_direction(given: Given, others: FloatMatrix) -> FloatMatrix:
    a, b, c = given
    way = normalized(b - a)
    along = way @ others.T - np.einsum("nd,nd->n", way, c)[:, None]
    apart = np.sqrt(np.maximum(2 - 2 * (c @ others.T), np.float32(1e-12)))  # of vectors of length one
    return np.asarray(along / apart, np.float32)


METHODS: Mapping[str, Callable[[Given, FloatMatrix], FloatMatrix]] = {
    "3cosadd": _cos_add, "3cosmul": _cos_mul, "pairdirection": _pair_direction,
}  # fmt: skip
"""By name, the scores (n, m) of m candidates, vectors of length one, for n questions."""


@dataclass(frozen=True, slots=True)
class Section:
    """How many of a section's questions were asked, and solved."""

    name: str
    n: int
    n_right: int

    @property
    def accuracy(self) -> float | None:
        """The share that was solved; None where none was asked."""
        return self.n_right / self.n if self.n else None


@dataclass(frozen=True, slots=True)
class AnalogyReport:
    """What came of a file of analogies: by section in its order, and how many lacked a record."""

    method: str
    sections: Sequence[Section]
    n_left_out: int
    n_candidates: int

    @property
    def total(self) -> Section:
        """All sections in one."""
        return Section("total", sum(one.n for one in self.sections), sum(one.n_right for one in self.sections))


def analogy(
    collection: Collection, space: str, keys: tuple[str, str, str], k: int, method: str, where: Where | None, *,
    include_sources: bool,
) -> Hits:  # fmt: skip
    """See ``Space.analogy``."""
    _check_method(method)
    check_whole("k", k, 1)
    vectors = normalized(collection.vectors(list(keys), space=space))
    given = (vectors[0:1], vectors[1:2], vectors[2:3])

    def best(points: Points) -> Hits:
        left_out: set[int] = set()
        if not include_sources:
            left_out = set(record_ids_of(points.transaction, points.owner, as_keys(keys)).values())
        ids, scores = np.empty(0, np.int64), np.empty(0, np.float32)
        for found, others in points.blocks():
            made = METHODS[method](given, normalized(others))[0]
            ids, scores = np.concatenate([ids, found]), np.concatenate([scores, made])
            kept = top_k(scores, k + len(left_out))
            ids, scores = ids[kept], scores[kept]
        pairs = [(one, score) for one, score in zip(ids.tolist(), scores.tolist(), strict=True) if one not in left_out]
        records = records_by_id(points.transaction, [one for one, _ in pairs[:k]])
        hits = [Hit(records[one], score, rank) for rank, (one, score) in enumerate(pairs[:k], start=1)]
        return Hits(hits, exact=True, plan=f"{method} of {points.n:,} vectors", explanation={})

    return look_at(collection, space, where, best)


def solve(
    collection: Collection, space: str, questions: str | os.PathLike[str] | Sequence[Sequence[str]], method: str
) -> AnalogyReport:
    """See ``Space.analogies``."""
    _check_method(method)
    sections = _sections(questions)
    words = sorted({word for _, lines in sections for line in lines for word in line})

    def solved(points: Points) -> AnalogyReport:
        places, vectors = _closed_vocabulary(points, words)
        left_out, found = 0, []
        for name, lines in sections:
            known = [line for line in lines if all(word in places for word in line)]
            left_out += len(lines) - len(known)
            asked = np.asarray([[places[word] for word in line] for line in known], np.int64).reshape(-1, _MOST_FOUR)
            found.append(Section(name, len(known), _n_right(asked, vectors, METHODS[method])))
        return AnalogyReport(method, found, left_out, len(vectors))

    return look_at(collection, space, None, solved)


def _n_right(asked: IntVector, vectors: FloatMatrix, scores_of: Callable[[Given, FloatMatrix], FloatMatrix]) -> int:
    """How many of the questions, places (n, 4) among the vectors, have the fourth as their best candidate."""
    right = 0
    for start in range(0, len(asked), _AT_ONCE):
        part = asked[start : start + _AT_ONCE]
        a, b, c = (vectors[part[:, place]] for place in range(3))
        scores = scores_of((a, b, c), vectors)
        np.put_along_axis(scores, part[:, :3], -np.inf, axis=1)
        right += int((scores.argmax(axis=1) == part[:, 3]).sum())
    return right


def _closed_vocabulary(points: Points, words: Sequence[str]) -> tuple[dict[str, int], FloatMatrix]:
    """By word its place among the vectors, of length one, of those records that the words name."""
    ids = record_ids_of(points.transaction, points.owner, list(words))
    others = {word: (word.lower(), word.title(), word.upper()) for word in words if word not in ids}
    spelled = sorted({one for several in others.values() for one in several})
    ids |= record_ids_of(points.transaction, points.owner, spelled)
    record_of = {
        word: next((ids[one] for one in (word, *others.get(word, ())) if one in ids), None) for word in words
    }
    wanted = sorted({one for one in record_of.values() if one is not None})
    vectors = points.of_records(np.asarray(wanted, np.int64))
    there = ~np.isnan(vectors).any(axis=1) if len(vectors) else np.zeros(0, bool)
    place_of = {record_id: place for place, record_id in enumerate(np.asarray(wanted, np.int64)[there].tolist())}
    if not place_of:
        raise RecordNotFound(f"none of the {len(words):,} words is the key of a record with a vector here")
    places = {
        word: place_of[record_id] for word, record_id in record_of.items() if record_id in place_of
    }
    return places, normalized(vectors[there])


def _sections(questions: str | os.PathLike[str] | Sequence[Sequence[str]]) -> list[tuple[str, list[Sequence[str]]]]:
    """The questions by section; InvalidInput for a line that has not four words."""
    if not isinstance(questions, (str, os.PathLike)):
        given = [tuple(one) if isinstance(one, (list, tuple)) else (one,) for one in questions]
        for number, one in enumerate(given, start=1):
            if len(one) != _MOST_FOUR or not all(isinstance(word, str) for word in one):
                raise InvalidInput(f"question {number} is {one!r}; a question is four keys: a, b, c and the answer")
        return [("all", list(given))]
    path = Path(questions)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidInput(f"the questions {os.fspath(path)!r} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the questions {os.fspath(path)!r} are not UTF-8: {error.reason}") from None
    sections: list[tuple[str, list[Sequence[str]]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith(":"):
            sections.append((line[1:].strip(), []))
            continue
        parts = line.split()
        if not parts or line.startswith("//"):
            continue
        if len(parts) != _MOST_FOUR:
            raise InvalidInput(f"{path}, line {number}: {len(parts)} words; a question has four: a b c answer")
        if not sections:
            sections.append(("all", []))
        sections[-1][1].append(parts)
    if not any(lines for _, lines in sections):
        raise InvalidInput(f"{path} holds no questions; a line is four words: a b c answer")
    return sections


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise InvalidInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")


