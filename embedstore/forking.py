"""Keeps stores usable in a forked process, and the parent's store untouched by it.

Only the thread that forked goes on in the child. A lock that another thread held stays locked there for ever; file
locks are the parent's, and SQLite in the child believes to have them too. So a fork waits until no other thread reads a
snapshot, is inside SQLite or in the middle of an import, whose own locks nobody could free; connections that are not
in use are closed before it, in the parent, and in the child every object makes its locks and connections anew.
"""

from __future__ import annotations

import logging  # noqa: F401 - it takes its lock before a fork, which must be after the gate is closed: see the end
import os
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, Generic, Protocol, TypeVar

_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.0005


class Forked(Protocol):
    """What has locks, connections or threads of its own.

    It may have ``before_fork`` too, which closes connections, and is called where no thread is in a block of the gate.
    """

    def forget_parent(self) -> None:
        """Make locks anew, and give up the parent's connections without closing them."""


_in_child: list[Callable[[], None]] = []
_told: weakref.WeakSet[Forked] = weakref.WeakSet()
_abandoned: list[Any] = []


def tell_forked(one: Forked) -> None:
    """Call ``forget_parent`` in every process that is forked from now on, as long as ``one`` exists."""
    _told.add(one)


def at_forks(*, in_child: Callable[[], None]) -> None:
    """Call a function in every process that is forked from now on, before anything else is told."""
    _in_child.append(in_child)


def abandon(*given: Any) -> None:
    """Keep what belongs to the parent, unused, until the child ends: closing it would take it from the parent."""
    _abandoned.extend(one for one in given if one is not None)


class _Gate:
    """A block that no other thread forks in the middle of; may be nested. Costs a fraction of a microsecond."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}  # by thread; each thread changes only its own entry
        self._blocks: dict[int, int] = {}  # by block that may end in another thread, the thread that began it
        self._open = threading.Event()
        self._open.set()
        self._closing = threading.Lock()
        self._closer: int | None = None  # the thread that is forking, which closes connections

    def __enter__(self) -> None:
        me = get_ident()
        depth = self._depths.get(me, 0)
        self._depths[me] = depth + 1
        # The entry comes before the question, as the forking thread closes the gate before it looks at the entries.
        while depth == 0 and not self._open.is_set() and not self._is_inside(me):
            del self._depths[me]
            self._open.wait()
            self._depths[me] = 1

    def __exit__(self, *_: object) -> None:
        me = get_ident()
        depth = self._depths[me] - 1
        if depth:
            self._depths[me] = depth
        else:
            del self._depths[me]

    def begin(self, block: object) -> None:
        """Enter a block that ``end`` leaves, perhaps in another thread, as a generator's may."""
        me = get_ident()
        within = me in self._depths or self._is_inside(me)  # who is in already is waited for
        self._blocks[id(block)] = me
        while not within and not self._open.is_set():
            del self._blocks[id(block)]
            self._open.wait()
            self._blocks[id(block)] = me

    def end(self, block: object) -> None:
        """Leave a block that ``begin`` entered."""
        self._blocks.pop(id(block), None)

    def close(self) -> None:
        """Wait until no other thread is in a block, for some seconds at most, and let none begin one."""
        self._closing.acquire()
        self._closer = get_ident()
        self._open.clear()
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while self._others() and time.monotonic() < give_up:
            time.sleep(_POLL_SECONDS)

    def is_quiet(self) -> bool:
        """Whether no thread at all is in a block, so that what they share may be closed."""
        return not self._depths and not self._blocks

    def _is_inside(self, me: int) -> bool:
        """Whether a thread is the one that forks, or in a block that ``begin`` entered, so that it must not wait."""
        return self._closer == me or me in self._blocks.values()

    def _others(self) -> bool:
        """Whether another thread is in a block."""
        me = get_ident()
        return any(thread != me for thread in (*self._depths, *self._blocks.values()))

    def reopen(self) -> None:
        """Let threads go on, in the parent."""
        self._closer = None
        self._open.set()
        self._closing.release()

    def make_anew(self) -> None:
        """Forget the parent's threads, in the child."""
        me = get_ident()
        mine = self._depths.get(me, 0)
        blocks = {block: thread for block, thread in self._blocks.items() if thread == me}
        self.__init__()  # type: ignore[misc]
        if mine:
            self._depths[me] = mine
        self._blocks = blocks


inside_sqlite = _Gate()
"""``with inside_sqlite:`` stands around calls of SQLite."""
not_forking = inside_sqlite
"""``with not_forking:`` stands around what else a fork in the middle would leave locked in the child: long imports."""


Made = TypeVar("Made")


class once(Generic[Made]):  # noqa: N801 - used as a decorator, like ``property``
    """A property that is computed when it is first asked for, and kept; perhaps twice, by threads that ask at once.

    Unlike ``functools.cached_property`` before Python 3.12 it takes no lock, which a fork could leave held for ever.
    """

    def __init__(self, compute: Callable[[Any], Made]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: Any, owner: type | None = None) -> Made:
        made = self._compute(one)
        one.__dict__[self._name] = made  # found there from now on
        return made


def _before_fork() -> None:
    inside_sqlite.close()
    if inside_sqlite.is_quiet():
        for one in list(_told):
            prepare = getattr(one, "before_fork", None)
            if prepare is not None:
                prepare()


def _forget_parent() -> None:
    inside_sqlite.make_anew()
    for call in _in_child:
        call()
    for one in list(_told):
        one.forget_parent()


# What is registered last is called first: a thread in the gate may need logging's lock to leave it.
os.register_at_fork(
    before=_before_fork, after_in_parent=inside_sqlite.reopen, after_in_child=_forget_parent
)
