"""Compiles a filter tree to a SQL condition over ``records`` in which every name and value is a bound parameter."""

from __future__ import annotations

from typing import Any, Protocol

import orjson

from embedstore.filters.tree import (
    And,
    Comparison,
    Contains,
    Exists,
    Field,
    In,
    Leaf,
    Like,
    Node,
    Not,
    Operator,
    Or,
    Scalar,
    kind_of,
)

_BUILTIN_COLUMNS = {"_key": "r.key", "_text": "r.content", "_uri": "r.uri", "_modality": "r.modality"}


def compile_where(root: Node, dialect: str) -> tuple[str, dict[str, Any]]:
    """A condition on the table ``records`` under the alias ``r``, and its parameters.

    The condition is true or false for every row, never NULL.
    """
    parameters = _Parameters()
    spelling: _Spelling = _SQLite(parameters) if dialect == "sqlite" else _Postgres(parameters)
    return _condition(root, spelling, parameters), parameters.values


class _Parameters:
    """Collects values and hands out names for them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def add(self, value: Any) -> str:
        name = f"w{len(self.values)}"
        self.values[name] = value
        return f":{name}"


class _Spelling(Protocol):
    """How a dialect reaches into the metadata."""

    def bound(self, value: Scalar) -> Any: ...
    def compare(self, field: Field, kind: str, operator: str, value: str) -> str: ...
    def among(self, field: Field, kind: str, values: list[Scalar]) -> str: ...
    def exists(self, field: Field) -> str: ...
    def contains_text(self, field: Field, value: str) -> str: ...
    def contains_element(self, field: Field, value: Scalar) -> str: ...
    def like(self, field: Field, pattern: str) -> str: ...
    def equals_builtin(self, column: str, operator: str, value: str) -> str: ...


def _condition(root: Node, spelling: _Spelling, parameters: _Parameters) -> str:
    if isinstance(root, (And, Or)):
        parts = [_condition(part, spelling, parameters) for part in root.parts]
        return _joined(parts, " AND " if isinstance(root, And) else " OR ")
    if isinstance(root, Not):
        return f"(NOT {_condition(root.part, spelling, parameters)})"
    return f"(({_leaf(root, spelling, parameters)}) IS TRUE)"


def _joined(parts: list[str], word: str) -> str:
    """The parts joined by ``word`` in a balanced tree, since SQLite limits how deep an expression may be."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_joined(parts[:middle], word)}{word}{_joined(parts[middle:], word)})"


def _leaf(leaf: Leaf, spelling: _Spelling, parameters: _Parameters) -> str:
    if isinstance(leaf, Comparison):
        if leaf.operator is Operator.NE:
            return f"(({_compare(leaf.field, '=', leaf.value, spelling, parameters)}) IS NOT TRUE)"
        return _compare(leaf.field, leaf.operator.value, leaf.value, spelling, parameters)
    if isinstance(leaf, In):
        if not leaf.values:
            return "1 = 0"
        return _among(leaf.field, leaf.values, spelling)
    if isinstance(leaf, Exists):
        return spelling.exists(leaf.field)
    if isinstance(leaf, Contains):
        element = spelling.contains_element(leaf.field, leaf.value)
        if isinstance(leaf.value, str):
            return f"({spelling.contains_text(leaf.field, leaf.value)}) OR ({element})"
        return element
    assert isinstance(leaf, Like)
    return spelling.like(leaf.field, leaf.pattern)


def _among(field: Field, values: tuple[Scalar, ...], spelling: _Spelling) -> str:
    """The field equals one of the values: one bound list for each kind of them."""
    tests = []
    for kind in ("text", "number", "boolean"):
        found = [value for value in values if kind_of(value) == kind]
        if not found or (field.builtin and kind != "text"):
            continue
        tests.append(f"(({spelling.among(field, kind, found)}) IS TRUE)")
    return _joined(tests, " OR ") if tests else "1 = 0"


def _compare(
    field: Field, operator: str, value: Scalar, spelling: _Spelling, parameters: _Parameters
) -> str:
    kind = kind_of(value)
    if field.builtin:
        if kind != "text":
            return "1 = 0"
        return spelling.equals_builtin(_BUILTIN_COLUMNS[field.path[0]], operator, parameters.add(value))
    return spelling.compare(field, kind, operator, parameters.add(spelling.bound(value)))


