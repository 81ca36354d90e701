import datetime
import decimal
import json
import resource
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord
from embedstore.ingesting.sources import open_sources

FORMATS = ("parquet", "arrow", "feather", "ipc", "table", "reader")


def given_as(table, kind, folder):
    """The table as something that can be opened."""
    path = folder / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "ipc":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    elif kind in ("arrow", "feather"):
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        return table if kind == "table" else pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    return path


def rows_of(given):
    [source] = open_sources([given])
    return [row.fields for row in source.rows()]


def refused(given):
    with pytest.raises(InvalidInput) as caught:
        rows_of(given)
    assert "\n" not in str(caught.value)
    return caught.value


PLAIN = {
    "integer": (pa.int64(), [1, None, 2**62]),
    "unsigned": (pa.uint64(), [1, None, 2**64 - 1]),
    "number": (pa.float32(), [1.5, None, -2.0]),
    "boolean": (pa.bool_(), [True, None, False]),
    "text": (pa.string(), ["a", None, "ü"]),
    "large_text": (pa.large_string(), ["a", None, ""]),
    "category": (pa.dictionary(pa.int8(), pa.string()), ["x", None, "x"]),
    "bytes": (pa.binary(), [b"a", None, b"\xff"]),
    "moment": (pa.timestamp("us"), [datetime.datetime(2020, 1, 2, 3, 4, 5, 6), None, datetime.datetime(1, 1, 1)]),
    "day": (pa.date32(), [datetime.date(2020, 1, 2), None, datetime.date(1, 1, 1)]),
    "integers": (pa.list_(pa.int32()), [[1, 2], None, []]),
    "texts": (pa.list_(pa.string()), [["a"], None, ["b", None]]),
    "inner": (pa.struct([("a", pa.int64()), ("b", pa.string())]), [{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    "map": (pa.map_(pa.string(), pa.int64()), [{"k": 1}, None, {}]),
    "nothing": (pa.null(), [None, None, None]),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_type_becomes_plain_python_and_null_becomes_none(kind, tmp_path):
    columns = {}
    for name, (column_type, values) in PLAIN.items():
        given = [None if value is None else list(value.items()) for value in values] if name == "map" else values
        columns[name] = pa.array(given, column_type)
    rows = rows_of(given_as(pa.table(columns), kind, tmp_path))
    for name, (_, values) in PLAIN.items():
        assert [row[name] for row in rows] == values, name
        assert [type(row[name]) for row in rows] == [type(value) for value in values], name


def test_decimals_become_integers_without_places_and_floats_with(tmp_path):
    table = pa.table({
        "whole": pa.array([decimal.Decimal(5), None], pa.decimal128(38, 0)),
        "cents": pa.array([decimal.Decimal("5.25"), decimal.Decimal("7.00")], pa.decimal128(9, 2)),
        "inner": pa.array([{"d": decimal.Decimal("1.5")}, None], pa.struct([("d", pa.decimal128(9, 1))])),
    })  # fmt: skip
    rows = rows_of(given_as(table, "parquet", tmp_path))
    assert rows == [{"whole": 5, "cents": 5.25, "inner": {"d": 1.5}}, {"whole": None, "cents": 7.0, "inner": None}]
    assert type(rows[0]["whole"]) is int and type(rows[1]["cents"]) is float


def test_no_nanosecond_is_lost():
    moments = pa.array([1_000, 1_001, None, -1], pa.timestamp("ns"))
    zoned = pa.array([1_000, 1_001, None, -1], pa.timestamp("ns", "Europe/Berlin"))
    rows = rows_of(pa.table({"m": moments, "z": zoned}))
    assert [row["m"] for row in rows] == [
        datetime.datetime(1970, 1, 1, 0, 0, 0, 1), "1970-01-01T00:00:00.000001001", None,
        "1969-12-31T23:59:59.999999999",
    ]  # fmt: skip
    assert rows[0]["z"].isoformat() == "1970-01-01T01:00:00.000001+01:00"
    assert rows[1]["z"] == "1970-01-01T01:00:00.000001001+01:00"


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
def test_lists_of_floats_are_vectors(kind, number, tmp_path):
    values = [[1.0, 2.0], None, [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]
    columns = {"fixed": pa.array(values, pa.list_(number, 2))}
    for name, list_type in (("list", pa.list_), ("large", pa.large_list)):
        columns[name] = pa.array(values, list_type(number))
        columns[f"ragged_{name}"] = pa.array([[1.0], None, [], [2.0, 3.0], [4.0]], list_type(number))
    table = pa.table(columns).slice(1, 4)  # offsets that do not begin at zero
    rows = rows_of(given_as(table, kind, tmp_path))
    expected_type = np.float64 if number == pa.float64() else np.float32
    for name in ("fixed", "list", "large"):
        assert rows[0][name] is None
        for row, value in zip(rows[1:], values[2:], strict=True):
            assert row[name].dtype == expected_type and row[name].tolist() == value
    for name in ("ragged_list", "ragged_large"):
        assert [None if row[name] is None else row[name].tolist() for row in rows] == [None, [], [2.0, 3.0], [4.0]]


def test_a_null_within_a_vector_is_not_a_number():
    [row] = rows_of(pa.table({"v": pa.array([[1.0, None]], pa.list_(pa.float32(), 2))}))
    assert row["v"].dtype == np.float32
    np.testing.assert_array_equal(row["v"], [1.0, np.nan])


def test_vectors_of_many_batches_come_back_in_order(tmp_path):
    matrix = np.random.default_rng(0).standard_normal((5000, 8), dtype=np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), 8)
    pq.write_table(pa.table({"n": range(5000), "v": vectors}), tmp_path / "v.parquet", row_group_size=1700)
    [source] = open_sources([tmp_path / "v.parquet"])
    rows = list(source.rows())
    np.testing.assert_array_equal(np.stack([row.fields["v"] for row in rows]), matrix)
    assert [row.number for row in rows] == list(range(1, 5001))
    assert [row.fields["n"] for row in rows] == list(range(5000))
    positions = [row.position for row in rows]
    assert positions == sorted(positions) and positions[-1] == source.total == (tmp_path / "v.parquet").stat().st_size


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_are_known_before_rows_and_empty_tables_have_none(kind, tmp_path):
    given = given_as(pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())}), kind, tmp_path)
    [source] = open_sources([given])
    assert source.columns() == ["a", "b"]
    assert list(source.rows()) == []


@pytest.mark.parametrize("kind", FORMATS)
def test_what_can_be_read_again_gives_the_same(kind, tmp_path):
    [source] = open_sources([given_as(pa.table({"a": [1, 2, 3]}), kind, tmp_path)])
    first = list(source.rows())
    assert [row.fields for row in first] == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert source.rereadable is (kind != "reader")
    assert list(source.rows()) == (first if source.rereadable else [])
    in_memory = kind in ("table", "reader")
    assert source.unit == ("rows" if in_memory else "bytes")
    assert (source.fingerprint() is None) is in_memory
    if in_memory:
        assert [row.position for row in first] == [1, 2, 3]


def test_a_record_batch_and_other_arrow_speakers_are_tables():
    batch = pa.record_batch({"a": [1, 2]})

    class Speaker:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table(batch).__arrow_c_stream__(requested_schema)

    assert rows_of(batch) == rows_of(Speaker()) == [{"a": 1}, {"a": 2}]
    assert "no table of records" in str(refused(pa.array([1, 2]))) or "Array" in str(refused(pa.array([1, 2])))


@pytest.mark.parametrize("kind", FORMATS)
def test_two_columns_of_one_name_are_refused(kind, tmp_path):
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    assert "two columns 'a'" in str(refused(given_as(table, kind, tmp_path)))


def test_the_unnamed_index_that_pandas_saves_is_left_out(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2]}, index=[7, 9])
    frame.to_parquet(tmp_path / "a.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "a.parquet").names
    assert rows_of(tmp_path / "a.parquet") == [{"a": 1}, {"a": 2}]
    frame.rename_axis("key").to_parquet(tmp_path / "b.parquet")
    assert rows_of(tmp_path / "b.parquet") == [{"a": 1, "key": 7}, {"a": 2, "key": 9}]


@pytest.mark.parametrize("kind", ["parquet", "table"])
def test_text_that_is_not_utf8_is_named_by_row_and_column_or_left_out(kind, tmp_path):
    column = pa.array([b"a", b"caf\xe9", b"c"]).view(pa.string())
    table = pa.table({"n": [1, 2, 3], "t": column})
    [source] = open_sources([given_as(table, kind, tmp_path)])
    with pytest.raises(InvalidRecord) as caught:
        list(source.rows())
    assert (caught.value.row, caught.value.field) == (2, "t") and "UTF-8" in str(caught.value)
    told = []
    assert [row.fields["n"] for row in source.rows(on_error=told.append)] == [1, 3]
    assert [error.row for error in told] == [2]


@pytest.mark.parametrize("kind", ["parquet", "table"])
def test_what_on_error_raises_is_not_taken_for_damage(kind, tmp_path):
    table = pa.table({"t": pa.array([b"caf\xe9"]).view(pa.string())})
    [source] = open_sources([given_as(table, kind, tmp_path)])

    def full(error):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        list(source.rows(on_error=full))
    assert not isinstance(caught.value, EmbedstoreError)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "ipc"])
