"""Kills of a process that works on a store, at random moments and at every failpoint; the store is held to the oracle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.failpoints import NAMES
from faults.oracle import Violation, acceptable, check
from faults.plans import Operation, Planner, State

WORKER = Path(__file__).with_name("worker.py")
CHECKPOINT_BYTES = 300_000
"""The worker copies its log into the database past this, so that every round has some checkpoints."""
N_OPERATIONS = 30
_MAX_RECORDS = 1500
_MAX_SECONDS = 120.0


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
    next_number: int = 0
    n_rounds: int = 0

    def planner(self, seed: int) -> Planner:
        """What draws the next operations."""
        return Planner(seed, state=self.state, next_number=self.next_number)

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
    folder: Path, plan: list[Operation], *, failpoint: str = "", kill_after: float | None = None
) -> Outcome:
    """Let a worker carry out a plan; kill it ``kill_after`` seconds after it is ready, where that is given."""
    job = json.dumps({"folder": str(folder), "plan": plan, "checkpoint_bytes": CHECKPOINT_BYTES})
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, str(WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment(failpoint),
        )  # fmt: skip
        with process:
            assert process.stdin is not None and process.stdout is not None
            try:
                with suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(f"{job}\n")
                lines = [process.stdout.readline().strip()]
                started = time.monotonic()
                if kill_after is not None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(kill_after)
                    process.kill()
                lines += process.stdout.read().splitlines()
                process.wait(_MAX_SECONDS)
            finally:
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
    if outcome.status == 0 and outcome.n_acknowledged != len(plan):
        raise Violation(f"the worker ended well after {outcome.n_acknowledged} of {len(plan)} operations")
    states = acceptable(plan, outcome.n_acknowledged, outcome.n_tried, session.state)
    if seed % 2 and session.folder.exists():
        with copied(session.folder) as copy:
            state, _ = check(copy, states, seed)
    else:
        _, state = check(session.folder, states, seed)
    session.settled(state, next_number)


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """A copy of a folder, beside it."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


# ---- at random moments


class Campaign:
    """Rounds of one campaign, each on the store that the last one left, and what they found."""

    def __init__(self, seed: int, root: Path) -> None:
        self.rng = np.random.default_rng(seed)
        self.faults: list[str] = []
        self.n_rounds = 0
        self._root = root
        self._n_stores = 0
        self._session: Session | None = None

    def session(self, *, fresh: bool = False) -> Session:
        """The store in hand, or a fresh one."""
        if self._session is None or self._session.worn or fresh:
            if self._session is not None:
                shutil.rmtree(self._session.folder, ignore_errors=True)
            self._n_stores += 1
            self._session = Session(self._root / f"store-{self._n_stores}")
        return self._session

    def round(self, session: Session, *, failpoint: str = "", kill_after: float | None = None) -> Outcome:
        """Break a worker and judge the store; a violation is noted, the store kept, and a fresh one begun."""
        seed = int(self.rng.integers(1 << 31))
        planner = session.planner(seed)
        plan = planner.plan(N_OPERATIONS)
        outcome = run_worker(session.folder, plan, failpoint=failpoint, kill_after=kill_after)
        self.n_rounds += 1
        try:
            judge(session, plan, outcome, seed, planner.next_number)
        except Violation as violation:
            how = failpoint or f"{outcome.seconds:.3f} s"
            done = f"{outcome.n_acknowledged} of {outcome.n_tried} operations acknowledged"
            self.fail(f"seed {seed}, {how}, {done}, {session.folder}: {violation}")
        return outcome

    def fail(self, what: str) -> None:
        """Note a violation. The store in hand is not removed."""
        self.faults.append(what)
        self._session = None

    def report(self, **more: Any) -> dict[str, Any]:
        """The figures."""
        return {"rounds": self.n_rounds, "violations": len(self.faults), "faults": self.faults[:20], **more}


def random_kills(campaign: Campaign, n_kills: int) -> int:
    """Kill workers at moments drawn uniformly from the time they take, until ``n_kills`` died of it; the number of rounds
    that they survived.
    """
    expected = campaign.round(campaign.session()).seconds
    n_killed = n_survived = 0
    while n_killed < n_kills and len(campaign.faults) < 20:
        outcome = campaign.round(campaign.session(), kill_after=float(campaign.rng.uniform(0, expected)))
        n_killed += outcome.killed
        if not outcome.killed:
            n_survived += 1
            expected = 0.7 * expected + 0.3 * outcome.seconds
    return n_survived


# ---- at failpoints

DEEPEST = {"create": 1, "write": 12, "checkpoint": 3, "close": 3, "cache": 4, "keywords": 4}
"""By prefix: a failpoint is armed for its first to this-th time."""


def kill_within_plan(campaign: Campaign, failpoint: str, times: int) -> bool:
    """Kill a worker at a failpoint that an ordinary plan reaches; whether it was reached."""
    session = campaign.session(fresh=failpoint.startswith("create.") or campaign.rng.random() < 0.2)
    return campaign.round(session, failpoint=f"{failpoint}:{times}").killed


SCENARIOS: dict[str, Callable[[Campaign, str, int], bool]] = dict.fromkeys(DEEPEST, kill_within_plan)
"""By a failpoint's prefix, what kills at it. ``migrate`` is missing: ``faults.migrations`` kills there."""


def failpoint_kills(campaign: Campaign, n_each: int) -> dict[str, int]:
    """Kill at every failpoint ``n_each`` times; how often each was reached."""
    reached = {}
    for failpoint in NAMES:
        prefix = failpoint.partition(".")[0]
        if prefix not in SCENARIOS:
            continue
        reached[failpoint] = 0
        for attempt in range(4 * n_each):
            deepest = DEEPEST.get(prefix, 1) if attempt < 2 * n_each else 1
            times = int(campaign.rng.integers(1, deepest + 1))
            reached[failpoint] += SCENARIOS[prefix](campaign, failpoint, times)
            if reached[failpoint] == n_each or len(campaign.faults) >= 20:
                break
        if reached[failpoint] < n_each:
            campaign.faults.append(f"{failpoint} was reached {reached[failpoint]} times, not {n_each}")
    return reached


# ---- the long form


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for stores, removed where nothing is left in it that shows a violation."""
    folder = Path(tempfile.mkdtemp(prefix="embedstore-kills-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def random_campaign(seed: int, n_kills: int = 1000) -> dict[str, Any]:
    """Kills at random moments."""
    with scratch() as root:
        campaign = Campaign(seed, root)
        n_survived = random_kills(campaign, n_kills)
        return campaign.report(kills=n_kills, survived=n_survived)


def failpoint_campaign(seed: int, n_each: int = 5) -> dict[str, Any]:
    """Kills at every failpoint."""
    with scratch() as root:
        campaign = Campaign(seed, root)
        reached = failpoint_kills(campaign, n_each)
        return campaign.report(failpoints=len(reached), reached=reached)


CAMPAIGNS = {"kills at random": random_campaign, "kills at failpoints": failpoint_campaign}