class _SQLite:
    """JSON functions of SQLite over the metadata's text."""

    _TYPES = {"number": "IN ('integer', 'real')", "text": "= 'text'"}

    def __init__(self, parameters: _Parameters) -> None:
        self._parameters = parameters
        self._paths: dict[tuple[str, ...], tuple[str, str]] = {}

    def _type_and_value(self, field: Field) -> tuple[str, str]:
        """Expressions for the JSON type and the SQL value of a field."""
        if field.path not in self._paths:
            if any(character in name for name in field.path for character in '"\\'):
                self._paths[field.path] = self._by_walking(field)
            else:
                path = self._parameters.add("$" + "".join(f'."{name}"' for name in field.path))
                self._paths[field.path] = (f"json_type(r.metadata, {path})", f"json_extract(r.metadata, {path})")
        return self._paths[field.path]

    def _by_walking(self, field: Field) -> tuple[str, str]:
        # SQLite's path syntax cannot name a key that holds a quote or a backslash.
        source = "r.metadata"
        joins = []
        for depth, name in enumerate(field.path):
            joins.append((f"json_each({source}) AS j{depth}", f"j{depth}.key = {self._parameters.add(name)}"))
            source = f"CASE WHEN j{depth}.type = 'object' THEN j{depth}.value ELSE '{{}}' END"
        tables = ", ".join(table for table, _ in joins)
        tests = " AND ".join(test for _, test in joins)
        last = f"j{len(joins) - 1}"
        return (
            f"(SELECT {last}.type FROM {tables} WHERE {tests})",
            f"(SELECT {last}.value FROM {tables} WHERE {tests})",
        )

    def bound(self, value: Scalar) -> Any:
        return str(value).lower() if isinstance(value, bool) else value

    def compare(self, field: Field, kind: str, operator: str, value: str) -> str:
        type_, extracted = self._type_and_value(field)
        if kind == "boolean":
            return f"{type_} IN ('true', 'false') AND {type_} {operator} {value}"
        return f"{type_} {self._TYPES[kind]} AND {extracted} {operator} {value}"

    def among(self, field: Field, kind: str, values: list[Scalar]) -> str:
        words = [str(value).lower() for value in values] if kind == "boolean" else values
        members = f"(SELECT value FROM json_each({self._parameters.add(orjson.dumps(words).decode())}))"
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} IN {members}"
        type_, extracted = self._type_and_value(field)
        if kind == "boolean":
            return f"{type_} IN {members}"
        return f"{type_} {self._TYPES[kind]} AND {extracted} IN {members}"

    def exists(self, field: Field) -> str:
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} IS NOT NULL"
        return f"coalesce({self._type_and_value(field)[0]}, 'null') <> 'null'"

    def contains_text(self, field: Field, value: str) -> str:
        bound = self._parameters.add(value)
        if field.builtin:
            return f"instr({_BUILTIN_COLUMNS[field.path[0]]}, {bound}) > 0"
        type_, extracted = self._type_and_value(field)
        return f"{type_} = 'text' AND instr({extracted}, {bound}) > 0"

    def contains_element(self, field: Field, value: Scalar) -> str:
        if field.builtin:
            return "1 = 0"
        type_, extracted = self._type_and_value(field)
        kind = kind_of(value)
        if kind == "boolean":
            test = f"e.type = {self._parameters.add('true' if value else 'false')}"
        else:
            test = f"e.type {self._TYPES[kind]} AND e.value = {self._parameters.add(value)}"
        whole = f"CASE WHEN {type_} = 'array' THEN {extracted} ELSE '[]' END"
        return f"EXISTS (SELECT 1 FROM json_each({whole}) AS e WHERE {test})"

    def like(self, field: Field, pattern: str) -> str:
        # GLOB, unlike LIKE, tells upper from lower case; its own wild cards are put in brackets.
        glob = "".join({"%": "*", "_": "?"}.get(c, f"[{c}]" if c in "*?[" else c) for c in pattern)
        bound = self._parameters.add(glob)
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} GLOB {bound}"
        type_, extracted = self._type_and_value(field)
        return f"{type_} = 'text' AND {extracted} GLOB {bound}"

    def equals_builtin(self, column: str, operator: str, value: str) -> str:
        return f"{column} {operator} {value}"


