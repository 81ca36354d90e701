"""Reads a ``where``: SQL-like text through a grammar, or the operator dictionaries of document databases."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import InvalidFilter
from embedstore.filters.tree import (
    MAX_DEPTH,
    And,
    Comparison,
    Contains,
    Exists,
    Field,
    In,
    Like,
    Node,
    Operator,
    Or,
    Scalar,
    all_of,
    any_of,
    leaves,
    negate,
)

if TYPE_CHECKING:
    from lark import Lark, Token

Where = str | Mapping[str, Any]
MAX_CHARACTERS = 1_000_000
_MOST_DIGITS = 19
"""Of a whole number of 64 bits."""
_MOST_BITS = 1023
"""Of a whole number that a float can be near."""
_NULL = object()
_KEPT_CHARACTERS, _MOST_KEPT = 1_000, 256
"""Texts of so many characters at most are kept with their trees, and so many of them."""


def parse_where(where: Where | Node) -> Node:
    """The tree of a filter given as text, as a dictionary or as a tree; InvalidFilter says what is wrong with it."""
    if isinstance(where, str) and len(where) <= _KEPT_CHARACTERS:
        return _parsed(where)
    return _tree(where)


@functools.lru_cache(_MOST_KEPT)
def _parsed(text: str) -> Node:
    """The tree of a text; those asked for last are kept, since reading one takes longer than many a search."""
    return _tree(text)


def _tree(where: Where | Node) -> Node:
    if isinstance(where, str) and where.lstrip().startswith("{"):
        tree = _from_mapping(_parse_json(where), 1)
    elif isinstance(where, str):
        tree = _parse_text(where)
    elif isinstance(where, Mapping):
        tree = _from_mapping(where, 1)
    elif isinstance(where, Node):
        tree = where
    else:
        raise InvalidFilter(f"a filter is a string or a dictionary, not {type(where).__name__}")
    leaves(tree)  # refuses what is too deep or too large
    return tree


def _parse_json(text: str) -> Mapping[str, Any]:
    """A dictionary that is written as JSON, as the command line has it."""
    import orjson

    try:
        found: Mapping[str, Any] = orjson.loads(_unicode(text))
    except orjson.JSONDecodeError as error:
        raise InvalidFilter(f"the filter begins like JSON, and cannot be read as such: {error}") from None
    return found


# ---- text


def _parse_text(text: str) -> Node:
    from lark.exceptions import UnexpectedEOF, UnexpectedInput, VisitError

    if not text.strip():
        raise InvalidFilter("the filter is empty; write a condition such as: year >= 2015")
    _unicode(text)
    if len(text) > MAX_CHARACTERS:
        raise InvalidFilter(f"the filter has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        return _grammar().parse(text)  # type: ignore[return-value]  # the transformer returns nodes
    except VisitError as error:
        if isinstance(error.orig_exc, InvalidFilter):
            raise error.orig_exc from None
        raise
    except UnexpectedInput as error:
        position = getattr(error, "pos_in_stream", None)
        token = getattr(getattr(error, "token", None), "type", "")
        ended = token == "$END" or isinstance(error, UnexpectedEOF)
        place = len(text) if position is None or ended else position
        where = "ends too early" if ended else f"cannot be read at character {place + 1}"
        hint = _hint(text, place, token)
        raise InvalidFilter(f"the filter {where}: {_around(text, place)}{hint}") from None


def _hint(text: str, place: int, token: str) -> str:
    """What whoever wrote a filter that cannot be read at a place may have meant."""
    before = text[:place].rstrip()
    joined = {"&&": "AND", "||": "OR"}.get(text[place : place + 2])
    if joined is not None:
        return f"; write {joined}"
    begins = _BEGINS.search(before) is not None
    word = re.match(r"\w*", text[place:])
    missing = _MISSING.get(word.group().upper()) if word is not None else None
    if missing is not None and not begins and before[-1:] not in "=<>(,":
        return f"; {missing}"
    alone = _ALONE.search(before)
    if alone is not None and re.match(r"\s*($|\)|(AND|OR)\b)", text[place:], re.IGNORECASE):
        return f"; a condition compares a field with a value: {alone.group(1)} = true"
    if begins and re.match(r"[-+.\d]", text[place:]):
        return "; the name of a field comes first, then the operator and the value"
    if re.search(r"\d{4}$", before) and re.match(r"-\d\d", text[place:]):
        return "; dates are texts, in single quotes: '2024-01-31'"
    if not text[place:].strip() and text.count("(") > text.count(")"):
        return "; a parenthesis is not closed"
    if text[place : place + 1] == "'":
        if re.match(r"'(''|[^'])*'", text[place:]) is None:
            return "; the text does not end"
        if begins:
            return "; the name of a field comes first, and stands in no single quotes"
        return "; an operator stands between a field and its value" if _ALONE.search(before) else ""
    return "; text stands in single quotes, names in double quotes" if token in ("QUOTED_NAME", "NAME") else ""


_MISSING = {
    "ILIKE": "there is LIKE alone, for which letter case counts",
    "GLOB": "there is LIKE, with % for any characters and _ for one",
    "REGEXP": "there is LIKE, with % for any characters and _ for one",
    "SIMILAR": "there is LIKE, with % for any characters and _ for one",
    "TRUE": "write: = true", "FALSE": "write: = false",
    "ESCAPE": "there is no escape for % and _; use CONTAINS",
}  # fmt: skip
"""Words of other languages of filters, and what is here in their place."""
_ALONE = re.compile(
    r"(?:^|\(|\b(?:AND|OR|NOT)\b)\s*((?!(?:NOT|AND|OR|IN|LIKE|BETWEEN|CONTAINS|IS|NULL|TRUE|FALSE)\b)[^\W\d][\w.]*)$",
    re.IGNORECASE,
)
"""A name with which a condition begins, and ends."""
_BEGINS = re.compile(r"(?:^|\(|\bAND|\bOR)(?:\s*\bNOT)*$", re.IGNORECASE)
"""What a condition may follow."""


def _around(text: str, position: int) -> str:
    start, stop = max(0, position - 25), min(len(text), position + 25)
    return ascii_safe(f"{text[start:position]}>>>{text[position:stop]}")


def ascii_safe(text: str) -> str:
    """``text`` on one line, with characters that cannot be printed escaped."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


