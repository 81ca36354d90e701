"""Lets the disk fill up at every stage of a store's life: nothing acknowledged is lost, and it goes on with more space.

The disk is a small tmpfs, which only root can mount; a filler leaves as many bytes as a trial is given.
"""

from __future__ import annotations

import logging
import os
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from shared import brute_force

import embedstore
from embedstore.errors import EmbedstoreError, StorageFull
from embedstore.storage import sqlite
from faults.specimen import DIM, everything_used, metadata_of, text_of

DISK_BYTES = 96 << 20
N_SIZES = 50


class Disk:
    """A tmpfs of which a filler takes most."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def leave(self, n_bytes: int) -> None:
        """Let so many bytes be free."""
        self.free()
        status = os.statvfs(self.folder)
        taken = status.f_bavail * status.f_frsize - n_bytes
        if taken > 0:
            with self._filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, taken)

    def free(self) -> None:
        """Take the filler away."""
        self._filler.unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """How much is free."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize


@contextmanager
def mounted(n_bytes: int = DISK_BYTES) -> Iterator[Disk]:
    """A small disk; OSError where it cannot be mounted."""
    with tempfile.TemporaryDirectory(prefix="embedstore-disk-") as folder:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], capture_output=True, check=False
        )
        if done.returncode:
            raise OSError(done.stderr.decode())
        try:
            yield Disk(Path(folder))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@dataclass(slots=True)
class Trial:
    """A store on a disk that is nearly full, and what was acknowledged."""

    disk: Disk
    store: embedstore.Store
    held: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @property
    def collection(self) -> embedstore.Collection:
        """The one collection."""
        return self.store.collection("c", encoder="none", dim=DIM, recipe="hnsw")


def records(first: int, n: int, version: int, long: bool = False) -> dict[str, dict[str, Any]]:
    """Records by key."""
    made = {}
    for number in range(first, first + n):
        vector = np.random.default_rng([number, version]).standard_normal(DIM).astype(np.float32)
        text = text_of(number, version) + (" long" * 3000 if long else "")
        metadata = metadata_of(number, version)
        made[f"k{number}"] = {"key": f"k{number}", "text": text, "vector": vector, "metadata": metadata}
    return made


# ---- the stages


def _writing(first: int, n: int, version: int, long: bool = False) -> Callable[[Trial], None]:
    def upsert(trial: Trial) -> None:
        made = records(first, n, version, long)
        trial.collection.upsert(made.values())
        trial.held.update((key, (one["text"], one["vector"])) for key, one in made.items())

    return upsert


def _deleting(first: int, n: int) -> Callable[[Trial], None]:
    def delete(trial: Trial) -> None:
        keys = [f"k{number}" for number in range(first, first + n)]
        if trial.held:
            trial.collection.delete(keys)
        for key in keys:
            trial.held.pop(key, None)

    return delete


def _reopen(trial: Trial) -> None:
    trial.store.close()
    trial.store = embedstore.open(trial.store.path)


def _search(trial: Trial) -> None:
    if not trial.held:
        return
    query = np.random.default_rng(4).standard_normal(DIM).astype(np.float32)
    keys = list(trial.held)
    scores = brute_force(np.stack([trial.held[key][1] for key in keys]), query, "cosine")
    wanted = [keys[i] for i in np.argsort(-scores)[:5]]
    found = trial.collection.search(query, 5).keys
    if found != wanted:
        trial.violations.append(f"a search finds {found}, not {wanted}")


