"""Damages one place of one file of a store, and holds what the store then says and does against the truth.

Damage of a cache must be told by ``verify``, and change no answer. Damage of the database must be told by ``verify`` or
change no answer; what an operation then does is right, or an error of embedstore's own that says what to do. ``repair``
must bring over every record whose page was not hit.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import shutil
import sqlite3
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from shared import ROOT

import embedstore
from embedstore.errors import EmbedstoreError
from embedstore.maintenance.pages import PageFile
from embedstore.storage.layout import ID_SHIFT
from faults.specimen import (
    Question,
    Stored,
    Truth,
    everything_used,
    made,
    note,
    point,
    questions,
    read_whole,
    same,
    truth_of,
)

PAGE_BYTES = 8192
_SHARES = {"store.db": 45, "store.db-wal": 20, "cache": 45, "HEAD": 4, "other": 6}
"""How often each kind of file is damaged; the caches share theirs among the kinds of cache files."""


@dataclass(frozen=True, slots=True)
class Damage:
    """What is done to which file: 'flip' of the bit ``place``; 'zero' of the page, or 'cut' at the byte, ``place``."""

    kind: str
    file: str
    place: int

    @property
    def part(self) -> str:
        """'database', 'cache', or 'other' for files that hold nothing."""
        name = Path(self.file).name
        if name.startswith("store.db"):
            return "database"
        if name.endswith((".lock", ".holder")):
            return "other"
        return "HEAD" if name == "HEAD" else "cache"

    def apply(self, folder: Path) -> bool:
        """Do it; whether anything changed by it."""
        path = folder / self.file
        content = bytearray(path.read_bytes())
        before = bytes(content)
        if self.kind == "flip":
            content[self.place // 8] ^= 1 << self.place % 8
        elif self.kind == "zero":
            start = self.place * PAGE_BYTES
            content[start : start + PAGE_BYTES] = bytes(len(content[start : start + PAGE_BYTES]))
        else:
            del content[self.place :]
        path.write_bytes(content)
        return bytes(content) != before


@dataclass(slots=True)
class Outcome:
    """What one damage led to."""

    damage: Damage
    found: str = ""
    older: bool = False
    """Whether commits were lost, so that answers are of an older one, as a warning says at opening."""
    wrong: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    n_lost: int = 0
    n_hit: int = 0
    violations: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Specimen:
    """A whole store, the truth about it, and the answers that it must give."""

    folder: Path
    truth: Truth
    asked: dict[str, Question]
    answers: dict[str, Any]
    pages_of: dict[tuple[str, str, str], set[int]]

    @classmethod
    def of(cls, folder: Path) -> Specimen:
        """Read the truth about a whole store, and ask the questions; of copies, so that it stays as it is."""
        with copied(folder) as copy:
            truth = truth_of(copy)
            asked = questions(truth)
            with everything_used(caches_at_once=True), embedstore.open(copy) as store:
                answers = {name: question(store) for name, question in asked.items()}
        return cls(folder, truth, asked, answers, _pages_of(folder, truth))


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of a store in memory, gone when the block ends."""
    within = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="embedstore-damage-", dir=within) as scratch:
        yield Path(shutil.copytree(folder, Path(scratch) / "store"))


# ---- where each row lies


class _Traced(PageFile):
    """Notes which pages are read."""

    read: set[int]

    def _page(self, number: int) -> bytes:
        self.read.add(number)
        return super()._page(number)


