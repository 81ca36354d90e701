"""Filters: one meaning, in text and as dictionaries, in SQL and over columns."""

import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import embedstore
from embedstore import InvalidFilter, UnknownField
from embedstore.filters import parse_where
from embedstore.filters.tree import (
    And,
    Comparison,
    Contains,
    Exists,
    Field,
    In,
    Like,
    Node,
    Not,
    Operator,
    Or,
    kind_of,
)

YEAR = Field(("year",))


@pytest.mark.parametrize(
    ("text", "dictionary"),
    [
        ("year = 2015", {"year": 2015}),
        ("year == 2015", {"year": {"$eq": 2015}}),
        ("year >= 2015 AND year < 2020", {"year": {"$gte": 2015, "$lt": 2020}}),
        ("year BETWEEN 2015 AND 2020", {"year": {"$gte": 2015, "$lte": 2020}}),
        ("year NOT BETWEEN 1 AND 2", {"$not": {"year": {"$gte": 1, "$lte": 2}}}),
        ("tags NOT CONTAINS 'x'", {"tags": {"$not": {"$contains": "x"}}}),
        ("year < 100000000000000000000", {"year": {"$lt": 10**20}}),
        (f"year < {'0' * 5000}7", {"year": {"$lt": 7}}),
        (f"year < {'0' * 40}{'9' * 30}", {"year": {"$lt": float(10**30)}}),
        ("year > -1.5e2", {"year": {"$gt": -150.0}}),
        ("venue IN ('Nature', 'PLOS')", {"venue": {"$in": ["Nature", "PLOS"]}}),
        ("venue NOT IN ('Nature')", {"venue": {"$nin": ["Nature"]}}),
        ("open = true OR NOT year <= 3", {"$or": [{"open": True}, {"$not": {"year": {"$lte": 3}}}]}),
        ("title IS NULL", {"title": None}),
        ("title IS NOT NULL", {"title": {"$exists": True}}),
        ("tags CONTAINS 'x'", {"tags": {"$contains": "x"}}),
        ("title LIKE 'A%'", {"title": {"$like": "A%"}}),
        ("author.name = 'O''Hara'", {"author.name": "O'Hara"}),
        ('"a.b" = 1', {'"a.b"': 1}),
        ("(((year = 1)))", {"$and": [{"year": 1}]}),
        ("_key = 'k1'", {"_key": "k1"}),
    ],
)
def test_both_spellings_make_one_tree(text, dictionary):
    assert parse_where(text) == parse_where(dictionary)


def test_a_dictionary_may_be_written_as_json():
    assert parse_where(' {"year": {"$gte": 2015}, "open": true}') == parse_where({"year": {"$gte": 2015}, "open": True})


def test_and_binds_closer_than_or_and_not_closest():
    a, b, c = (Comparison(Field((name,)), Operator.EQ, 1) for name in "abc")
    assert parse_where("a = 1 OR b = 1 AND NOT c = 1") == Or((a, And((b, Not(c)))))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("", "the filter is empty"),
        ("year", "ends too early"),
        ("year >=", "ends too early"),
        ("year = 'x", "cannot be read at character 8.*the text does not end"),
        ('year = "x"', "cannot be read at character 8"),
        ("year = NULL", "year IS NULL"),
        ("1 = 1", "cannot be read at character 1"),
        ("year = 1; DROP TABLE records", "cannot be read at character 9"),
        ("year = 1 -- comment", "cannot be read"),
        ("year = 1e999", "too large"),
        ({"year": 10**400}, "whole number of 1,329 bits, too large"),
        ({"year": 10**5000}, "too large"),
        ("venue 'en'", "an operator stands between"),
        ("venue LIKE 'x' 'y'", r"character 16: venue LIKE 'x' >>>'y'$"),
        ("venue = ilike", "text stands in single quotes"),
        ("n NOT IN", r"ends too early: n NOT IN>>>$"),
        ("venue ILIKE 'x'", "there is LIKE alone"),
        ("venue NOT ILIKE 'x'", "there is LIKE alone"),
        ("n > 2024-01-01", "dates are texts, in single quotes"),
        ("5 < n", "name of a field comes first, then the operator"),
        ("n = 1 && m = 2", "write AND"),
        ("n = 1 || m = 2", "write OR"),
        ("(n = 1", "a parenthesis is not closed"),
        ('{"n": ', "begins like JSON"),
        ("NOT 'venue' = 1", "name of a field comes first"),
        ("year = 1 AND open", "compares a field with a value: open = true"),
        ("NOT (open) AND year = 1", "character 10.*: open = true"),
        ("open IS TRUE", "write: = true"),
        ("'venue' = 1", "name of a field comes first"),
        ("venue LIKE 'x' ESCAPE '!'", "use CONTAINS"),
        ({}, "empty dictionary"),
        ({"year": {}}, "condition on year is empty"),
        ({"year": {"$regex": "x"}}, r"unknown operator '\$regex'"),
        ({"$nor": []}, r"unknown operator '\$nor'"),
        ({"$and": []}, "empty list"),
        ({"$and": {"year": 1}}, "takes a list"),
        ({"year": [1]}, "compared with list"),
        ({"year": float("nan")}, "compared with nan"),
        ({"year": {"$in": 5}}, "take a list"),
        ({"year": {"$exists": "yes"}}, "true or false"),
        ({1: 2}, "names are strings"),
        (5, "a string or a dictionary"),
    ],
)
def test_a_filter_that_cannot_be_understood_is_refused_in_one_line(where, message):
    with pytest.raises(InvalidFilter, match=message) as caught:
        parse_where(where)
    assert "\n" not in str(caught.value)


