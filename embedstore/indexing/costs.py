"""What a search of a space costs, measured on this machine when its index is built.

The planner compares three ways: a scan of all rows, a look at the allowed rows, and the index. Only ratios decide.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedstore.indexing import kernels
from embedstore.indexing.faiss_index import FaissIndex, Settings
from embedstore.indexing.one_query import OneQuery
from embedstore.indexing.recipes import Family
from embedstore.indexing.selection import Selection
from embedstore.model import FloatMatrix, Metric

_N_QUERIES = 24
_N_SCANNED = 100_000  # more than the processor keeps at hand
_N_GATHERED = 2_000
_ROUNDS = 5
_MARGIN = 0.6
_HITS_POWER = 0.46
NEVER = 1e15
"""Nanoseconds that nobody would wait for."""
_ROWS_BEHIND = 4
"""Rows of a run that come late, until the processor reads ahead (measured with 60,000 x 384, runs of 1 to 512)."""


@dataclass(frozen=True, slots=True)
class ScanCosts:
    """Nanoseconds of one core for each row: one after the other, and picked out of all."""

    scan_row: float
    gather_row: float

    def of_rows(self, selection: Selection) -> float:
        """What it takes to compare the rows of a selection. A run of neighbours is soon read as a scan reads them."""
        far = selection.n
        if far * self.gather_row > selection.usable.size * self.scan_row:  # else it is cheap enough, however they lie
            far = min(far, _ROWS_BEHIND * selection.n_runs)
        return selection.n * self.scan_row + far * (self.gather_row - self.scan_row)

    @staticmethod
    def guessed(dim: int) -> ScanCosts:
        """Where nothing was measured: after the timings in docs/decisions/0005 (60,000 x 384)."""
        return ScanCosts(5 + 0.15 * dim, 20 + 0.45 * dim)

    @staticmethod
    def measured(matrix: FloatMatrix, metric: Metric) -> ScanCosts:
        """From timings over the rows of a space."""
        some = matrix[:_N_SCANNED]
        random = np.random.default_rng(0)
        n_picked = min(_N_GATHERED, len(matrix))
        # Other rows each time: those of the last are still at hand.
        picks = [np.sort(random.integers(0, len(matrix), n_picked)) for _ in range(_ROUNDS + 1)]
        euclidean = metric is Metric.EUCLIDEAN
        scan = kernels.squared_distances if euclidean else kernels.inner_products
        gather = kernels.squared_distances_at if euclidean else kernels.inner_products_at
        return ScanCosts(
            _nanoseconds(lambda: scan(some, matrix[0])) / len(some),
            _nanoseconds(lambda: gather(matrix, picks.pop(), matrix[0])) / n_picked,
        )


@dataclass(frozen=True, slots=True)
class IndexCosts:
    """Nanoseconds of a search by an index: ``fixed``, and ``unit`` for each unit of its knob.

    ``filtered`` is how many times as long it takes under a filter that half of the rows pass.
    """

    fixed: float
    unit: float
    filtered: float
    scans: ScanCosts

    def of(self, knob: float, *, filtered: bool) -> float:
        """What a search takes."""
        return (self.fixed + self.unit * knob) * (self.filtered if filtered else 1)

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it: whole nanoseconds, hundredths for what is small."""
        flat = asdict(self)
        flat |= flat.pop("scans")
        return {name: round(100 * value) for name, value in flat.items()}

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> IndexCosts:
        """What ``to_json`` wrote; KeyError or TypeError for anything else."""
        values = {name: fields[name] / 100 for name in ("fixed", "unit", "filtered", "scan_row", "gather_row")}
        return IndexCosts(
            values["fixed"], values["unit"], values["filtered"], ScanCosts(values["scan_row"], values["gather_row"])
        )


def measured_costs(index: FaissIndex, matrix: FloatMatrix, metric: Metric, settings: Settings) -> IndexCosts:
    """What searches of a built index take, over the prepared rows (n, dim) that it was built from."""
    random = np.random.default_rng(0)
    half = Selection(random.random(len(matrix)) < 0.5)
    k = 10 * max(index.recipe.rescore, 1)

    def took(chosen: Settings, selection: Selection | None) -> float:
        samples = []
        asked = OneQuery(index, k, chosen, selection)
        for query in matrix[random.integers(0, len(matrix), _N_QUERIES)]:  # new ones: what was asked is still at hand
            started = time.perf_counter_ns()
            asked.nearest(query)
            samples.append(time.perf_counter_ns() - started)
        return float(statistics.median(samples))

    knob = index.recipe.knob
    took(settings, None)  # what is loaded at first does not count
    plain = took(settings, None)
    filtered = max(took(settings, half) / plain, 0.1)
    scans = ScanCosts.measured(matrix, metric)
    if knob is None:
        return IndexCosts(plain, 0.0, filtered, scans)
    low, high = settings[knob], 4 * settings[knob]
    unit = max((took({**settings, knob: high}, None) - plain) / (high - low), 0.0)
    return IndexCosts(max(plain - unit * low, 1000.0), unit, filtered, scans)


def lists_for_hits(nprobe: int, k: int, for_k: int) -> int:
    """How many lists to look into for ``k`` hits, where ``nprobe`` are enough for ``for_k``.

    Of 60,000 glosses of WordNet, a recall of 0.95 took 22 lists for 10 hits and 43, 58, 84 and 136 for 50, 100, 200 and
    500; one of 0.9 or 0.98 took such multiples too.
    """
    return nprobe if k <= for_k else math.ceil(nprobe * math.pow(k / for_k, _HITS_POWER))


def raised(settings: Settings, family: Family, fraction: float, k: int) -> int:
    """The knob for a filter that a fraction of the rows pass: further away, so more must be looked at."""
    if family is Family.GRAPH:  # what is not allowed is walked over, but not counted
        return int(max(settings["efSearch"], 2 * k) / max(fraction, 1e-9))
    # Lists: those that hold the nearest allowed vectors are farther, but each of them is scanned whole.
    return int(math.ceil(settings["nprobe"] * math.pow(max(fraction, 1e-9), -0.75) * margin(fraction)))


def margin(fraction: float) -> float:
    """How many times as much is looked at under a filter, beyond what its being a filter makes needed.

    Whoever asks with a filter sees what is missing more easily: the best of few. It grows with what the filter leaves
    out, up to half of the rows.
    """
    return 1 + _MARGIN * min(1.0, 2 * (1 - fraction))


def _nanoseconds(call: Callable[[], object]) -> float:
    call()
    samples = []
    for _ in range(_ROUNDS):
        started = time.perf_counter_ns()
        call()
        samples.append(time.perf_counter_ns() - started)
    return float(statistics.median(samples))
