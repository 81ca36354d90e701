"""Operations on a store, drawn from a seed, and what a store holds after each of them.

A plan is a list of operations as JSON. Every record is made from a number and a version, so that a plan is short and
whoever has it can compute every state the store may be in. Nothing here uses embedstore.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

Operation = dict[str, Any]
READING = frozenset(
    {"search", "words", "refresh", "index", "reopen", "compact", "backup", "restore", "repair"}
)
"""Verbs that leave the records as they are."""
_LONG_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Expected:
    """A record as it must be found: ``vector`` is its float32 bytes, None where it has none."""

    text: str | None
    uri: str | None
    metadata: dict[str, Any]
    vector: bytes | None
    word: str | None
    """A word that no other record has."""


@dataclass(slots=True)
class Holding:
    """What a collection holds, in order of insertion."""

    dim: int
    metric: str
    records: dict[str, Expected] = field(default_factory=dict)


State = dict[str, Holding]
"""What a store holds, by the names of its collections."""


def word_of(number: int, version: int) -> str:
    """The word that is in one version of one record alone."""
    return f"w{number}x{version}z"


def has_vector(number: int) -> bool:
    """Whether a record has a vector, in every version."""
    return number % 11 != 10


def vector_of(number: int, version: int, dim: int) -> np.ndarray:
    """The vector of a record: float32 (dim,), dim at most 16, different from every other."""
    raw = blake2b(f"{number}:{version}".encode(), digest_size=64).digest()
    return (np.frombuffer(raw, "<i4")[:dim] / np.float64(1 << 31)).astype("<f4")


def made(number: int, version: int, dim: int) -> Expected:
    """A record as ``add`` and ``upsert`` are given it."""
    vector = vector_of(number, version, dim).tobytes() if has_vector(number) else None
    with_text = number % 7 != 3 or vector is None
    word = word_of(number, version) if with_text else None
    filler = "lorem ipsum " * (_LONG_TEXT // 12) if number % 97 == 50 else f"record {number} of the plan, größer"
    metadata: dict[str, Any] = {
        "n": number, "v": version, "half": version + 0.5, "even": number % 2 == 0,
        "tags": ["a", "b", "c"][: number % 4], "deep": {"x": number % 4, "name": f"ü{number % 9}"},
        "mixed": (number, f"m{number}", True, 0.25)[number % 4],
    }  # fmt: skip
    text = f"{word} {filler}" if with_text else None
    return Expected(text, f"file:{number}.txt" if number % 5 == 0 else None, metadata, vector, word)


def given(number: int, version: int, dim: int) -> dict[str, Any]:
    """The same record as embedstore takes it."""
    one = made(number, version, dim)
    record: dict[str, Any] = {"key": key_of(number), "text": one.text, "metadata": one.metadata}
    if one.uri is not None:
        record["uri"] = one.uri
    if one.vector is not None:
        record["vector"] = np.frombuffer(one.vector, "<f4")
    return record


def key_of(number: int) -> str:
    """The key of a record."""
    return f"k{number}"


def number_of(key: str) -> int:
    """The number of a record."""
    return int(key[1:])


def archive_of(folder: Path) -> Path:
    """Where a store is backed up to: a file beside its folder."""
    return folder.with_name(f"{folder.name}.backup")


def settings_of(seed: int) -> dict[str, int]:
    """Limits for the store's log, so low that a plan passes them: it is emptied often, or written over often."""
    return {"CHECKPOINT_BYTES": 200_000} if seed % 4 < 2 else {"CHECKPOINT_PAGES": 10}


def changes(version: int) -> dict[str, Any]:
    """The fields that ``update`` gives: one new, one overwritten, one removed."""
    return {"extra": f"e{version}", "v": version, "even": None}


def states_within(state: State, operation: Operation) -> list[State]:
    """Every state in which a store may be found when an operation is broken off; the last is the whole operation."""
    verb, name = operation["verb"], operation.get("collection", "")
    if verb in READING:
        return [state]
    after = {other: Holding(one.dim, one.metric, dict(one.records)) for other, one in state.items()}
    if verb == "drop":
        del after[name]
        return [state, after]
    if name not in after:
        after[name] = Holding(operation["dim"], operation["metric"])
        if verb == "create":
            return [state, after]
        return [state, copy.deepcopy(after), _written(after, operation)]  # the collection is made before the records
    return [state, _written(after, operation)]


def _written(state: State, operation: Operation) -> State:
    """``state`` itself, changed by an operation on the records of one collection."""
    holding = state[operation["collection"]]
    match operation["verb"]:
        case "add" | "upsert":
            for number, version in operation["records"]:
                holding.records[key_of(number)] = made(number, version, holding.dim)
        case "update":
            for number in operation["numbers"]:
                _update(holding, key_of(number), changes(operation["version"]))
        case "delete":
            for number in operation["numbers"]:
                holding.records.pop(key_of(number), None)
        case "delete_below":
            for key in [key for key, one in holding.records.items() if one.metadata["n"] < operation["below"]]:
                del holding.records[key]
        case verb:
            raise ValueError(verb)
    return state


