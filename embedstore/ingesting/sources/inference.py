"""Which type a column of text cells has, told from all of its cells and nothing less."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from embedstore.errors import InvalidInput

EXACT_INTEGER = 2**53
"""Up to here every integer is a float of its own."""

_SHORT_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}").fullmatch
_SHORT_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,300})?").fullmatch
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}").fullmatch
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?").fullmatch
_LOOSE_INTEGER = re.compile(r"[+-]?[0-9]{1,40}").fullmatch
_LOOSE_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
_BOOLEANS = {"true": True, "false": False}


class ColumnType(enum.Enum):
    """The type of a column's cells."""

    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"


def column_type(given: str) -> ColumnType:
    """The type called ``given``; InvalidInput where there is none."""
    try:
        return ColumnType(given)
    except ValueError:
        names = ", ".join(kind.value for kind in ColumnType)
        raise InvalidInput(f"there is no column type {given!r}; the types are {names}") from None


class ColumnGuess:
    """Narrows the type of one column down, cell by cell.

    Integers are canonical (no plus, no leading zero) and fit in 64 bits. Numbers are finite decimals;
    integers among them become floats only where that loses nothing. Booleans are true and false in any
    case. Empty cells say nothing; everything else is text.
    """

    def __init__(self) -> None:
        self._type: ColumnType | None = None
        self._beyond_exact = False
        self.odd: str | None = None
        """The first cell that made text of a column whose cells were of another type before."""

    @property
    def type(self) -> ColumnType:
        """The narrowest type that fits every cell seen; text where all were empty."""
        return self._type or ColumnType.TEXT

    def see(self, cells: Iterable[str]) -> None:
        """Take further cells into account."""
        if self._type is ColumnType.TEXT:
            return
        present = list(filter(None, cells))
        if not present:
            return
        if self._type is None:
            self._type = _first_type(present[0])
        before = self._type
        if self._type is ColumnType.INTEGER and not self._all_integers(present):
            self._type = ColumnType.TEXT if self._beyond_exact else ColumnType.NUMBER
        if self._type is ColumnType.NUMBER and not (all(map(_SHORT_NUMBER, present)) or all(map(is_number, present))):
            self._type = ColumnType.TEXT
        if self._type is ColumnType.BOOLEAN and not all(cell.lower() in _BOOLEANS for cell in present):
            self._type = ColumnType.TEXT
        if self._type is ColumnType.TEXT and before is not ColumnType.TEXT:
            is_odd = (lambda cell: cell.lower() not in _BOOLEANS) if before is ColumnType.BOOLEAN else _no_number
            self.odd = next((cell for cell in present if is_odd(cell)), None)

    def _all_integers(self, present: Sequence[str]) -> bool:
        if all(map(_SHORT_INTEGER, present)):
            return True
        integers = [int(cell) for cell in present if _INTEGER(cell)]
        self._beyond_exact |= any(abs(value) > EXACT_INTEGER for value in integers)
        return len(integers) == len(present) and all(map(_in_64_bits, integers))


def _first_type(cell: str) -> ColumnType:
    if _INTEGER(cell) and _in_64_bits(int(cell)):
        return ColumnType.INTEGER
    if is_number(cell):
        return ColumnType.NUMBER
    return ColumnType.BOOLEAN if cell.lower() in _BOOLEANS else ColumnType.TEXT


def is_number(cell: str) -> bool:
    """Whether ``cell`` is a finite decimal that a float stands for, an integer only where it is exact."""
    if not _NUMBER(cell) or not math.isfinite(float(cell)):
        return False
    whole = not any(mark in cell for mark in ".eE")
    return not whole or (len(cell) < 20 and abs(int(cell)) <= EXACT_INTEGER)


def _no_number(cell: str) -> bool:
    return not is_number(cell)


def _in_64_bits(value: int) -> bool:
    return -(2**63) <= value < 2**63


def fits(cell: str, kind: ColumnType) -> bool:
    """Whether a cell that is not empty can be read as ``kind``, which the user asked for.

    More is accepted than is inferred: leading zeros, a plus, ``.5`` and ``1.``.
    """
    if kind is ColumnType.INTEGER:
        return _LOOSE_INTEGER(cell) is not None and _in_64_bits(int(cell))
    if kind is ColumnType.NUMBER:
        return _LOOSE_NUMBER(cell) is not None and math.isfinite(float(cell))
    return kind is ColumnType.TEXT or cell.lower() in _BOOLEANS


_READ: dict[ColumnType, Callable[[str], Any]] = {
    ColumnType.TEXT: str,
    ColumnType.INTEGER: int,
    ColumnType.NUMBER: float,
    ColumnType.BOOLEAN: lambda cell: _BOOLEANS[cell.lower()],
}


def typed_cells(cells: Iterable[str], kind: ColumnType) -> list[Any]:
    """The cells as values of ``kind``, None where empty; each must fit (ValueError or KeyError otherwise)."""
    if kind is ColumnType.TEXT:
        return [cell or None for cell in cells]
    read = _READ[kind]
    return [read(cell) if cell else None for cell in cells]