def test_depth_is_bounded_without_a_crash():
    deep: dict[str, Any] = {"year": 1}
    for _ in range(1000):
        deep = {"$not": {"$and": [deep, {"year": 2}]}}
    with pytest.raises(InvalidFilter, match="nested deeper than 100"):
        parse_where(deep)
    text = "year = 1"
    for _ in range(1000):
        text = f"(year = 2 AND (NOT ({text}) OR year = 3))"
    with pytest.raises(InvalidFilter, match="nested deeper than 100"):
        parse_where(text)
    assert parse_where("(" * 1000 + "year = 1" + ")" * 1000) == Comparison(YEAR, Operator.EQ, 1)
    assert parse_where("NOT " * 1000 + "year = 1") == Comparison(YEAR, Operator.EQ, 1)


@pytest.fixture
def some(any_store):
    collection = any_store.collection("some", encoder="none")
    rows = [
        {"key": "number", "year": 2015}, {"key": "float", "year": 2015.5}, {"key": "text", "year": "2015"},
        {"key": "flag", "year": True}, {"key": "null", "year": None}, {"key": "missing"},
        {"key": "list", "tags": ["a", 1, True], "o": {"p": 1}}, {"key": "part", "tags": "xay"},
    ]  # fmt: skip
    collection.add({"vector": [1.0, float(i)], **row} for i, row in enumerate(rows))
    return collection


def keys_where(collection: embedstore.Collection, where: Any) -> set[str]:
    """The keys under a filter, by SQL and by search, which must agree."""
    by_sql = {record.key for record in collection.records(where)}
    by_columns = set(collection.search([1.0, 0.0], k=1000, where=where).keys)
    assert by_sql == by_columns
    assert collection.count(where) == len(by_sql)
    return by_sql


EVERY = {"number", "float", "text", "flag", "null", "missing", "list", "part"}


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year = 2015", {"number"}),
        ("year != 2015", EVERY - {"number"}),
        ("NOT year = 2015", EVERY - {"number"}),
        ("year >= 2015", {"number", "float"}),
        ("NOT year >= 2015", EVERY - {"number", "float"}),
        ("year = '2015'", {"text"}),
        ("year >= '2'", {"text"}),
        ("year = true", {"flag"}),
        ("year != true", EVERY - {"flag"}),
        ("year IN (2015, 'x', true)", {"number", "flag"}),
        ("year NOT IN (2015)", EVERY - {"number"}),
        ({"year": {"$in": []}}, set()),
        ({"year": {"$nin": []}}, EVERY),
        ({"year": {"$in": [2015, None]}}, EVERY - {"float", "text", "flag"}),
        ("year IS NULL", {"null", "missing", "list", "part"}),
        ("year IS NOT NULL", {"number", "float", "text", "flag"}),
        ("o IS NOT NULL", {"list"}),
        ("o.p = 1", {"list"}),
        ("tags CONTAINS 'a'", {"list", "part"}),
        ("tags CONTAINS 1", {"list"}),
        ("tags NOT CONTAINS 'a'", EVERY - {"list", "part"}),
        ("year NOT BETWEEN 2015 AND 2015.2", EVERY - {"number"}),
        ("year < 100000000000000000000", {"number", "float"}),
        ({"year": {"$gt": -(10**30)}}, {"number", "float"}),
        ("tags CONTAINS true", {"list"}),
        ("tags LIKE '_a%'", {"part"}),
        ("tags LIKE '_A%'", set()),
        ("_key = 'part'", {"part"}),
        ("_key LIKE 'fl%'", {"float", "flag"}),
        ("_key > 'number'", {"part", "text"}),
        ("_text IS NULL", EVERY),
    ],
)
def test_missing_null_and_mixed_kinds_have_one_meaning(some, where, expected):
    assert keys_where(some, where) == expected


