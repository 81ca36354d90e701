"""The filter tree. It knows nothing of SQL: what searches a space may evaluate it in its own way.

The logic has two values. A comparison is true only where the field is there, is not null and holds the same kind of
value (number, text or boolean) as it is compared with; otherwise it is false, never unknown. ``NOT x`` is true
exactly where ``x`` is false. So ``year != 2020`` holds for a record without a year, and ``year > 2020`` does not.
A field that is missing and one that is null are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from embedstore.errors import InvalidFilter

Scalar = str | int | float | bool
MAX_DEPTH = 100
"""How deep AND, OR and NOT may be nested within each other."""
MAX_NODES = 10_000


class Operator(Enum):
    """How a field is compared with one value."""

    EQ = "="
    NE = "!="
    GT = ">"
    GTE = ">="
    LT = "<"
    LTE = "<="


BUILTIN_FIELDS = ("_key", "_text", "_uri", "_modality")
"""Names of what a record has besides its metadata."""


@dataclass(frozen=True, slots=True)
class Field:
    """A place in the metadata, as the names that lead to it; or, with one name that begins with _, a record's own."""

    path: tuple[str, ...]

    @property
    def builtin(self) -> bool:
        """Whether this is part of the record itself rather than of its metadata."""
        return len(self.path) == 1 and self.path[0] in BUILTIN_FIELDS

    def __str__(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``field operator value``; NE is the negation of EQ."""

    field: Field
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field equals one of ``values``."""

    field: Field
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there and is not null."""

    field: Field


@dataclass(frozen=True, slots=True)
class Contains:
    """A text holds the text ``value``, or a list holds an element equal to it."""

    field: Field
    value: Scalar


@dataclass(frozen=True, slots=True)
class Like:
    """A text matches ``pattern``, where % stands for any characters and _ for one; letter case counts."""

    field: Field
    pattern: str


@dataclass(frozen=True, slots=True)
class And:
    """Every part holds; true where there is none."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds; false where there is none."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


Leaf = Comparison | In | Exists | Contains | Like
Node = Leaf | And | Or | Not


def kind_of(value: Scalar) -> str:
    """The kind of a value: boolean, number or text."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def all_of(parts: list[Node]) -> Node:
    """The conjunction of ``parts``, with conjunctions among them merged in."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, And) else (part,))]
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def any_of(parts: list[Node]) -> Node:
    """The disjunction of ``parts``, with disjunctions among them merged in."""
    flat = [inner for part in parts for inner in (part.parts if isinstance(part, Or) else (part,))]
    return flat[0] if len(flat) == 1 else Or(tuple(flat))


def negate(part: Node) -> Node:
    """The negation of ``part``; two negations cancel out."""
    return part.part if isinstance(part, Not) else Not(part)


def leaves(root: Node) -> list[Leaf]:
    """Every leaf of the tree. Raises InvalidFilter where it is deeper or larger than is allowed."""
    found: list[Leaf] = []
    waiting: list[tuple[Node, int]] = [(root, 1)]
    n_nodes = 0
    while waiting:
        node, depth = waiting.pop()
        n_nodes += 1
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"the filter is nested deeper than {MAX_DEPTH} levels; write it flatter")
        if n_nodes > MAX_NODES:
            raise InvalidFilter(f"the filter has more than {MAX_NODES:,} parts; use IN (...) for long lists")
        if isinstance(node, (And, Or)):
            waiting.extend((part, depth + 1) for part in node.parts)
        elif isinstance(node, Not):
            waiting.append((node.part, depth + 1))
        else:
            found.append(node)
    return found
