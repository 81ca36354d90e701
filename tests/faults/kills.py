"""Kills processes that work on a store, at random moments and at every failpoint, and checks what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import embedstore
from embedstore.failpoints import NAMES
from faults.oracle import Violation, acceptable, check
from faults.plans import Operation, Planner, State, archive_of, settings_of

WORKER = Path(__file__).with_name("worker.py")
MAX_FAULTS = 20
"""A campaign ends early after so many violations."""
_MAX_RECORDS = 1500
MAX_SECONDS = 120.0
"""A worker that takes longer has stopped for good, which is a violation."""


@dataclass(slots=True)
class Outcome:
    """How far a worker came: operations begun and acknowledged, its exit status, and what it wrote to stderr."""

    n_tried: int
    n_acknowledged: int
    status: int
    errors: str
    seconds: float

    @property
    def killed(self) -> bool:
        """Whether SIGKILL ended it."""
        return self.status == -9


@dataclass(slots=True)
class Session:
    """A store that is broken again and again, and what it holds."""

    folder: Path
    state: State = field(default_factory=dict)
    backed_up: State | None = None
    """What its backup holds."""
    next_number: int = 0
    n_rounds: int = 0

    def settled(self, state: State, next_number: int) -> None:
        """Note what the store was found to hold."""
        self.state = state
        live = [int(key[1:]) for one in state.values() for key in one.records]
        self.next_number = max([next_number, *(number + 1 for number in live)])
        self.n_rounds += 1

    @property
    def worn(self) -> bool:
        """Whether a fresh store should take its place."""
        return self.n_rounds >= 12 or sum(len(one.records) for one in self.state.values()) > _MAX_RECORDS


def environment(failpoint: str = "") -> dict[str, str]:
    """The environment of a worker, with one thread for every library."""
    chosen = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    chosen.pop("EMBEDSTORE_FAILPOINT", None)
    if failpoint:
        chosen["EMBEDSTORE_FAILPOINT"] = failpoint
    return chosen


def run_worker(
    folder: Path,
    plan: list[Operation],
    *,
    settings: dict[str, int] | None = None,
    failpoint: str = "",
    kill_after: float | None = None,
) -> Outcome:
    """Let a worker carry out a plan; kill it ``kill_after`` seconds after it is ready, where that is given."""
    job = json.dumps({"folder": str(folder), "plan": plan, "settings": settings or {}, "breaks": []})
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment(failpoint),
        )  # fmt: skip
        limit = threading.Timer(MAX_SECONDS, process.kill)
        with process:
            assert process.stdin is not None and process.stdout is not None
            try:
                with suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(f"{job}\n")
                lines = [process.stdout.readline().strip()]
                started = time.monotonic()
                limit.start()
                if kill_after is not None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(kill_after)
                    process.kill()
                lines += process.stdout.read().splitlines()
                process.wait()
            finally:
                limit.cancel()
                process.kill()
            seconds = time.monotonic() - started
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    n_tried, n_acknowledged = (sum(line.startswith(word) for line in lines) for word in ("TRY ", "ACK "))
    return Outcome(n_tried, n_acknowledged, process.returncode, text, seconds)


def judge(session: Session, plan: list[Operation], outcome: Outcome, seed: int, next_number: int) -> None:
    """Hold the store against what the worker had acknowledged. Raises Violation.

    Every other time a copy is checked, so that the store itself meets the next kill as this one left it.
    """
    if outcome.status not in (0, -9):
        raise Violation(f"the worker failed with {outcome.status}: {outcome.errors[-1500:]}")
    if outcome.seconds >= MAX_SECONDS:
        raise Violation(f"the worker stopped at operation {outcome.n_acknowledged} of {len(plan)}")
    if outcome.status == 0 and outcome.n_acknowledged != len(plan):
        raise Violation(f"the worker ended well after {outcome.n_acknowledged} of {len(plan)} operations")
    _judge_backup(session, plan, outcome, seed)
    states = acceptable(plan, outcome.n_acknowledged, outcome.n_tried, session.state)
    if seed % 2 and session.folder.exists():
        with copied(session.folder) as copy:
            state, _ = check(copy, states, seed)
    else:
        _, state = check(session.folder, states, seed)
    session.settled(state, next_number)


def _judge_backup(session: Session, plan: list[Operation], outcome: Outcome, seed: int) -> None:
    """Where a backup was tried, the file must be the last that was acknowledged or the one in flight, and whole."""
    candidates, tried = [session.backed_up], False
    for place, operation in enumerate(plan[: outcome.n_tried]):
        if operation["verb"] == "backup":
            (state,) = acceptable(plan, place, place, session.state)
            candidates, tried = [state] if place < outcome.n_acknowledged else [*candidates, state], True
    archive = archive_of(session.folder)
    if tried and archive.exists():
        with fresh_folder(session.folder, "restored") as folder:
            embedstore.restore(archive, folder)
            found, _ = check(folder, [state for state in candidates if state is not None], seed)
        session.backed_up = found
    elif tried and None not in candidates:
        raise Violation(f"the backup {archive} is gone")


@contextmanager
def fresh_folder(folder: Path, word: str) -> Iterator[Path]:
    """A path beside a folder at which nothing is, and where nothing is left."""
    fresh = folder.with_name(f"{folder.name}-{word}")
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of a folder, beside it."""
    with fresh_folder(folder, "copy") as copy:
        shutil.copytree(folder, copy)
        yield copy