def test_a_field_that_no_record_has_is_an_error_that_helps(some):
    with pytest.raises(UnknownField, match="no record of 'some' has a field 'yaer'; did you mean 'year'"):
        some.search([1.0, 0.0], where="yaer = 2015")
    with pytest.raises(UnknownField, match="is called _key"):
        some.count("key = 'part'")
    with pytest.raises(InvalidFilter, match="_key holds text, .* the number 5; look for the text '5'"):
        some.count("_key CONTAINS 5")
    with pytest.raises(UnknownField):
        some.delete(where={"x'; DROP TABLE records; --": 1})
    assert len(some) == 8


def test_a_kind_that_a_field_never_held_is_an_error(store):
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0], "year": 2015, "flag": True, "tags": ["x"]}])
    with pytest.raises(InvalidFilter, match="year holds numbers and was compared with the text '2015'"):
        collection.count("year = '2015'")
    with pytest.raises(InvalidFilter, match="have no order"):
        collection.count("flag > false")
    with pytest.raises(InvalidFilter, match="use CONTAINS for lists"):
        collection.count("tags = 'x'")
    with pytest.raises(InvalidFilter, match="LIKE looks into text"):
        collection.count("year LIKE '2%'")


def test_values_and_names_that_look_like_sql_are_only_values_and_names(any_store):
    collection = any_store.collection("c", encoder="none")
    evil = "x' OR 1=1; DROP TABLE records; --"
    names = ['a"b', "a'b", "a\\b", "a b", "a:b", "$.x", "a.b", "select", "ü", "%s", ":w0"]
    collection.add([{"key": "e", "vector": [1.0, 1.0], "v": evil, **dict.fromkeys(names, 1)}])
    collection.add([{"key": "o", "vector": [1.0, 2.0], "v": "other", **dict.fromkeys(names, 2)}])
    assert keys_where(collection, {"v": evil}) == {"e"}
    for name in names:
        quoted = '"' + name.replace('"', '""') + '"'
        assert keys_where(collection, {quoted: 1}) == {"e"}, name
        assert keys_where(collection, f"{quoted} > 1") == {"o"}, name
    assert len(collection) == 2


def test_long_lists_and_long_disjunctions_work(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add({"key": f"k{i}", "vector": [1.0, float(i)], "n": i} for i in range(50))
    numbers = ", ".join(str(i) for i in range(0, 6000, 2))
    assert len(keys_where(collection, f"n IN ({numbers})")) == 25
    ored = " OR ".join(f"n = {i}" for i in range(0, 6000, 2))
    assert len(keys_where(collection, ored)) == 25


def test_integers_beyond_the_reach_of_floats_are_told_apart(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add({"key": str(i), "vector": [1.0, 1.0], "n": 2**53 + i} for i in range(4))
    assert keys_where(collection, {"n": 2**53 + 1}) == {"1"}
    assert keys_where(collection, {"n": {"$gt": 2**53 + 1}}) == {"2", "3"}
    assert keys_where(collection, f"n = {2**53 + 1}") == {"1"}
    assert parse_where("n = 1445078208190291973") == Comparison(Field(("n",)), Operator.EQ, 1445078208190291973)


# ---- any filter, any metadata: SQL and columns against Python

NAMES = ("a", "b", "c.d")
scalars = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, -1.5, 2.0]), st.booleans(), st.sampled_from(["", "x", "xy", "Z", "é"])
)
values = st.one_of(scalars, st.none(), st.lists(scalars, max_size=3), st.fixed_dictionaries({"d": scalars}))
rows = st.fixed_dictionaries({}, optional={"a": values, "b": values, "c": values})
fields = st.sampled_from([Field(("a",)), Field(("b",)), Field(("c", "d")), Field(("c",))])
leaves = st.one_of(
    st.builds(Comparison, fields, st.sampled_from(Operator), scalars),
    st.builds(lambda field, found: In(field, tuple(found)), fields, st.lists(scalars, max_size=3)),
    st.builds(Exists, fields),
    st.builds(Contains, fields, scalars),
    st.builds(Like, fields, st.sampled_from(["x%", "_", "%", "Z", "%y"])),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda parts: And(tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda parts: Or(tuple(parts)), st.lists(inner, min_size=1, max_size=3)),
        st.builds(Not, inner),
    ),
    max_leaves=6,
)


