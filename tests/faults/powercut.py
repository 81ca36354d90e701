"""Power cuts at every system call of a process that writes to a store; what a disk may then hold is held to the oracle.

The process runs under strace. Its writes are played on a simulated disk, and after each of them the disk's possible
contents are put into a folder and opened.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import embedstore
from faults.disk import MODELS, Image
from faults.kills import WORKER, environment
from faults.oracle import Violation, check
from faults.plans import Operation, Planner, State, archive_of, settings_of, states_within
from faults.tracing import Tracer, strace

STORE = "shelf/library"
"""The store's folder below the durable root; the folder above it is new as well."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What a disk may hold after a power cut, and how far the process had come."""

    model: str
    place: str
    n_tried: int
    n_acknowledged: int
    image: Image


def why_not() -> str | None:
    """Why no process can be traced here; None where one can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return f"strace does not work here: {tried.stderr.strip()}" if tried.returncode else None


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: thousands of states are put there."""
    memory = Path("/dev/shm")
    where = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="embedstore-powercut-", dir=where) as name:
        yield Path(name)


def short_plan(seed: int, n_operations: int = 12) -> list[Operation]:
    """Some operations on few records, the last of which build every cache and go through one more opening."""
    planner = Planner(seed, largest=40)
    plan = planner.plan(n_operations)
    return plan + planner.building()


def upkeep_plan(seed: int, root: Path) -> list[Operation]:
    """A few operations, and then every command that keeps a store sound."""
    store = root / STORE
    return [
        *short_plan(seed, 3), {"verb": "compact"}, {"verb": "backup"},
        {"verb": "restore", "archive": str(archive_of(store)), "into": str(store.with_name("restored"))},
        {"verb": "repair", "source": str(store), "into": str(store.with_name("repaired"))},
    ]  # fmt: skip


