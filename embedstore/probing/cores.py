"""Fits many small models side by side, each on one core."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from embedstore.cores import usable_cores
from embedstore.encoders.threads import WhileUsed

Given = TypeVar("Given")
Made = TypeVar("Made")


def _limited() -> Any:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


_products_on_one = WhileUsed(_limited, lambda limits: limits.restore_original_limits())


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