def holds(tree: Node, metadata: dict[str, Any]) -> bool:
    """The meaning of a filter, in Python."""
    if isinstance(tree, And):
        return all(holds(part, metadata) for part in tree.parts)
    if isinstance(tree, Or):
        return any(holds(part, metadata) for part in tree.parts)
    if isinstance(tree, Not):
        return not holds(tree.part, metadata)
    value: Any = metadata
    for name in tree.field.path:
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(tree, Exists):
        return value is not None
    if isinstance(tree, Like):
        pattern = "".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in tree.pattern)
        return isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None
    if isinstance(tree, Contains):
        if isinstance(value, str):
            return isinstance(tree.value, str) and tree.value in value
        return isinstance(value, list) and any(same(one, tree.value) for one in value)
    if isinstance(tree, In):
        return any(same(value, one) for one in tree.values)
    if tree.operator is Operator.NE:
        return not same(value, tree.value)
    if tree.operator is Operator.EQ:
        return same(value, tree.value)
    if not isinstance(value, (str, int, float)) or kind_of(value) != kind_of(tree.value):
        return False
    return {
        Operator.GT: value > tree.value, Operator.GTE: value >= tree.value,
        Operator.LT: value < tree.value, Operator.LTE: value <= tree.value,
    }[tree.operator]  # fmt: skip


def same(value: Any, other: Any) -> bool:
    return isinstance(value, (str, int, float)) and kind_of(value) == kind_of(other) and value == other


@settings(
    max_examples=120, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(metadata=st.lists(rows, min_size=1, max_size=8), tree=trees, changed=rows)
def test_sql_and_columns_agree_with_the_meaning(any_store, metadata, tree, changed):
    from embedstore.filters.sql import compile_where
    from embedstore.searching.columns import Columns
    from embedstore.storage import catalog

    collection = any_store.collection("c", encoder="none")
    if collection.count():
        collection.delete([record.key for record in collection.records()])
    collection.add({"key": str(i), "vector": [1.0], "metadata": one} for i, one in enumerate(metadata))

    def check(expected: list[dict[str, Any]], columns: Columns | None) -> Columns:
        with any_store.reading() as transaction:
            row = catalog.find_collection(transaction, "c")
            condition, parameters = compile_where(tree, transaction.dialect.name)
            found = transaction.all(
                f"SELECT r.key FROM records AS r WHERE r.collection_id = {row.collection_id} AND {condition}",
                parameters,
            )
            wanted = {str(i) for i, one in enumerate(expected) if holds(tree, one)}
            assert {key for (key,) in found} == wanted
            newer = Columns.load(transaction, row) if columns is None else columns.caught_up(transaction, row)
            mask = newer.matching(transaction, row, tree)
            ids = transaction.all("SELECT record_id, key FROM records ORDER BY record_id")
            assert {key for (_, key), one in zip(ids, mask, strict=True) if one} == wanted
            return newer

    columns = check(metadata, None)
    collection.upsert([{"key": "0", "vector": [1.0], "metadata": changed}])
    collection.add([{"key": str(len(metadata)), "vector": [1.0], "metadata": changed}])
    check([changed, *metadata[1:], changed], columns)