class _Postgres:
    """PostgreSQL's JSON operators. CASE keeps a cast from meeting a value of another kind."""

    def __init__(self, parameters: _Parameters) -> None:
        self._parameters = parameters

    def _json(self, field: Field) -> str:
        return f"r.metadata #> CAST({self._parameters.add(list(field.path))} AS text[])"

    def _text(self, field: Field) -> str:
        return f"(r.metadata #>> CAST({self._parameters.add(list(field.path))} AS text[]))"

    def bound(self, value: Scalar) -> Any:
        return _postgres_text(value)

    def among(self, field: Field, kind: str, values: list[Scalar]) -> str:
        words = [_postgres_text(value) for value in values]
        array = f"CAST({self._parameters.add(words)} AS text[])"
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} = ANY({array})"
        name = {"text": "string"}.get(kind, kind)
        text = self._text(field)
        test = f"{text} = ANY({array})"
        if kind == "number":
            test = f"CAST({text} AS numeric) = ANY(CAST({array} AS numeric[]))"
        return f"CASE WHEN json_typeof({self._json(field)}) = '{name}' THEN {test} ELSE false END"

    def compare(self, field: Field, kind: str, operator: str, value: str) -> str:
        typed = {
            "boolean": f"{self._text(field)} {operator} CAST({value} AS text)",
            "number": f"CAST({self._text(field)} AS numeric) {operator} CAST({value} AS numeric)",
            "text": f'{self._text(field)} COLLATE "C" {operator} CAST({value} AS text)',
        }[kind]
        name = {"text": "string"}.get(kind, kind)
        return f"CASE WHEN json_typeof({self._json(field)}) = '{name}' THEN {typed} ELSE false END"

    def exists(self, field: Field) -> str:
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} IS NOT NULL"
        return f"coalesce(json_typeof({self._json(field)}), 'null') <> 'null'"

    def contains_text(self, field: Field, value: str) -> str:
        bound = self._parameters.add(value)
        if field.builtin:
            return f"strpos({_BUILTIN_COLUMNS[field.path[0]]}, CAST({bound} AS text)) > 0"
        return (
            f"json_typeof({self._json(field)}) = 'string' AND strpos({self._text(field)}, CAST({bound} AS text)) > 0"
        )

    def contains_element(self, field: Field, value: Scalar) -> str:
        if field.builtin:
            return "1 = 0"
        kind = kind_of(value)
        whole = f"CASE WHEN json_typeof({self._json(field)}) = 'array' THEN {self._json(field)} ELSE '[]' END"
        bound = self._parameters.add(_postgres_text(value))
        text = "(e.item #>> '{}')"
        test = {
            "boolean": f"json_typeof(e.item) = 'boolean' AND {text} = CAST({bound} AS text)",
            "number": f"CASE WHEN json_typeof(e.item) = 'number' THEN CAST({text} AS numeric)"
            f" = CAST({bound} AS numeric) ELSE false END",
            "text": f"json_typeof(e.item) = 'string' AND {text} = CAST({bound} AS text)",
        }[kind]
        return f"EXISTS (SELECT 1 FROM json_array_elements({whole}) AS e(item) WHERE {test})"

    def like(self, field: Field, pattern: str) -> str:
        bound = self._parameters.add(pattern.replace("\\", "\\\\"))
        if field.builtin:
            return f"{_BUILTIN_COLUMNS[field.path[0]]} LIKE CAST({bound} AS text)"
        return f"json_typeof({self._json(field)}) = 'string' AND {self._text(field)} LIKE CAST({bound} AS text)"

    def equals_builtin(self, column: str, operator: str, value: str) -> str:
        return f'{column} COLLATE "C" {operator} CAST({value} AS text)'


def _postgres_text(value: Scalar) -> str:
    """A value as text that PostgreSQL casts without a loss: a float8 would keep only fifteen digits as numeric."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
