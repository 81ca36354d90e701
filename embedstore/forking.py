"""Tells objects in a forked process that they are now the child's, so that they let go of what is the parent's.

Only the thread that forked goes on in the child. A lock that another thread held stays locked there for ever; file locks
and connections are shared with the parent, who needs them.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol


class Forked(Protocol):
    """What has locks, connections or threads of its own."""

    def forget_parent(self) -> None:
        """Make locks anew, and give up the parent's connections without closing them."""


_told: weakref.WeakSet[Forked] = weakref.WeakSet()
_abandoned: list[Any] = []


def tell_forked(one: Forked) -> None:
    """Call ``forget_parent`` in every process that is forked from now on, as long as ``one`` exists."""
    _told.add(one)


def abandon(*given: Any) -> None:
    """Keep what belongs to the parent, unused, until the child ends: closing it would take it from the parent."""
    _abandoned.extend(one for one in given if one is not None)


def _forget_parent() -> None:
    for one in list(_told):
        one.forget_parent()


os.register_at_fork(after_in_child=_forget_parent)
