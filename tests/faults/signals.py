"""SIGINT and SIGTERM in the middle of an ingest: a clean end, and the same command run again makes up for it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import embedstore

TESTS = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM)
N_ROWS = 4000
INPUTS: dict[str, list[str]] = {
    "vectors of JSON lines": ["rows.jsonl", "--vector", "v", "--text", "text"],
    "vectors of Parquet": ["rows.parquet", "--vector", "v", "--text", "text"],
    "texts": ["rows.jsonl", "--encoder", "letters", "--metadata", "n"],
    "pieces of texts": ["rows.jsonl", "--encoder", "letters", "--metadata", "n", "--chunk", "8"],
}
"""By name, the arguments of an ingest."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str
    finished: bool
    """Whether it was over before the signal was sent."""


def write_inputs(folder: Path) -> None:
    """Write rows of text, a vector and a number, as JSON lines and as Parquet."""
    import pyarrow
    import pyarrow.parquet

    random = Random(0)
    rows = [
        {
            "key": f"k{i}", "text": " ".join(random.choices(["bad", "cab", "deed", "bee", "ace", "zoo"], k=20)),
            "v": [random.random() for _ in range(8)], "n": i,
        }
        for i in range(N_ROWS)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=500)


def start(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The command line as a process of its own, its store in ``folder``."""
    path = f"{TESTS.parent}{os.pathsep}{TESTS / 'plugin'}"
    environment = {**os.environ, "PYTHONPATH": path, "EMBEDSTORE_STORE": str(folder / "store")}
    return subprocess.Popen(
        [sys.executable, "-m", "embedstore", "-q", *arguments], cwd=folder, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def answers_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the process has set a handler for SIGTERM, which Python itself does not."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return False
    caught = next((line for line in lines if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def interrupt(process: subprocess.Popen[str], number: int, delay: float) -> Ended:
    """Send a signal, ``delay`` seconds after the process has begun to answer them, and wait for its end."""
    while process.poll() is None and not answers_signals(process):
        time.sleep(0.0005)
    time.sleep(delay)
    finished = process.poll() is not None
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    return Ended(process.returncode, output, errors, finished)


def ingest(folder: Path, name: str) -> list[str]:
    """The command that ingests the input called ``name``."""
    return ["ingest", "c", *INPUTS[name], "--format", "json"]


def faults_of(ended: Ended, number: int, folder: Path) -> list[str]:
    """What is not clean about an end."""
    code, word = (130, "interrupted") if number == signal.SIGINT else (143, "terminated")
    line = f"embedstore: error: {word}; what was committed stays, run the same command again to go on\n"
    faults = []
    if ended.code == -number and ended.output.endswith("}\n") and ended.errors == "":
        return []  # in the last moment, when the interpreter has given up its handlers
    if ended.code not in (0, code) or (ended.finished and ended.code != 0):
        faults.append(f"the exit code is {ended.code}: {ended.errors[-1000:]}")
    if ended.errors != ("" if ended.code == 0 else line):
        faults.append(f"code {ended.code}, and it says {ended.errors[-1000:]!r}")
    if ended.output and not ended.output.endswith("}\n"):
        faults.append(f"half a result: {ended.output!r}")
    left = [str(one) for one in folder.rglob("*") if one.suffix in (".tmp", ".partial") or "journal" in one.name]
    faults += [f"{one} is left over" for one in left]
    for lock in folder.rglob("*.lock"):
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                faults.append(f"{lock} is still held")
    return faults


def state(folder: Path) -> dict[str, Any]:
    """Digests and counts of what was ingested, and how many different keys."""
    with embedstore.open(folder / "store") as store:
        if not store.exists() or not store.collections():
            return {}
        collection = store.collection("c")
        stats = collection.stats()
        records = list(collection.records())
        return {
            "digest": stats["digest"], "spaces": [one["digest"] for one in stats["spaces"]],
            "records": len(records), "keys": len({record.key for record in records}), "fields": stats["fields"],
        }  # fmt: skip


def reference(folder: Path, name: str) -> tuple[dict[str, Any], float]:
    """What an ingest without interruption makes, and how many seconds it took after it began to answer signals."""
    process = start(folder, ingest(folder, name))
    while process.poll() is None and not answers_signals(process):
        time.sleep(0.0005)
    began = time.monotonic()
    _, errors = process.communicate()
    seconds = time.monotonic() - began
    assert process.returncode == 0, errors
    found = state(folder)
    shutil.rmtree(folder / "store")
    return found, seconds


def round_of(folder: Path, name: str, wanted: dict[str, Any], signals: Sequence[tuple[int, float]]) -> list[str]:
    """Interrupt an ingest once for each of ``signals`` (number, seconds), then let it finish; what is wrong."""
    shutil.rmtree(folder / "store", ignore_errors=True)
    faults = []
    n_before = 0
    for number, delay in signals:
        ended = interrupt(start(folder, ingest(folder, name)), number, delay)
        faults += faults_of(ended, number, folder)
        n_records = state(folder).get("records", 0)
        if n_records < n_before:
            faults.append(f"{n_before} records became {n_records}")
        n_before = n_records
    process = start(folder, ingest(folder, name))
    output, errors = process.communicate(timeout=60)
    if process.returncode != 0 or errors:
        faults.append(f"the same command again ended with {process.returncode}: {errors[-1000:]}")
    elif json.loads(output)["records"] != wanted["records"]:
        faults.append(f"the same command again counts {output}")
    if state(folder) != wanted:
        faults.append(f"{name}: {state(folder)} instead of {wanted}")
    return [f"{name}, {signals}: {fault}" for fault in faults]


def at_the_start(folder: Path, number: int, delay: float) -> str | None:
    """Send a signal ``delay`` seconds after a command was started; what is not clean about its end.

    Before the command's own code runs, Python answers SIGINT with a traceback; that is not counted.
    """
    process = start(folder, ["collections"])
    time.sleep(delay)
    ours = answers_signals(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number == signal.SIGINT and not ours:
        return None
    allowed = {2: "no store", 128 + number: "what was committed stays", -number: ""}
    if process.returncode not in allowed:
        return f"signal {number} after {delay:.4f} s: code {process.returncode}: {errors[-500:]}"
    word = allowed[process.returncode]
    if word not in errors or "Traceback" in errors or errors.count("\n") > 1:
        return f"signal {number} after {delay:.4f} s: {errors[-1000:]!r}"
    return None


def campaign(seed: int, n_signals: int = 100) -> dict[str, Any]:
    """Interrupt ingests at ``n_signals`` random moments, and as many commands while they start."""
    random = Random(seed)
    faults: list[str] = []
    n_sent = 0
    with tempfile.TemporaryDirectory(prefix="embedstore-signals-") as name:
        folder = Path(name)
        write_inputs(folder)
        references = {one: reference(folder, one) for one in INPUTS}
        while n_sent < n_signals:
            one = random.choice(list(INPUTS))
            wanted, seconds = references[one]
            signals = [
                (random.choice(SIGNALS), random.uniform(0, seconds * 1.05)) for _ in range(random.choice([1, 1, 2, 3]))
            ]
            faults += round_of(folder, one, wanted, signals)
            n_sent += len(signals)
        shutil.rmtree(folder / "store", ignore_errors=True)
        for _ in range(n_signals):
            fault = at_the_start(folder, random.choice(SIGNALS), random.uniform(0, 0.25))
            faults += [] if fault is None else [fault]
    return {"rounds": n_sent + n_signals, "violations": len(faults), "faults": faults[:20]}


CAMPAIGNS = {"signals": campaign}
QUICK_CAMPAIGNS = {"signals": lambda seed: campaign(seed, n_signals=8)}
