"""How numbers, and errors of other libraries, are told in sentences."""

from __future__ import annotations

_SMALL = 1e-3
"""Below, decimals would leave little of a number."""


def counted(n: int, noun: str) -> str:
    """A number of things: ``1 vector``, ``2,000 vectors``. The noun takes an s where there is not one."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def told_score(score: float) -> float:
    """A score without digits that single precision does not tell: seven decimals, of a small one seven digits."""
    return round(score, 7) if abs(score) >= _SMALL else float(f"{score:.7g}")


def short_score(score: float) -> str:
    """A score for people to read: four decimals, of a small one three digits."""
    return f"{score:.4f}" if abs(score) >= _SMALL or score == 0 else f"{score:.3g}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