def test_empty_and_foreign_files_are_refused(kind, tmp_path):
    path = tmp_path / f"a.{kind}"
    for content in (b"", b"text, not Arrow", b"PAR1", b"ARROW1\0\0"):
        path.write_bytes(content)
        assert path.name in str(refused(path))


def test_feather_1_is_named(tmp_path):
    (tmp_path / "a.feather").write_bytes(b"FEA1" + b"\0" * 100)
    assert "Feather 1" in str(refused(tmp_path / "a.feather"))


@pytest.mark.parametrize("kind", ["parquet", "feather", "ipc"])
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(kind, tmp_path):
    table = pa.table({
        "n": range(200), "t": [f"text {i}" for i in range(200)], "c": ["a", "b"] * 100, "v": [[1.0, 2.0]] * 200,
    })  # fmt: skip
    path = given_as(table, kind, tmp_path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    n_refused = 0
    for trial in range(60):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: generator.integers(len(whole))]
        else:
            for place in generator.integers(len(whole), size=trial % 10 + 1):
                damaged[place] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            rows_of(path)
        except EmbedstoreError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert n_refused >= 20  # every file that was cut off, at least


BOMB_READER = """
import resource, sys
from embedstore.ingesting.sources import open_sources
import pyarrow.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
n_characters = sum(len(row.fields["text"]) for row in open_sources([sys.argv[1]])[0].rows())
print(n_characters, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only")
@pytest.mark.parametrize("n_short", [0, 3000])
def test_a_small_file_that_unpacks_to_a_gigabyte_is_read_in_little_memory(n_short, tmp_path):
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    texts = pa.DictionaryArray.from_arrays(
        np.r_[np.arange(n_short), np.full(1000, n_short)].astype(np.int32),
        [*map(str, range(n_short)), "x" * 1_000_000],
    )
    pq.write_table(pa.table({"text": texts}), tmp_path / "bomb.parquet", store_schema=False)
    assert (tmp_path / "bomb.parquet").stat().st_size < 200_000
    read = subprocess.run(
        [sys.executable, "-c", BOMB_READER, str(tmp_path / "bomb.parquet")], capture_output=True, text=True, check=True
    )
    n_characters, used_kib = map(int, read.stdout.split())
    assert n_characters == 1_000_000_000 + sum(len(str(i)) for i in range(n_short))
    assert used_kib < 150 * 1024


def test_a_page_that_unpacks_to_far_more_than_it_takes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("embedstore.ingesting.sources.parquet.MAX_UNPACKED_BYTES", 10_000_000)
    table = pa.table({"text": pa.array(["x" * 1_000_000] * 20)})
    pq.write_table(table, tmp_path / "bomb.parquet", use_dictionary=False, compression="zstd")
    assert "'text' unpacks" in str(refused(tmp_path / "bomb.parquet"))


def test_large_values_make_batches_small(tmp_path, monkeypatch):
    sizes = []
    from embedstore.ingesting.sources import parquet

    def noted(batch, *rest):
        sizes.append(batch.num_rows)
        return original(batch, *rest)

    original = parquet.batch_rows
    monkeypatch.setattr(parquet, "batch_rows", noted)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100_000)
    monkeypatch.setattr(parquet, "BATCH_ROWS", 64)
    lists = [[i % 7] * (1 if i < 500 else 1000) for i in range(700)]
    pq.write_table(pa.table({"l": pa.array(lists, pa.list_(pa.int64()))}), tmp_path / "a.parquet")
    assert [row["l"] for row in rows_of(tmp_path / "a.parquet")] == lists
    assert max(sizes) == 64 and set(sizes[-10:-1]) == {12} and sum(sizes) == 700


def test_the_naughty_strings_come_back_from_parquet_and_arrow(data, tmp_path):
    strings = json.loads((data / "naughty_strings" / "blns.json").read_bytes())
    for kind in FORMATS:
        rows = rows_of(given_as(pa.table({"text": strings}), kind, tmp_path))
        assert [row["text"] for row in rows] == strings, kind
