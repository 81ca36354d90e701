"""Holds a filter against the fields that a collection's records have, so that a typo is an error."""

from __future__ import annotations

import difflib

from embedstore.checks import shown
from embedstore.errors import InvalidFilter, UnknownField
from embedstore.filters.tree import (
    BUILTIN_FIELDS,
    Comparison,
    Contains,
    Field,
    In,
    Leaf,
    Like,
    Node,
    Operator,
    Scalar,
    kind_of,
    leaves,
)
from embedstore.metadata import FieldKinds

_NAMES = {"number": "numbers", "text": "text", "boolean": "true and false", "list": "lists"}


def check_fields(root: Node, kinds: FieldKinds, collection: str) -> None:
    """Raise UnknownField or InvalidFilter where the tree names a field, or a kind of value, that no record has."""
    by_path: dict[tuple[str, ...], set[str]] = {}
    for path, kind in kinds:
        by_path.setdefault(path, set()).add("number" if kind in ("integer", "real") else kind)
        for length in range(1, len(path)):
            by_path.setdefault(path[:length], set())
    for leaf in leaves(root):
        if leaf.field.builtin:
            found = {"text"}
        elif leaf.field.path in by_path:
            found = by_path[leaf.field.path]
        else:
            raise _unknown(leaf.field, by_path, collection)
        _check_kind(leaf, found)


def _unknown(field: Field, by_path: dict[tuple[str, ...], set[str]], collection: str) -> UnknownField:
    names = sorted(".".join(path) for path in by_path)
    close = difflib.get_close_matches(str(field), [*names, *BUILTIN_FIELDS], n=1, cutoff=0.6)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if f"_{field}" in BUILTIN_FIELDS:
        hint = f"; the record's own {field} is called _{field}"
    listed = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"
    return UnknownField(
        f"no record of {collection!r} has a field {shown(str(field))}{hint} (fields: {listed})"
    )


def _check_kind(leaf: Leaf, found: set[str]) -> None:
    if isinstance(leaf, Comparison):
        values: tuple[Scalar, ...] = (leaf.value,)
        if kind_of(leaf.value) == "boolean" and leaf.operator not in (Operator.EQ, Operator.NE):
            raise InvalidFilter(f"{leaf.field} {leaf.operator.value} {leaf.value}: true and false have no order")
    elif isinstance(leaf, In):
        values = leaf.values
    elif isinstance(leaf, (Contains, Like)):
        usable = {"text", "list"} if isinstance(leaf, Contains) else {"text"}
        if found and not found & usable:
            word = "CONTAINS" if isinstance(leaf, Contains) else "LIKE"
            raise InvalidFilter(f"{leaf.field} holds {_names(found)}; {word} looks into {_names(usable)}")
        if isinstance(leaf, Contains) and found == {"text"} and kind_of(leaf.value) != "text":
            raise InvalidFilter(
                f"{leaf.field} holds text, which does not contain the {kind_of(leaf.value)} {leaf.value}; look for the"
                f" text '{leaf.value}'"
            )
        return
    else:
        return
    for value in values:
        if found and kind_of(value) not in found:
            advice = "use CONTAINS for lists" if found == {"list"} else "compare it with the same kind of value"
            raise InvalidFilter(
                f"{leaf.field} holds {_names(found)} and was compared with the {kind_of(value)}"
                f" {shown(value) if isinstance(value, str) else value}; {advice}"
            )


def _names(kinds: set[str]) -> str:
    return " and ".join(_NAMES[kind] for kind in sorted(kinds))