@functools.cache
def _grammar() -> Lark:
    from lark import Lark

    grammar = Path(__file__).with_name("where.lark").read_text(encoding="utf-8")
    return Lark(grammar, parser="lalr", transformer=_transformer(), maybe_placeholders=False)


def _transformer() -> Any:
    """The grammar's actions; made in a function so that lark is imported only where text is parsed."""
    from lark import Transformer, v_args

    class Actions(Transformer[Any, Node]):
        def or_(self, parts: list[Node]) -> Node:
            return any_of(parts)

        def and_(self, parts: list[Node]) -> Node:
            return all_of(parts)

        def negation(self, parts: list[Node]) -> Node:
            return negate(parts[0])

        def comparison(self, parts: list[Any]) -> Node:
            field, operator, value = parts
            return Comparison(field, _OPERATORS[str(operator)], _not_null(value, field))

        def in_(self, parts: list[Any]) -> Node:
            return In(parts[0], tuple(_not_null(value, parts[0]) for value in parts[1:]))

        def not_in(self, parts: list[Any]) -> Node:
            return negate(self.in_(parts))

        def between(self, parts: list[Any]) -> Node:
            field, low, high = parts
            return all_of([
                Comparison(field, Operator.GTE, _not_null(low, field)),
                Comparison(field, Operator.LTE, _not_null(high, field)),
            ])

        def not_between(self, parts: list[Any]) -> Node:
            return negate(self.between(parts))

        def is_null(self, parts: list[Any]) -> Node:
            return negate(Exists(parts[0]))

        def is_not_null(self, parts: list[Any]) -> Node:
            return Exists(parts[0])

        def contains(self, parts: list[Any]) -> Node:
            return Contains(parts[0], _not_null(parts[1], parts[0]))

        def not_contains(self, parts: list[Any]) -> Node:
            return negate(self.contains(parts))

        def like(self, parts: list[Any]) -> Node:
            return Like(parts[0], _unquote(parts[1]))

        def not_like(self, parts: list[Any]) -> Node:
            return negate(self.like(parts))

        def field(self, parts: list[Token]) -> Field:
            return Field(tuple(_unquote(part) if part.type == "QUOTED_NAME" else str(part) for part in parts))

        @v_args(inline=True)
        def string(self, token: Token) -> str:
            return _unquote(token)

        @v_args(inline=True)
        def number(self, token: Token) -> int | float:
            return _number(str(token))

        def true(self, _: list[Any]) -> bool:
            return True

        def false(self, _: list[Any]) -> bool:
            return False

        def null(self, _: list[Any]) -> object:
            return _NULL

    return Actions()


_OPERATORS = {"=": Operator.EQ, "==": Operator.EQ, "!=": Operator.NE, "<>": Operator.NE, "<": Operator.LT,
              "<=": Operator.LTE, ">": Operator.GT, ">=": Operator.GTE}  # fmt: skip


def _unquote(token: str) -> str:
    quote = token[0]
    return token[1:-1].replace(quote * 2, quote)


def _number(text: str) -> int | float:
    """A number that is written in decimals; beyond 64 bits, where no record has a whole one, the nearest float."""
    digits = text.lstrip("+-")
    if digits.isdigit():
        significant = digits.lstrip("0") or "0"
        if len(significant) <= _MOST_DIGITS:
            whole = -int(significant) if text.startswith("-") else int(significant)
            if -(2**63) <= whole < 2**63:
                return whole
    value = float(text)
    if not math.isfinite(value):
        raise InvalidFilter(f"{text[:40]} is too large for a number")
    return value


def _not_null(value: Any, field: Field) -> Scalar:
    if value is _NULL:
        raise InvalidFilter(f"{field} is compared with NULL; write: {field} IS NULL, or {field} IS NOT NULL")
    return value  # type: ignore[no-any-return]


# ---- dictionaries


