"""Shows how far an ingest has come: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from embedstore.ingesting.options import Progress
from embedstore.model import WriteReport

if TYPE_CHECKING:
    from rich.progress import TaskID

_SECONDS_BETWEEN_LINES = 5.0


class ProgressLine:
    """Takes progress and passes it on; does nothing where nobody asked."""

    def __init__(self, show: Callable[[Progress, WriteReport | None], None], close: Callable[[], None]) -> None:
        self._show = show
        self._close = close

    @staticmethod
    def of(asked: bool | Callable[[Progress], None]) -> ProgressLine:
        """What the option ``progress`` asks for."""
        if callable(asked):
            return ProgressLine(lambda progress, _: asked(progress), lambda: None)
        if not asked:
            return ProgressLine(lambda progress, report: None, lambda: None)
        if sys.stderr.isatty():
            bar = _Bar()
            return ProgressLine(bar.show, bar.close)
        return ProgressLine(_Lines().show, lambda: None)

    def show(self, progress: Progress, report: WriteReport | None = None) -> None:
        """Tell how far it is."""
        self._show(progress, report)

    def close(self) -> None:
        """Clear the bar away."""
        self._close()


class _Lines:
    """A plain line, a few seconds apart."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._last = self._started

    def show(self, progress: Progress, report: WriteReport | None) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = progress.n_rows / max(now - self._started, 1e-9)
        share = f", {progress.position / progress.total:.0%}" if progress.total else ""
        print(
            f"{progress.phase} {progress.source}: {progress.n_rows:,} rows{share}, {rate:,.0f} rows/s",
            file=sys.stderr, flush=True,
        )  # fmt: skip


class _Bar:
    """A bar with rate and time left, by rich."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar: Any = Bar(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rows]:,} rows"), TextColumn("{task.fields[rate]:,.0f}/s"), TimeRemainingColumn(),
            console=Console(stderr=True), transient=True,
        )  # fmt: skip
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._started: dict[tuple[str, str], float] = {}
        self._bar.start()

    def show(self, progress: Progress, report: WriteReport | None) -> None:
        name = (progress.phase, progress.source)
        if name not in self._tasks:
            described = f"{progress.phase} {progress.source}".replace("[", "\\[")
            self._tasks[name] = self._bar.add_task(described, total=progress.total, rows=0, rate=0)
            self._started[name] = time.monotonic()
        rate = progress.n_rows / max(time.monotonic() - self._started[name], 1e-3)
        self._bar.update(self._tasks[name], completed=progress.position, rows=progress.n_rows, rate=rate)

    def close(self) -> None:
        self._bar.stop()