def record(root: Path, plan: Sequence[Operation], seed: int, breaks: Sequence[str] = ()) -> Path:
    """Carry out a plan on a new store below ``root`` under strace; the file with the trace, beside ``root``."""
    trace = root.with_suffix(".strace")
    job = {"folder": str(root / STORE), "plan": plan, "settings": settings_of(seed), "breaks": breaks}
    done = subprocess.run(
        [*strace(trace), sys.executable, str(WORKER)], input=f"{json.dumps(job)}\n", text=True, capture_output=True,
        env=environment(), timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Violation(f"the worker failed with {done.returncode}: {done.stderr[-1500:]}")
    return trace


def cuts(root: Path, trace: Path, seed: int, models: Sequence[str] = tuple(MODELS)) -> Iterator[Cut]:
    """Every different state that a disk may be in, over all system calls of a trace and all models.

    At the end the simulated disk is compared with the real one: a trace that was not understood is an error.
    """
    tracer, rng = Tracer(root), np.random.default_rng(seed)
    seen: set[tuple[bytes, int, int]] = set()
    for place in tracer.play(trace):
        n_tried, n_acknowledged = (
            sum(line.startswith(word) for line in tracer.printed) for word in ("TRY ", "ACK ")
        )  # fmt: skip
        for model in models:
            image = tracer.disk.image(MODELS[model], rng)
            mark = (image.digest(), n_tried, n_acknowledged)
            if mark not in seen:
                seen.add(mark)
                yield Cut(model, f"{len(seen)}: {place}", n_tried, n_acknowledged, image)
    _compare(tracer, root)


def _compare(tracer: Tracer, root: Path) -> None:
    image = tracer.disk.image(MODELS["everything"], np.random.default_rng(0))
    real = {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }  # fmt: skip
    if image.files != real:
        different = sorted(path for path in {*image.files, *real} if image.files.get(path) != real.get(path))
        raise NotImplementedError(f"the trace was played to another end than the process came to: {different}")


class Judge:
    """Holds states after power cuts to what a plan's process had acknowledged."""

    def __init__(self, plan: Sequence[Operation]) -> None:
        self._states: list[list[State]] = []
        state: State = {}
        for operation in plan:
            within = states_within(state, operation)
            self._states.append(within)
            state = within[-1]
        self._states.append([state])
        self._plan = plan

    def violation(self, cut: Cut, root: Path) -> str | None:
        """What is wrong with a state; None where nothing is. It is put below ``root``, and removed afterwards."""
        states = self._states[cut.n_acknowledged]
        folder = root / "cut"
        folder.mkdir()
        try:
            cut.image.put(folder)
            check(folder / STORE, states if cut.n_tried > cut.n_acknowledged else states[:1], seed=0)
            self._check_archive(folder / STORE, cut)
            for place, operation in enumerate(self._plan[: cut.n_tried]):
                if operation["verb"] in ("restore", "repair"):
                    made = (folder / STORE).with_name(Path(operation["into"]).name)
                    self._check_made(made, self._states[place], operation["verb"], done=place < cut.n_acknowledged)
        except (Violation, embedstore.EmbedstoreError) as violation:
            return f"{cut.model}, after {cut.place}, {cut.n_acknowledged}/{cut.n_tried} operations: {violation}"
        finally:
            shutil.rmtree(folder)
        return None

    def _check_archive(self, store: Path, cut: Cut) -> None:
        """The archive is that of the newest backup that was acknowledged, or of the one in hand, and whole."""
        begun = [place for place, one in enumerate(self._plan[: cut.n_tried]) if one["verb"] == "backup"]
        done = [place for place in begun if place < cut.n_acknowledged]
        newest = [*done[-1:], *(place for place in begun if place >= cut.n_acknowledged)]
        allowed = [state for place in newest for state in self._states[place]]
        archive = archive_of(store)
        with tempfile.TemporaryDirectory(dir=store.parent) as scratch:
            made = Path(scratch) / "restored"
            if archive.exists():
                embedstore.restore(archive, made)
            self._check_made(made, allowed, "backup", done=bool(done))

    @staticmethod
    def _check_made(made: Path, states: list[State], verb: str, *, done: bool) -> None:
        """The store that an operation made is whole, and is there if the operation was acknowledged."""
        with embedstore.open(made) as opened:
            there = opened.exists()
        if there:
            check(made, states, seed=0)
        elif done:
            raise Violation(f"what {verb} made is gone")


@contextmanager
def unchecked_hashes() -> Iterator[None]:
    """Let this process believe every cache file that has the right size."""

    class Equal(str):
        def __ne__(self, other: object) -> bool:
            return False

    with mock.patch("embedstore.indexing.cachefile.page_hash", lambda content: Equal()):
        yield


def judged(
    root: Path,
    plan: Sequence[Operation],
    seed: int,
    *,
    breaks: Sequence[str] = (),
    models: Sequence[str] = tuple(MODELS),
    after: str | None = None,
    n_sampled: int | None = None,
) -> tuple[dict[str, int], list[str]]:
    """Trace a plan and judge what a disk may hold: the number of states by model, and what was wrong.

    Of all states, those before the first operation ``after`` are passed over, and ``n_sampled`` of the others judged.
    """
    real = root / "real"
    real.mkdir()
    found = cuts(real, record(real, plan, seed, breaks), seed, models)
    if after is not None:
        first = 1 + next(place for place, operation in enumerate(plan) if operation["verb"] == after)
        found = (cut for cut in found if cut.n_acknowledged >= first)
    if n_sampled is not None:
        found = iter(_sampled(list(found), n_sampled, seed))
    judge, faults = Judge(plan), []
    counts = dict.fromkeys(models, 0)
    for cut in found:
        counts[cut.model] += 1
        fault = judge.violation(cut, root)
        if fault is not None:
            faults.append(f"seed {seed}, {fault}")
    return counts, faults


def _sampled(found: list[Cut], n: int, seed: int) -> list[Cut]:
    places = np.random.default_rng(seed).permutation(len(found))[:n]
    return [found[place] for place in sorted(places)]


# ---- the long form


def campaign(
    seed: int, n_plans: int = 4, n_sampled: int | None = None, *, upkeep: bool = False
) -> dict[str, Any]:  # fmt: skip
    """All states of some plans, or ``n_sampled`` of each; with ``upkeep``, of plans with compact, backup and so on."""
    missing = why_not()
    if missing is not None:
        return {"rounds": 0, "violations": 1, "faults": [missing]}
    counts, faults = dict.fromkeys(MODELS, 0), []
    for number in range(n_plans):
        found, wrong = _in_child(seed + number, n_sampled, upkeep)
        counts = {model: counts[model] + found.get(model, 0) for model in counts}
        faults += wrong
    return {"rounds": sum(counts.values()), "violations": len(faults), "faults": faults[:20], "models": counts}


def _in_child(seed: int, n_sampled: int | None, upkeep: bool) -> tuple[dict[str, int], list[str]]:
    """``judged`` in a process of its own: a state that brings it down is a violation too."""
    with scratch() as root:
        answer = root / "answer.json"
        pid = os.fork()
        if pid == 0:
            try:
                plan = upkeep_plan(seed, root / "real") if upkeep else short_plan(seed)
                answer.write_text(json.dumps(judged(root, plan, seed, n_sampled=n_sampled)))
            except Exception as error:
                answer.write_text(json.dumps([{}, [f"seed {seed}: {type(error).__name__}: {error}"]]))
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != 0 or not answer.exists():
            return {}, [f"seed {seed}: the process that opened the states ended with {status}"]
        counts, faults = json.loads(answer.read_text())
        return counts, faults


CAMPAIGNS = {"power cuts": campaign, "power cuts in upkeep": partial(campaign, n_plans=2, upkeep=True)}
QUICK_CAMPAIGNS = {
    "power cuts": partial(campaign, n_plans=2, n_sampled=100),
    "power cuts in upkeep": partial(campaign, n_plans=1, n_sampled=100, upkeep=True),
}
