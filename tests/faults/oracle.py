"""Holds a store against what it must hold: records, digests, searches, counts, and that it can be written to.

The digests are computed from the definition in docs/format.md with hashlib and NumPy, not by embedstore's functions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np

import embedstore
from faults.plans import Expected, Holding, Operation, State, given, key_of, number_of, states_within, word_of

N_SEARCHED = 200
"""So many records of a collection are searched by their own vectors."""
N_WORDS = 8


class Violation(Exception):
    """A store is not what it must be."""


def acceptable(plan: Sequence[Operation], n_acknowledged: int, n_tried: int, state: State) -> list[State]:
    """The states a store may be in: everything acknowledged, and the operation in flight whole or not at all.

    ``state`` is what the store held before the plan.
    """
    for operation in plan[:n_acknowledged]:
        state = states_within(state, operation)[-1]
    return states_within(state, plan[n_acknowledged]) if n_tried > n_acknowledged else [state]


def check(folder: Path, states: Sequence[State], seed: int) -> tuple[State, State]:
    """Open the store in ``folder``, hold it against the ``states`` of which it must be in one, and add a record.

    Returns the state that it was in, and the state that it is in now. Raises Violation.
    """
    try:
        with embedstore.open(folder) as store:
            state = _matching(store, states)
            _check_verified(store, searched=False)
            _check_all(store, state, states, seed)
            _check_verified(store, searched=True)
            return state, _check_writing(store, state, seed)
    except (embedstore.EmbedstoreError, OSError, AssertionError) as error:
        raise Violation(f"{type(error).__name__}: {error}") from error


# ---- what is there


def _matching(store: embedstore.Store, states: Sequence[State]) -> State:
    """The state that the store is in."""
    found = _read(store)
    differences = []
    for state in reversed(states):
        difference = _difference(found, state)
        if difference is None:
            return state
        differences.append(difference)
    raise Violation("the store is in none of the states it may be in: " + "; or: ".join(differences))


def _read(store: embedstore.Store) -> dict[str, list[tuple[str, Expected]]]:
    """Every record of a store, in order."""
    if not store.exists():
        return {}
    found = {}
    for name in store.collections():
        collection = store.collection(name)
        records = list(collection.records())
        with store.reading() as transaction:
            vectors = dict(
                transaction.all(
                    "SELECT r.key, v.vec FROM vectors AS v JOIN records AS r ON r.record_id = v.record_id"
                    " JOIN collections AS c ON c.collection_id = r.collection_id WHERE c.name = :name",
                    {"name": name},
                )
            )
        found[name] = [
            (one.key, Expected(one.content, one.uri, one.metadata, vectors.get(one.key), None)) for one in records
        ]
    return found


def _difference(found: dict[str, list[tuple[str, Expected]]], state: State) -> str | None:
    if set(found) != set(state):
        return f"there are the collections {sorted(found)}, not {sorted(state)}"
    for name, holding in state.items():
        keys, wanted = [key for key, _ in found[name]], list(holding.records)
        if keys != wanted:
            missing, extra = sorted({*wanted} - {*keys}), sorted({*keys} - {*wanted})
            return f"{name} lacks {len(missing)} of {len(wanted)} records {missing[:3]}; {len(extra)} more {extra[:3]}"
        for key, one in found[name]:
            other = holding.records[key]
            for part in ("text", "uri", "metadata", "vector"):
                if getattr(one, part) != getattr(other, part):
                    return f"{name}/{key}: the {part} is not what was written"
    return None


def _check_verified(store: embedstore.Store, *, searched: bool) -> None:
    """``verify`` finds nothing; before the first search it may find a cache that is still to be made anew."""
    if not store.exists():
        return
    report = store.verify()
    problems = report.problems if searched else report.lost
    if problems:
        raise Violation(f"verify, {'after' if searched else 'before'} the searches: {problems[0]}")


# ---- what is found


def _check_all(store: embedstore.Store, state: State, states: Sequence[State], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name, holding in state.items():
        collection = store.collection(name)
        _check_stats(collection, holding)
        touched = _touched(name, state, states)
        _check_own_vectors(collection, holding, touched, rng)
        _check_filters(collection, holding)
        _check_words(collection, holding, _absent_words(name, state, states), rng)
        _check_own_vectors(collection, holding, touched, rng)


def _touched(name: str, state: State, states: Sequence[State]) -> set[str]:
    """The keys of records that the operation in flight wrote or would have changed."""
    others = [other[name].records if name in other else {} for other in states if other is not state]
    return {
        key for key, one in state[name].records.items() if any(records.get(key) != one for records in others)
    }  # fmt: skip


def _check_stats(collection: embedstore.Collection, holding: Holding) -> None:
    stats = collection.stats()
    space = stats["spaces"][0]
    with_vector = [(key, one.vector) for key, one in holding.records.items() if one.vector is not None]
    wanted = {
        "n_records": len(holding.records), "digest": _total([_row_hash(*item) for item in holding.records.items()]),
        "n_vectors": len(with_vector), "space digest": _total([_vector_hash(*item) for item in with_vector]),
    }  # fmt: skip
    found = {
        "n_records": stats["n_records"], "digest": stats["digest"], "n_vectors": space["n_vectors"],
        "space digest": space["digest"],
    }  # fmt: skip
    if found != wanted:
        raise Violation(f"{collection.name}: the statistics are {found}, not {wanted}")


def _row_hash(key: str, one: Expected) -> bytes:
    metadata = json.dumps(one.metadata, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content = "" if one.text is None else _blake(one.text.encode()).hex()
    return _blake("\0".join([key, "text", content, one.uri or "", metadata]).encode())


def _vector_hash(key: str, vector: bytes) -> bytes:
    return _blake(key.encode() + b"\0" + vector)


def _blake(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _total(hashes: Sequence[bytes]) -> str:
    halves = np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2)
    return halves.sum(axis=0, dtype=np.uint64).astype("<u8").tobytes().hex()


def _check_own_vectors(
    collection: embedstore.Collection, holding: Holding, touched: set[str], rng: np.random.Generator
) -> None:
    """Each record that was touched, of the newest, and of a sample of the others is the nearest to its own vector."""
    keys = [key for key, one in holding.records.items() if one.vector is not None]
    if len(keys) > N_SEARCHED:
        chosen = {*rng.choice(keys, N_SEARCHED, replace=False).tolist(), *keys[-50:], *touched}
        keys = [key for key in keys if key in chosen]
    if not keys:
        if collection.search(np.ones(holding.dim, np.float32)).keys:
            raise Violation(f"{collection.name}: a search finds records, but none has a vector")
        return
    queries = np.stack([np.frombuffer(holding.records[key].vector or b"", "<f4") for key in keys])
    first = collection.search(queries[-1], k=1).keys
    nearest = [hits.keys for hits in collection.search_batch(queries, k=1)]
    for key, hits in zip([keys[-1], *keys], [first, *nearest], strict=True):
        if hits != [key]:
            raise Violation(f"{collection.name}: the nearest to the vector of {key!r} is {hits}")
    n_hits = len(collection.search(queries[0], k=100_000))
    n_vectors = sum(one.vector is not None for one in holding.records.values())
    if n_hits != n_vectors:
        raise Violation(f"{collection.name}: a search for everything finds {n_hits} records of {n_vectors}")


def _check_filters(collection: embedstore.Collection, holding: Holding) -> None:
    if not holding.records:
        return
    numbers = [one.metadata["n"] for one in holding.records.values()]
    middle = int(np.median(numbers))
    for where, wanted in (
        (f"n <= {middle}", sum(number <= middle for number in numbers)),
        ("half > 0", len(numbers)),
        ("deep.x = 2", sum(number % 4 == 2 for number in numbers)),
    ):
        if collection.count(where=where) != wanted:
            raise Violation(f"{collection.name}: {where!r} counts {collection.count(where=where)}, not {wanted}")


def _absent_words(name: str, state: State, states: Sequence[State]) -> list[str]:
    """A word that is never used, and words of records that the store might hold but does not."""
    here = {one.word for one in state[name].records.values()}
    other = {one.word for other in states if name in other for one in other[name].records.values()}
    return [word_of(0, 0), *sorted(word for word in other - here if word is not None)[:N_WORDS]]


def _check_words(
    collection: embedstore.Collection, holding: Holding, absent: Sequence[str], rng: np.random.Generator
) -> None:
    """A word of one record finds that record; a word of none finds nothing."""
    keys = [key for key, one in holding.records.items() if one.word is not None]
    if len(keys) > N_WORDS:
        keys = [*rng.choice(keys[:-2], N_WORDS - 2, replace=False).tolist(), *keys[-2:]]
    for key in keys:
        found = collection.search(holding.records[key].word, k=5, mode="text").keys
        if found != [key]:
            raise Violation(f"{collection.name}: the word of {key!r} finds {found}")
    for word in absent:
        found = collection.search(word, k=5, mode="text").keys
        if found:
            raise Violation(f"{collection.name}: the word {word!r}, which no record has, finds {found}")


# ---- and one more write


def _check_writing(store: embedstore.Store, state: State, seed: int) -> State:
    """Add one record, and find it; the state after that."""
    name = sorted(state)[0] if state else "first"
    dim, metric = (state[name].dim, state[name].metric) if state else (8, "cosine")
    number = 1 + max((number_of(key) for one in state.values() for key in one.records), default=0)
    number += number % 7 == 3 or number % 11 == 10  # one with a text and a vector
    number += number % 7 == 3 or number % 11 == 10
    operation = {"verb": "add", "collection": name, "dim": dim, "metric": metric, "records": [[number, seed]]}
    collection = store.collection(name, encoder="none", metric=metric, dim=dim)
    record = given(number, seed, dim)
    collection.add([record])
    if collection.search(record["vector"], k=1).keys != [key_of(number)]:
        raise Violation(f"{name}: a record that was added afterwards is not the nearest to its own vector")
    if collection.search(word_of(number, seed), mode="text").keys != [key_of(number)]:
        raise Violation(f"{name}: a record that was added afterwards is not found by its word")
    return states_within(state, operation)[-1]
