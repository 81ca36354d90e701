"""Fits many small models side by side, each on one core."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from embedstore.encoders.threads import usable_cores

Given = TypeVar("Given")
Made = TypeVar("Made")


class _ProductThreads:
    """Gives products back as many threads as they had, once the last of those who run them on one is done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None

    def __enter__(self) -> None:
        from threadpoolctl import threadpool_limits

        with self._lock:
            if not self._users:
                self._limits = threadpool_limits(1)
            self._users += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._limits.restore_original_limits()


_products_on_one = _ProductThreads()


def side_by_side(work: Callable[[Given], Made], given: Iterable[Given]) -> list[Made]:
    """What ``work`` makes of each, in order.

    Products run on one thread each meanwhile: of a probe's size, they are up to forty times slower where threads wait
    for one another.
    """
    pool = ThreadPoolExecutor(usable_cores(), thread_name_prefix="embedstore-probe")
    try:
        with _products_on_one:
            return list(pool.map(work, given))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
