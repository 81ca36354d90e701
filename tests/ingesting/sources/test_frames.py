import datetime

import numpy as np
import pytest

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources import open_sources

pd = pytest.importorskip("pandas")


def rows_of(frame):
    [source] = open_sources([frame])
    return [row.fields for row in source.rows()]


def test_missing_values_of_every_kind_are_none():
    frame = pd.DataFrame({
        "float": [1.5, np.nan], "integer": pd.array([1, pd.NA], "Int64"), "flag": pd.array([True, pd.NA], "boolean"),
        "text": ["a", None], "object": pd.Series(["a", np.nan], dtype=object), "category": pd.Categorical(["a", None]),
        "moment": [pd.Timestamp(2020, 1, 2), pd.NaT], "arrow": pd.array([1, None], "int64[pyarrow]"),
    })  # fmt: skip
    first, second = rows_of(frame)
    assert first == {
        "float": 1.5, "integer": 1, "flag": True, "text": "a", "object": "a", "category": "a",
        "moment": datetime.datetime(2020, 1, 2), "arrow": 1,
    }  # fmt: skip
    assert second == dict.fromkeys(frame.columns)


def test_numbers_are_plain_python():
    frame = pd.DataFrame({"i": np.array([1], np.int8), "f": np.array([0.5], np.float32), "b": [True]})
    assert [type(value) for value in rows_of(frame)[0].values()] == [int, float, bool]


def test_an_index_is_a_column_only_where_it_has_a_name():
    frame = pd.DataFrame({"a": [1, 2]}, index=["x", "y"])
    assert rows_of(frame) == [{"a": 1}, {"a": 2}]
    assert rows_of(frame.rename_axis("key")) == [{"key": "x", "a": 1}, {"key": "y", "a": 2}]
    two = frame.set_index(pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["k", None]))
    assert rows_of(two) == [{"k": "x", "a": 1}, {"k": "y", "a": 2}]


def test_vectors_as_arrays_and_as_lists_come_through():
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    frame = pd.DataFrame({"array": list(matrix), "list": matrix.tolist()})
    rows = rows_of(frame)
    np.testing.assert_array_equal(np.stack([row["array"] for row in rows]), matrix)
    assert [row["list"] for row in rows] == matrix.tolist()


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (pd.DataFrame({0: [1]}), "column name 0 is int"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns 'a'"),
        (pd.DataFrame({"a": [1]}).rename_axis("a"), "two columns 'a'"),
        (pd.DataFrame({("a", "b"): [1]}), "must be strings"),
    ],
)
def test_names_that_cannot_be_fields_are_refused(frame, said):
    with pytest.raises(InvalidInput, match=said):
        open_sources([frame])


def test_rows_of_long_frames_are_numbered_and_can_be_read_again():
    [source] = open_sources([pd.DataFrame({"n": range(10_000)})])
    assert [(row.number, row.position, row.fields["n"]) for row in source.rows()] == [
        (n + 1, n + 1, n) for n in range(10_000)
    ]
    assert (source.total, source.unit, source.rereadable, source.fingerprint()) == (10_000, "rows", True, None)
    assert next(source.rows()).number == 1