def _from_mapping(where: Mapping[str, Any], depth: int) -> Node:
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested deeper than {MAX_DEPTH} levels; write it flatter")
    parts: list[Node] = []
    for name, condition in where.items():
        if not isinstance(name, str):
            raise InvalidFilter(f"a filter's names are strings; {name!r} is {type(name).__name__}")
        if name in ("$and", "$or"):
            if not isinstance(condition, Sequence) or isinstance(condition, (str, bytes)):
                raise InvalidFilter(f"{name} takes a list of filters")
            inner = [_from_mapping(_mapping(one, name), depth + 1) for one in condition]
            if not inner:
                raise InvalidFilter(f"{name} has an empty list; give it at least one filter")
            parts.append(all_of(inner) if name == "$and" else any_of(inner))
        elif name == "$not":
            parts.append(negate(_from_mapping(_mapping(condition, name), depth + 1)))
        elif name.startswith("$"):
            raise InvalidFilter(f"unknown operator {name!r} in place of a field; there are $and, $or and $not")
        else:
            parts.append(_field_condition(dictionary_field(name), condition, depth + 1))
    if not parts:
        raise InvalidFilter("the filter is an empty dictionary; leave 'where' out to take every record")
    return all_of(parts)


def dictionary_field(name: str) -> Field:
    """A dictionary's field name: dots lead into nested objects; in double quotes the name is taken as it is."""
    _unicode(name)
    if len(name) > 2 and name[0] == name[-1] == '"':
        return Field((name[1:-1].replace('""', '"'),))
    path = tuple(name.split("."))
    return Field(path) if all(path) else Field((name,))


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidFilter(f"{name} takes filters, which are dictionaries; it was given {type(value).__name__}")
    return value


def _field_condition(field: Field, condition: Any, depth: int) -> Node:
    if not isinstance(condition, Mapping):
        return _equals(field, condition)
    if not condition:
        raise InvalidFilter(f"the condition on {field} is empty; write for example {{'$eq': 1}}")
    if depth > MAX_DEPTH:
        raise InvalidFilter(f"the filter is nested deeper than {MAX_DEPTH} levels; write it flatter")
    parts: list[Node] = []
    for name, value in condition.items():
        if name == "$not":
            parts.append(negate(_field_condition(field, _mapping(value, "$not"), depth + 1)))
            continue
        action = _DICTIONARY.get(name) if isinstance(name, str) else None
        if action is None:
            raise InvalidFilter(
                f"unknown operator {name!r} for {field}; there are {', '.join([*_DICTIONARY, '$not'])}"
            )
        parts.append(action(field, value))
    return all_of(parts)


def _equals(field: Field, value: Any) -> Node:
    return negate(Exists(field)) if value is None else Comparison(field, Operator.EQ, _scalar(field, value))


def _membership(field: Field, values: Any) -> Node:
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise InvalidFilter(f"$in and $nin take a list; {field} was given {type(values).__name__}")
    present = In(field, tuple(_scalar(field, value) for value in values if value is not None))
    return any_of([present, negate(Exists(field))]) if None in values else present


def _exists(field: Field, value: Any) -> Node:
    if not isinstance(value, bool):
        raise InvalidFilter(f"$exists takes true or false; {field} was given {value!r}")
    return Exists(field) if value else negate(Exists(field))


def _ordered(operator: Operator) -> Callable[[Field, Any], Node]:
    return lambda field, value: Comparison(field, operator, _scalar(field, value))


_DICTIONARY: dict[str, Callable[[Field, Any], Node]] = {
    "$eq": _equals,
    "$ne": lambda field, value: negate(_equals(field, value)),
    "$gt": _ordered(Operator.GT),
    "$gte": _ordered(Operator.GTE),
    "$lt": _ordered(Operator.LT),
    "$lte": _ordered(Operator.LTE),
    "$in": _membership,
    "$nin": lambda field, value: negate(_membership(field, value)),
    "$exists": _exists,
    "$contains": lambda field, value: Contains(field, _scalar(field, value)),
    "$like": lambda field, value: Like(field, _text(field, value)),
}


def _scalar(field: Field, value: Any) -> Scalar:
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        value = item()
    if isinstance(value, str):
        return _unicode(value)
    if isinstance(value, int):
        if isinstance(value, bool) or -(2**63) <= value < 2**63:
            return value
        if value.bit_length() > _MOST_BITS:
            raise InvalidFilter(f"{field} is compared with a whole number of {value.bit_length():,} bits, too large")
        return float(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float):
        raise InvalidFilter(f"{field} is compared with {value}, which no record can hold")
    if hasattr(value, "isoformat"):
        return str(value.isoformat())
    raise InvalidFilter(f"{field} is compared with {type(value).__name__}; a filter compares text, numbers, booleans")


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidFilter(f"the filter holds a lone surrogate, which is no text: {ascii(text[:60])}") from None
    return text


def _text(field: Field, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidFilter(f"$like takes a text; {field} was given {value!r}")
    return value


__all__ = ["And", "Or", "Where", "dictionary_field", "parse_where"]
