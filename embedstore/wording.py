"""How numbers, and errors of other libraries, are told in sentences."""

from __future__ import annotations


def counted(n: int, noun: str) -> str:
    """A number of things: ``1 vector``, ``2,000 vectors``. The noun takes an s where there is not one."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