def _update(holding: Holding, key: str, fields: dict[str, Any]) -> None:
    old = holding.records[key]
    metadata = {name: value for name, value in {**old.metadata, **fields}.items() if value is not None}
    holding.records[key] = Expected(old.text, old.uri, metadata, old.vector, old.word)


class Planner:
    """Draws operations that fit the state that the earlier ones lead to."""

    def __init__(self, seed: int, *, state: State | None = None, next_number: int = 0, largest: int = 300) -> None:
        self._rng = np.random.default_rng(seed)
        self._largest = largest
        self._version = int(self._rng.integers(1 << 20)) * 1000
        self.state: State = state or {}
        self.next_number = next_number

    def plan(self, n_operations: int) -> list[Operation]:
        """The next operations."""
        return [self._next() for _ in range(n_operations)]

    def building(self) -> list[Operation]:
        """Operations on one collection that build every kind of cache, write once more, and open the store again."""
        name = next((name for name, one in self.state.items() if one.records), None)
        if name is None:
            return []
        here = {"collection": name, "dim": self.state[name].dim, "metric": self.state[name].metric}
        key = next(iter(self.state[name].records))
        added = self._added(here)
        self.state = states_within(self.state, added)[-1]
        return [
            {"verb": "words", **here, "key": key}, {"verb": "index", **here}, added, {"verb": "refresh", **here},
            {"verb": "reopen"}, {"verb": "search", **here, "key": key},
        ]  # fmt: skip

    def _next(self) -> Operation:
        operation = self._drawn()
        self.state = states_within(self.state, operation)[-1]
        return operation

    def _drawn(self) -> Operation:
        if not self.state or (len(self.state) < 3 and self._rng.random() < 0.06):
            return self._begun()
        name = str(self._rng.choice(sorted(self.state)))
        here = {"collection": name, "dim": self.state[name].dim, "metric": self.state[name].metric}
        numbers = [number_of(key) for key in self.state[name].records]
        if not numbers:
            return self._added(here)
        verbs = {
            "add": 0.28, "upsert": 0.12, "update": 0.10, "delete": 0.08, "delete_below": 0.02, "drop": 0.01,
            "search": 0.09, "words": 0.07, "refresh": 0.06, "index": 0.04, "reopen": 0.08,
            "compact": 0.03, "backup": 0.02,
        }  # fmt: skip
        verb = str(self._rng.choice(list(verbs), p=list(verbs.values())))
        match verb:
            case "add":
                return self._added(here)
            case "upsert":
                return self._upserted(here, numbers)
            case "update":
                return {"verb": verb, **here, "numbers": self._some(numbers), "version": self._new_version()}
            case "delete":
                return {"verb": verb, **here, "numbers": self._some(numbers)}
            case "delete_below":
                return {"verb": verb, **here, "below": int(np.quantile(numbers, 0.3))}
            case "search" | "words":
                return {"verb": verb, **here, "key": key_of(self._some(numbers)[0])}
            case "reopen" | "compact" | "backup":
                return {"verb": verb}
        return {"verb": verb, **here}

    def _begun(self) -> Operation:
        name = next(name for name in ("first", "second", "third") if name not in self.state)
        here = {
            "collection": name, "dim": int(self._rng.integers(8, 17)),
            "metric": str(self._rng.choice(["cosine", "euclidean"])),
        }  # fmt: skip
        return self._added(here) if self._rng.random() < 0.5 else {"verb": "create", **here}

    def _added(self, here: dict[str, Any]) -> Operation:
        first = self.next_number
        self.next_number += self._size()
        version = self._new_version()
        return {"verb": "add", **here, "records": [[number, version] for number in range(first, self.next_number)]}

    def _upserted(self, here: dict[str, Any], numbers: Sequence[int]) -> Operation:
        version = self._new_version()
        old = [[number, version] for number in self._some(numbers)]
        fresh = [[number, version] for number in range(self.next_number, self.next_number + self._size() // 4)]
        self.next_number += len(fresh)
        return {"verb": "upsert", **here, "records": [*old, *fresh]}

    def _size(self) -> int:
        """Mostly small batches, some of hundreds."""
        return int(min(self._largest, np.ceil(np.exp(self._rng.uniform(0, np.log(self._largest))))))

    def _some(self, numbers: Sequence[int]) -> list[int]:
        n = min(len(numbers), self._size())
        return sorted(int(one) for one in self._rng.choice(numbers, n, replace=False))

    def _new_version(self) -> int:
        self._version += 1
        return self._version