def _words(trial: Trial) -> None:
    for key in list(trial.held)[:: max(1, len(trial.held) // 3)]:
        word = next(one for one in trial.held[key][0].split() if one.startswith("word"))
        found = trial.collection.search(word, 5, mode="text").keys
        if found != [key]:
            trial.violations.append(f"the word of {key} finds {found}")


def _get(trial: Trial) -> None:
    found = {record.key: record.content for record in trial.collection.records()} if trial.held else {}
    if found != {key: text for key, (text, _) in trial.held.items()}:
        trial.violations.append(f"{len(found)} records are there, of {len(trial.held)} acknowledged")


def _repair(trial: Trial) -> None:
    if (trial.store.path / "store.db").exists():
        embedstore.repair(trial.store.path, trial.disk.folder / "repaired")


STAGES: dict[str, Callable[[Trial], Any]] = {
    "create": lambda trial: trial.collection.create(),
    "add few": _writing(0, 20, 0),
    "first search": _search,
    "first words": _words,
    "add": _writing(20, 150, 0),
    "index": lambda trial: trial.collection.index() if trial.held else None,
    "words": _words,
    "add long texts": _writing(200, 60, 0, long=True),
    "search": _search,
    "reopen": _reopen,
    "upsert": _writing(0, 120, 1),
    "refresh": lambda trial: trial.collection.refresh() if trial.held else None,
    "backup": lambda trial: trial.store.backup(trial.disk.folder / "file.backup") if trial.held else None,
    "export": lambda trial: trial.collection.export(str(trial.disk.folder / "c.parquet")) if trial.held else None,
    "delete": _deleting(10, 60),
    "compact": lambda trial: trial.store.compact() if trial.held else None,
    "repair": _repair,
    "close": _reopen,
}
"""What is done, in this order; a stage that is refused is passed over."""
READING = frozenset({"first search", "first words", "words", "search", "reopen", "close"})
"""Stages that succeed however full the disk is."""


def trial_of(disk: Disk, n_bytes: int, stages: dict[str, Callable[[Trial], Any]] = STAGES) -> Trial:
    """Go through the stages with so many bytes free, give back the space, and hold the store against the truth."""
    disk.leave(n_bytes)
    with everything_used(caches_at_once=True):
        trial = Trial(disk, embedstore.open(disk.folder / "store", lock_timeout=2))
        try:
            for name, stage in stages.items():
                _attempt(trial, name, stage)
                for reading in (_get, _search):
                    _attempt(trial, f"{reading.__name__} after {name}", reading, reads=True)
            disk.free()
            _recover(trial)
        finally:
            trial.store.close()
    return trial


def _attempt(trial: Trial, name: str, stage: Callable[[Trial], Any], *, reads: bool = False) -> None:
    try:
        stage(trial)
    except StorageFull as error:
        trial.refused.append(name)
        if reads or name in READING:
            trial.violations.append(f"{name}: {error}")
        elif str(trial.disk.folder) not in str(error):
            trial.violations.append(f"{name}: the error does not name a path: {error}")
    except EmbedstoreError as error:
        trial.violations.append(f"{name}: {type(error).__name__} instead of StorageFull: {error}")
    except Exception:
        trial.violations.append(f"{name}: {traceback.format_exc(limit=-5)}")


def _recover(trial: Trial) -> None:
    """With space again, the next write succeeds, and nothing is lost or left behind."""
    for name, stage in (
        ("write again", _writing(1000, 5, 0)), ("get again", _get), ("search again", _search), ("words again", _words),
        ("index again", lambda trial: trial.collection.index()), ("search the index", _search),
    ):  # fmt: skip
        _attempt(trial, name, stage)
    report = trial.store.verify()
    if report.problems:
        trial.violations.append(f"verify finds {report.problems[:2]}")
    left = [str(path) for path in trial.disk.folder.rglob("*") if _is_left_behind(path)]
    if left:
        trial.violations.append(f"left behind: {left}")


def _is_left_behind(path: Path) -> bool:
    return path.name.startswith(".") or path.suffix in (".tmp", ".partial", ".repairing") or "journal" in path.name


def campaign(seed: int, n_sizes: int = N_SIZES) -> dict[str, Any]:
    """Disks of many sizes; which stages each refused."""
    logging.getLogger("embedstore").setLevel(logging.CRITICAL)
    sqlite_limit = sqlite.CHECKPOINT_BYTES
    refused: Counter[str] = Counter()
    violations: list[str] = []
    sizes = drawn_sizes(seed, n_sizes)
    for number, n_bytes in enumerate(sizes):
        sqlite.CHECKPOINT_BYTES = (sqlite_limit, 1 << 18)[number % 2]
        try:
            with mounted() as disk:
                trial = trial_of(disk, n_bytes)
        finally:
            sqlite.CHECKPOINT_BYTES = sqlite_limit
        refused.update(name for name in trial.refused if name in STAGES)
        violations += [f"{n_bytes:,} bytes: {what}" for what in trial.violations]
    return {
        "rounds": len(sizes), "violations": len(violations),
        "details": {"refused at": dict(refused), "sizes": sizes, "violations": violations},
    }  # fmt: skip


def drawn_sizes(seed: int, n_sizes: int) -> list[int]:
    """Free bytes, from none to what a whole trial takes, most of them small."""
    rng = np.random.default_rng(seed)
    whole = used_bytes() * 2  # a stage takes more while it runs than it leaves
    spread = np.sort(rng.uniform(0, 1, n_sizes - 1)) ** 2 * whole
    return [0, *(int(one) // 4096 * 4096 for one in spread)]


def used_bytes() -> int:
    """What a trial takes on a disk with room for all of it, at most."""
    with mounted() as disk:
        least = [disk.free_bytes()]
        before = least[0]

        def watched(stage: Callable[[Trial], Any]) -> Callable[[Trial], Any]:
            def run(trial: Trial) -> None:
                stage(trial)
                least.append(disk.free_bytes())

            return run

        trial = trial_of(disk, DISK_BYTES, {name: watched(stage) for name, stage in STAGES.items()})
        assert not trial.violations and not trial.refused, (trial.violations, trial.refused)
    return before - min(least)


CAMPAIGNS: dict[str, Callable[[int], dict[str, Any]]] = {"disk full": campaign}