def _pages_of(folder: Path, truth: Truth) -> dict[tuple[str, str, str], set[int]]:
    """The pages of the database that hold each record (space '') and each vector, after its log was brought in."""
    found: dict[tuple[str, str, str], set[int]] = {}
    with copied(folder) as copy:
        names = _names(copy)
        connection = sqlite3.connect(copy / "store.db")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        keys = dict(connection.execute("SELECT record_id, key FROM records").fetchall())
        owner = dict(connection.execute("SELECT space_id, collection_id FROM spaces").fetchall())
        connection.close()
        with _Traced(copy / "store.db", PAGE_BYTES) as pages:
            for number in range(1, pages._n_pages + 1):
                pages.read = set()
                for rowid, cells in pages._rows_of(number):
                    held = pages.read | {number}
                    if len(cells) == 9 and rowid in keys and cells[2] == keys[rowid]:
                        found[names[rowid // ID_SHIFT, 0], "", keys[rowid]] = held
                    elif len(cells) == 5 and cells[2] in keys and rowid // ID_SHIFT in owner:
                        space = rowid // ID_SHIFT
                        found[names[owner[space], 0], names[owner[space], space], keys[cells[2]]] = held
                    pages.read = set()
    n_rows = sum(map(len, truth.records.values())) + sum(map(len, truth.vectors.values()))
    assert len(found) == n_rows, (len(found), n_rows)
    return found


def _names(folder: Path) -> dict[tuple[int, int], str]:
    connection = sqlite3.connect(f"file:{folder / 'store.db'}?mode=ro", uri=True)
    names = {(row[0], 0): row[1] for row in connection.execute("SELECT collection_id, name FROM collections")}
    spaces = connection.execute("SELECT collection_id, space_id, name FROM spaces")
    names |= {(collection, space): name for collection, space, name in spaces}
    connection.close()
    return names


# ---- drawing damage


def drawn(folder: Path, n_flips: int, n_zeroed: int, n_cut: int, seed: int) -> list[Damage]:
    """Damages, spread over the files of a store."""
    rng = np.random.default_rng(seed)
    weights = _weights(folder)
    files = list(weights)
    shares = np.array(list(weights.values())) / sum(weights.values())
    damages = []
    for kind, n in (("flip", n_flips), ("zero", n_zeroed), ("cut", n_cut)):
        for file in rng.choice(files, n, p=shares).tolist():
            n_bytes = (folder / file).stat().st_size
            places = {"flip": 8 * n_bytes, "zero": -(-n_bytes // PAGE_BYTES), "cut": n_bytes}[kind]
            damages.append(Damage(kind, file, int(rng.integers(places))))
    return damages


def _weights(folder: Path) -> dict[str, float]:
    kinds: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            kinds.setdefault(_kind_of(path), []).append(str(path.relative_to(folder)))
    caches = [kind for kind in kinds if kind not in _SHARES]
    weights = {}
    for kind, files in kinds.items():
        share = _SHARES[kind] if kind in _SHARES else _SHARES["cache"] / len(caches)
        weights.update(dict.fromkeys(files, share / len(files)))
    return weights


def _kind_of(path: Path) -> str:
    if path.name in _SHARES:
        return path.name
    if path.suffix in (".lock", ".holder") or path.name.endswith("-shm"):
        return "other"
    return path.suffix or path.name


# ---- what a damaged store does


def examine(specimen: Specimen, damage: Damage, *, caches_at_once: bool = True) -> Outcome:
    """Damage a copy of the specimen, and use it in every way."""
    outcome = Outcome(damage)
    with everything_used(caches_at_once=caches_at_once):
        with copied(specimen.folder) as folder:
            if not damage.apply(folder):
                outcome.found = "nothing changed"
                return outcome
            if damage.part != "cache":
                _repair(specimen, folder, outcome)
        with copied(specimen.folder) as folder:
            damage.apply(folder)
            report = _verified(folder, outcome)
            _hold_report(report, outcome)
            _ask(specimen, folder, outcome)
            _hold_answers(folder, outcome)
        with copied(specimen.folder) as folder:
            damage.apply(folder)
            _write(folder, outcome)
    return outcome


def _verified(folder: Path, outcome: Outcome) -> embedstore.maintenance.VerifyReport | None:
    def verify() -> embedstore.maintenance.VerifyReport:
        with embedstore.open(folder) as store:
            return store.verify()

    return _guarded(verify, "verify", outcome)


def _guarded(call: Callable[[], Any], name: str, outcome: Outcome) -> Any:
    """What a call gives; None where it raised, which is noted: as a violation where it is no error of embedstore's."""
    try:
        return call()
    except EmbedstoreError as error:
        outcome.errors.append(f"{name}: {type(error).__name__}: {error}")
        tells = "store.db" in str(error) or not isinstance(error, embedstore.StoreDamaged)
        if not (tells and _advice(str(error), error)):
            outcome.violations.append(f"{name}: the message says too little: {type(error).__name__}: {error}")
    except Exception:
        outcome.violations.append(f"{name}: {traceback.format_exc(limit=-4)}")
    return None


def _advice(message: str, error: EmbedstoreError) -> bool:
    """Whether the error for damage names the command to run; other errors have other advice."""
    advice = ("embedstore verify", "restore a backup")
    return any(one in message for one in advice) or not isinstance(error, embedstore.StoreDamaged)


def _hold_report(report: embedstore.maintenance.VerifyReport | None, outcome: Outcome) -> None:
    part = outcome.damage.part
    outcome.older = report is not None and any("was acknowledged" in str(one) for one in report.lost)
    if report is None:
        outcome.found = "refused"
        if part in ("cache", "other"):
            outcome.violations.append("verify failed although the database is whole")
        return
    outcome.found = "damaged" if report.lost else ("cache" if report.problems else "clean")
    wanted = {"cache": ("cache",), "other": ("clean",)}.get(part, ("damaged", "cache", "clean"))
    if outcome.found not in wanted:
        outcome.violations.append(f"verify says {outcome.found}, of damage to {part}: {report.problems[:2]}")


def _ask(specimen: Specimen, folder: Path, outcome: Outcome) -> None:
    with embedstore.open(folder) as store:
        for name, question in specimen.asked.items():
            n_errors = len(outcome.errors)
            answer = _guarded(lambda question=question: question(store), name, outcome)
            if len(outcome.errors) == n_errors and not same(answer, specimen.answers[name]):
                outcome.wrong.append(name)


def _hold_answers(folder: Path, outcome: Outcome) -> None:
    whole = outcome.found in ("clean", "cache")
    if outcome.wrong and whole:
        outcome.violations.append(f"verify says {outcome.found}, but these answers are wrong: {outcome.wrong}")
    if outcome.errors and whole:
        outcome.violations.append(f"verify says {outcome.found}, but: {outcome.errors[0]}")
    if whole:
        again = _verified(folder, outcome)
        if again is None or again.problems:
            outcome.violations.append(f"after searching, verify finds {again and again.problems[:2]}")


def _write(folder: Path, outcome: Outcome) -> None:
    """Change the store and write files, in every way; each ends well or in an error of embedstore's."""
    with embedstore.open(folder) as store:
        notes, points = store.collection("notes"), store.collection("points")
        calls: dict[str, Callable[[], Any]] = {
            "backup": lambda: store.backup(folder.parent / "file.backup"),
            "add": lambda: notes.add([note(100_000, 0), note(100_001, 0)]),
            "upsert": lambda: points.upsert([point(3, 9), point(100_003, 9)]),
            "update": lambda: notes.update([{"key": "k18", "v": 99}]),
            "delete": lambda: points.delete(["p21", "p22"]),
            "delete where": lambda: notes.delete(where="n < 8"),
            "refresh": notes.refresh,
            "index": lambda: points.index(recipe="hnsw"),
            "export": lambda: notes.export(str(folder.parent / "notes.jsonl")),
            "export to Parquet": lambda: points.export(str(folder.parent / "points.parquet")),
            "sample": lambda: notes.sample(5, seed=1),
            "collections": store.collections,
            "compact": store.compact,
            "delete a collection": lambda: store.delete_collection("points"),
        }
        for name, call in calls.items():
            done = _guarded(call, name, outcome)
            if name == "backup" and (done is not None) != (outcome.found in ("clean", "cache")):
                outcome.violations.append(f"a backup was {'made' if done else 'refused'}; verify says {outcome.found}")


# ---- repair


def _repair(specimen: Specimen, folder: Path, outcome: Outcome) -> None:
    before = _hashes(folder)
    target = folder.parent / "repaired"
    report = _guarded(lambda: embedstore.repair(folder, target), "repair", outcome)
    if _hashes(folder) != before:
        outcome.violations.append("repair changed the damaged store")
    if report is None:
        if len(_hit(specimen, outcome.damage)) < len(specimen.pages_of):
            outcome.violations.append(f"nothing was repaired: {outcome.errors[-1:]}")
        return
    found = _verified(target, outcome)
    if found is None or found.problems:
        outcome.violations.append(f"the repaired store is not whole: {found and found.problems[:2]}")
        return
    _hold_repaired(specimen, read_whole(target), report, outcome)


def _hashes(folder: Path) -> list[str]:
    files = [folder / name for name in ("store.db", "store.db-wal", "HEAD")]
    return [hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "" for path in files]


def _hold_repaired(
    specimen: Specimen, repaired: Truth, report: embedstore.maintenance.RepairReport, outcome: Outcome
) -> None:
    truth = specimen.truth
    ids = {f"salvaged-{place}": name for place, name in enumerate(truth.records, start=1)}
    missing: dict[tuple[str, str, str], Any] = {
        (name, "", key): one for name, held in truth.records.items() for key, one in held.items()
    }
    for name, held in repaired.records.items():
        for key, one in held.items():
            original = _original(truth, ids.get(name, name), key, one)
            if original is None:
                outcome.violations.append(f"repair made a record of its own: {name}/{key}")
            elif original != ids.get(name, name) or truth.records[original].get(key) == one:
                missing.pop((original, "", key), None)
    lost_vectors = _missing_vectors(truth, repaired)
    hit = _hit(specimen, outcome.damage)
    outcome.n_lost, outcome.n_hit = len(missing) + len(lost_vectors), len(hit)
    for one in [*missing, *lost_vectors]:
        if one not in hit and (one[0], "", one[2]) not in hit:
            outcome.violations.append(f"repair lost {one}, whose page was not hit; it lists {report.lost[:3]}")
            break
    if (missing or lost_vectors) and not report.lost:
        outcome.violations.append(f"repair does not list that it lost {[*missing, *lost_vectors][:3]}")


def _original(truth: Truth, name: str, key: str, one: Stored) -> str | None:
    """The collection that a repaired record was in, as it is or in an earlier version; None where there is none."""
    for other in dict.fromkeys([name, *truth.records]):
        versions = {truth.records.get(other, {}).get(key), *truth.earlier.get(other, {}).get(key, ())}
        if one in versions:
            return other
    return None


def _missing_vectors(truth: Truth, repaired: Truth) -> list[tuple[str, str, str]]:
    """Vectors that are in no space of the repaired store."""
    found = {(key, vec) for held in repaired.vectors.values() for key, vec in held.items()}
    return [
        (name, space, key) for (name, space), held in truth.vectors.items() for key, vec in held.items()
        if (key, vec) not in found
    ]  # fmt: skip


def _hit(specimen: Specimen, damage: Damage) -> set[tuple[str, str, str]]:
    """The records and vectors that lie, in whole or in part, where the damage is."""
    if damage.part != "database" or damage.file.endswith("-shm"):
        return set()
    path = specimen.folder / damage.file
    hit = _log_pages_hit(damage, path) if damage.file.endswith("-wal") else _pages_hit(damage, path)
    return {one for one, pages in specimen.pages_of.items() if pages & hit}


def _log_pages_hit(damage: Damage, path: Path) -> set[int]:
    """The pages of the frames that were hit, of those behind each, whose checksum goes on from it, and of commits that

    have lost their end.
    """
    log = path.read_bytes()
    n_bytes = 24 + PAGE_BYTES
    frames = [struct.unpack_from(">2I", log, at) for at in range(32, len(log) - n_bytes + 1, n_bytes)]
    start, stop = _bytes_hit(damage, len(log))
    first, last = max(0, (start - 32) // n_bytes), min(len(frames), (stop - 33) // n_bytes + 2)
    if not any(n_pages for _, n_pages in frames[last:]):  # the newest commits have lost their end
        while first and not frames[first - 1][1]:
            first -= 1
        last = len(frames)
    return {page for page, _ in frames[first:last]}


def _bytes_hit(damage: Damage, n_bytes: int) -> tuple[int, int]:
    if damage.kind == "flip":
        return damage.place // 8, damage.place // 8 + 1
    if damage.kind == "zero":
        return damage.place * PAGE_BYTES, (damage.place + 1) * PAGE_BYTES
    return damage.place, n_bytes


def _pages_hit(damage: Damage, path: Path) -> set[int]:
    start, stop = _bytes_hit(damage, path.stat().st_size)
    return set(range(start // PAGE_BYTES + 1, (stop - 1) // PAGE_BYTES + 2))


# ---- campaigns


_specimens: list[Specimen] = []


def _start(folders: list[Path]) -> None:
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "plugin")]
    logging.getLogger("embedstore").setLevel(logging.CRITICAL)
    _specimens[:] = [Specimen.of(folder) for folder in folders]


def _examine_numbered(job: tuple[int, int, Damage]) -> Outcome:
    number, which, damage = job
    try:
        return examine(_specimens[which], damage, caches_at_once=number % 2 == 0)
    except Exception:
        return Outcome(damage, violations=[traceback.format_exc()])


def campaign(
    seed: int, n_flips: int = 1000, n_zeroed: int = 200, n_cut: int = 200, n: int = 400, n_processes: int = 2
) -> dict[str, Any]:
    """Damages of every kind to a store that was closed and to one that was killed; the sums of what came of them."""
    with tempfile.TemporaryDirectory(prefix="embedstore-specimen-") as scratch:
        folders = [Path(scratch) / end for end in ("closed", "killed")]
        jobs = []
        for which, folder in enumerate(folders):
            made(folder, n, folder.name)
            damages = drawn(folder, n_flips // 2, n_zeroed // 2, n_cut // 2, seed + which)
            jobs += [(number, which, one) for number, one in enumerate(damages)]
        context = multiprocessing.get_context("spawn")
        with context.Pool(n_processes, _start, (folders,)) as pool:
            outcomes = list(pool.imap_unordered(_examine_numbered, jobs, chunksize=4))
    return summed(outcomes)


def summed(outcomes: list[Outcome]) -> dict[str, Any]:
    """The outcomes as numbers, and the violations in words."""
    violations = [(one.damage, what) for one in outcomes for what in one.violations]
    by_part = Counter(f"{one.damage.part}: {one.found}" for one in outcomes)
    database = [one for one in outcomes if one.damage.part == "database"]
    told = [one for one in database if one.found in ("damaged", "refused")]
    answers = Counter(map(_answered, told))
    return {
        "rounds": len(outcomes), "violations": len(violations),
        "details": {
            "verify says": dict(sorted(by_part.items())),
            "answers of a database that verify calls damaged": dict(answers),
            "unused bytes of the database": sum(one.found in ("clean", "cache") for one in database),
            "rows on damaged pages": sum(one.n_hit for one in database),
            "rows that repair lost": sum(one.n_lost for one in database),
            "wrong": [f"{one.damage}: {one.wrong}" for one in told if _answered(one) == "wrong"],
            "violations": [f"{damage}: {what}" for damage, what in violations],
        },
    }  # fmt: skip


def _answered(outcome: Outcome) -> str:
    if outcome.wrong:
        return "of an older commit, as a warning says" if outcome.older else "wrong"
    return "an error" if outcome.errors else "right"


CAMPAIGNS: dict[str, Callable[[int], dict[str, Any]]] = {"damage": campaign}
