"""How many cores this process may keep busy."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path


@cache
def usable_cores() -> int:
    """How many cores this process may keep busy."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    topology = Path("/sys/devices/system/cpu")
    siblings = {cpu: _text(topology / f"cpu{cpu}/topology/thread_siblings_list") for cpu in allowed}
    return count_cores(allowed, siblings, read_quota(_text(Path("/sys/fs/cgroup/cpu.max"))))


def count_cores(allowed: Iterable[int], siblings: Mapping[int, str], quota: float | None) -> int:
    """Cores among the ``allowed`` processors, at most the ``quota``, at least one.

    siblings: of each processor, the processors on its core, as Linux writes them; empty where that is not known. Two
    threads on one core share its units for products, so a second one adds time and no speed.
    """
    cores = {siblings.get(cpu) or str(cpu) for cpu in allowed}
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def read_quota(text: str) -> float | None:
    """How many processors a control group may use by its ``cpu.max``; None where it says nothing or no limit."""
    words = text.split()
    try:
        return int(words[0]) / int(words[1])
    except (IndexError, ValueError, ZeroDivisionError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