# ---- at random moments


class Campaign:
    """Rounds of one campaign, each on the store that the last one left, and what they found.

    A worker is given ``n_operations`` of up to ``largest`` records; fewer where it is killed at a failpoint. A context
    manager: stores that show a violation stay where they are, all others are removed.
    """

    def __init__(self, seed: int, *, n_operations: int = 30, largest: int = 300) -> None:
        self.rng = np.random.default_rng(seed)
        self._n_operations = n_operations
        self._largest = largest
        self.faults: list[str] = []
        self.n_rounds = 0
        self._root = Path(tempfile.mkdtemp(prefix="embedstore-kills-"))
        self._session: Session | None = None

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop_session()
        if not self.faults:
            shutil.rmtree(self._root)

    def session(self, *, fresh: bool = False) -> Session:
        """The store in hand, or a fresh one."""
        if self._session is None or self._session.worn or fresh:
            self._drop_session()
            self._session = Session(self._root / f"round-{self.n_rounds}" / "store")
            self._session.folder.parent.mkdir()
        return self._session

    def _drop_session(self) -> None:
        if self._session is not None:
            shutil.rmtree(self._session.folder.parent, ignore_errors=True)
            self._session = None

    def seed(self) -> int:
        """A new seed."""
        return int(self.rng.integers(1 << 31))

    def round(self, session: Session, *, failpoint: str = "", kill_after: float | None = None) -> Outcome:
        """Break a worker and judge the store; a violation is noted, the store kept, and a fresh one begun."""
        seed = self.seed()
        planner = Planner(seed, state=session.state, next_number=session.next_number, largest=self._largest)
        if failpoint:  # seldom reached ones need certain operations
            plan = [*planner.plan(self._n_operations // 3), *planner.building()]
            plan += [{"verb": "compact"}, {"verb": "backup"}, {"verb": "reopen"}]
        else:
            plan = planner.plan(self._n_operations)
        settings = {"CHECKPOINT_BYTES": 100_000} if failpoint else settings_of(seed)
        outcome = run_worker(session.folder, plan, settings=settings, failpoint=failpoint, kill_after=kill_after)
        done = f"{outcome.n_acknowledged}/{outcome.n_tried} operations, killed at {failpoint or kill_after}"
        self.judged(f"seed {seed}, {done}", lambda: judge(session, plan, outcome, seed, planner.next_number))
        return outcome

    def judged(self, name: str, judgement: Callable[[], None]) -> None:
        """Count a round, and note where its judgement finds a violation."""
        self.n_rounds += 1
        try:
            judgement()
        except (Violation, embedstore.EmbedstoreError) as violation:
            folder = "" if self._session is None else f", {self._session.folder}"
            self.faults.append(f"{name}{folder}: {type(violation).__name__}: {violation}")
            self._session = None  # the store is not removed

    def report(self, **more: Any) -> dict[str, Any]:
        """The figures."""
        return {"rounds": self.n_rounds, "violations": len(self.faults), "faults": self.faults[:MAX_FAULTS], **more}


def random_kills(campaign: Campaign, n_kills: int) -> int:
    """Kill workers at moments drawn uniformly from the time they take, until ``n_kills`` died of it.

    Returns the number of rounds that were over before.
    """
    expected = campaign.round(campaign.session()).seconds
    n_killed = n_survived = 0
    while n_killed < n_kills and len(campaign.faults) < MAX_FAULTS:
        outcome = campaign.round(campaign.session(), kill_after=float(campaign.rng.uniform(0, expected)))
        n_killed += outcome.killed
        if not outcome.killed:
            n_survived += 1
            expected = 0.7 * expected + 0.3 * outcome.seconds
    return n_survived


# ---- at failpoints


def kill_within_plan(campaign: Campaign, failpoint: str, times: int) -> bool:
    """Kill a worker at a failpoint that an ordinary plan reaches; whether it was reached."""
    session = campaign.session(fresh=failpoint.startswith("create.") or campaign.rng.random() < 0.2)
    return campaign.round(session, failpoint=f"{failpoint}:{times}").killed


def kill_restore(campaign: Campaign, failpoint: str, times: int) -> bool:
    """Kill a restore: then there is no store and restoring again works, or the store is complete."""
    session = filled(campaign)
    archive, into = archive_of(session.folder), session.folder.with_name("restored")
    with embedstore.open(session.folder) as store:
        store.backup(archive, overwrite=True)
    before = archive.read_bytes()
    plan = [{"verb": "restore", "archive": str(archive), "into": str(into)}]
    outcome = run_worker(session.folder, plan, failpoint=f"{failpoint}:{times}")

    def judgement() -> None:
        _refuse_failure(outcome)
        with embedstore.open(into) as store:
            there = store.exists()
        if not there:
            embedstore.restore(archive, into)
        check(into, [session.state], campaign.seed())
        _expect(archive.read_bytes() == before, "the archive was changed")
        _expect(not list(into.glob(".*")), f"files are left over: {list(into.glob('.*'))}")
        shutil.rmtree(into)

    campaign.judged(f"restore, {failpoint}", judgement)
    return outcome.killed


def kill_repair(campaign: Campaign, failpoint: str, times: int) -> bool:
    """Kill a repair: the source is as it was, and there is no target and repairing again works, or it is complete."""
    session = filled(campaign)
    into = session.folder.with_name("repaired")
    before = _contents(session.folder)
    plan = [{"verb": "repair", "source": str(session.folder), "into": str(into)}]
    outcome = run_worker(session.folder, plan, failpoint=f"{failpoint}:{times}")

    def judgement() -> None:
        _refuse_failure(outcome)
        _expect(_contents(session.folder) == before, "the source was changed")
        if not into.exists():
            embedstore.repair(session.folder, into)
        _expect(_contents(session.folder) == before, "the source was changed by the second repair")
        check(into, [session.state], campaign.seed())
        shutil.rmtree(into)
        embedstore.repair(session.folder, into)
        left = [path.name for path in into.parent.glob(".*")]
        _expect(not left, f"files are left over: {left}")
        shutil.rmtree(into)

    campaign.judged(f"repair, {failpoint}", judgement)
    return outcome.killed


def filled(campaign: Campaign) -> Session:
    """A store with some records, whose last writer was killed after it had written."""
    session = campaign.session()
    while not any(one.records for one in session.state.values()) and len(campaign.faults) < MAX_FAULTS:
        campaign.round(session, failpoint="close.checkpointed")
        session = campaign.session()
    return session


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refuse_failure(outcome: Outcome) -> None:
    _expect(outcome.status in (0, -9), f"the worker failed with {outcome.status}: {outcome.errors[-1500:]}")


def _expect(true: bool, what: str) -> None:
    if not true:
        raise Violation(what)


DEEPEST = {"write": 12, "checkpoint": 3, "close": 3, "cache": 4, "keywords": 3}
"""By prefix: a failpoint is armed for its first to this-th time; for its first alone where nothing is said."""
SCENARIOS: dict[str, Callable[[Campaign, str, int], bool]] = {
    **dict.fromkeys(
        ("create", "write", "checkpoint", "close", "cache", "keywords", "compact", "backup"), kill_within_plan
    ),
    "restore": kill_restore,
    "repair": kill_repair,
}  # fmt: skip
"""By a failpoint's prefix, what kills at it."""
ELSEWHERE = {"migrate": "faults.migrations"}
"""Prefixes that another module kills at."""


def failpoint_kills(campaign: Campaign, n_each: int, names: Sequence[str] = NAMES) -> dict[str, int]:
    """Kill at every failpoint ``n_each`` times; how often each was reached. One that was not is a violation."""
    reached = {}
    for failpoint in names:
        prefix = failpoint.partition(".")[0]
        if prefix in ELSEWHERE:
            continue
        reached[failpoint] = 0
        for attempt in range(4 * n_each):
            deepest = DEEPEST.get(prefix, 1) if attempt < 2 * n_each else 1
            times = int(campaign.rng.integers(1, deepest + 1))
            reached[failpoint] += SCENARIOS[prefix](campaign, failpoint, times)
            if reached[failpoint] == n_each or len(campaign.faults) >= MAX_FAULTS:
                break
        if reached[failpoint] < n_each:
            campaign.faults.append(f"{failpoint} was reached {reached[failpoint]} times, not {n_each}")
    return reached


# ---- the long form


def random_campaign(seed: int, n_kills: int = 1000) -> dict[str, Any]:
    """Kills at random moments."""
    with Campaign(seed) as campaign:
        n_survived = random_kills(campaign, n_kills)
        return campaign.report(kills=campaign.n_rounds - n_survived - 1, survived=n_survived)


def failpoint_campaign(seed: int, n_each: int = 5) -> dict[str, Any]:
    """Kills at every failpoint."""
    with Campaign(seed) as campaign:
        reached = failpoint_kills(campaign, n_each)
        return campaign.report(failpoints=len(reached), reached=reached)


CAMPAIGNS = {"kills at random": random_campaign, "kills at failpoints": failpoint_campaign}
QUICK_CAMPAIGNS = {
    "kills at random": partial(random_campaign, n_kills=20),
    "kills at failpoints": partial(failpoint_campaign, n_each=1),
}
