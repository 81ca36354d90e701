"""Work on the next window while the caller is busy with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def one_ahead(
    windows: Iterable[Sequence[Part]], work: Callable[[Part], Result], n_threads: int
) -> Iterator[list[Result]]:
    """The results of each window's parts, in order.

    While the caller holds one window's, ``n_threads`` make those of the next, and of no further one. An error of
    ``work`` is raised where its window is due.
    """
    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="embedstore-ahead")
    try:
        due: list[Future[Result]] | None = None
        for window in windows:
            begun = [pool.submit(work, part) for part in window]
            if due is not None:
                yield [future.result() for future in due]
            due = begun
        if due is not None:
            yield [future.result() for future in due]
    finally:  # also where the caller gives up half-way
        pool.shutdown(wait=True, cancel_futures=True)
