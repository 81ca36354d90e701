import csv
import gzip
import io
import json

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources import open_sources
from embedstore.ingesting.sources.bytestream import ByteStream
from embedstore.ingesting.sources.cells import BATCH_ROWS
from embedstore.ingesting.sources.delimited import CellFormat
from embedstore.ingesting.sources.lines import byte_lines, text_lines

SPECTRUM = (
    "comma_in_quotes", "empty", "empty_crlf", "escaped_quotes", "json", "newlines", "newlines_crlf",
    "quotes_and_newlines", "simple", "simple_crlf", "utf8",
)  # fmt: skip


def refused(source):
    with pytest.raises(InvalidInput) as caught:
        list(source.rows())
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", SPECTRUM)
def test_csv_spectrum_is_read_as_its_json_says(name, data, fields_of):
    folder = data / "csv_spectrum"
    expected = json.loads((folder / "json" / f"{name}.json").read_bytes())
    types = dict.fromkeys(expected[0], "text")
    content = (folder / "csvs" / f"{name}.csv").read_bytes()
    if name.endswith("_crlf") and b"\r" not in content:
        content = content.replace(b"\n", b"\r\n")  # the copy of the data set lost what these files are about
    rows = fields_of("a.csv", content, types=types)
    assert rows == [{column: cell or None for column, cell in record.items()} for record in expected]


def test_each_column_has_the_narrowest_type_that_fits_all_its_cells(source_of):
    source = source_of(
        "a.csv",
        b"n,x,mixed,flag,zip,plus,none,late\n"
        b"1,1.5,1,true,08123,+1,,1\n"
        b"-20,-2e-3,2.5,FALSE,10115,2,,2\n"
        b",,,,,,,\n"
        b"0,3,3,True,00501,3,,x\n",
    )
    assert source.column_types() == {
        "n": "integer", "x": "number", "mixed": "number", "flag": "boolean",
        "zip": "text", "plus": "text", "none": "text", "late": "text",
    }  # fmt: skip
    rows = [row.fields for row in source.rows()]
    assert rows[1] == {
        "n": -20, "x": -0.002, "mixed": 2.5, "flag": False, "zip": "10115", "plus": "2", "none": None, "late": "2",
    }  # fmt: skip
    assert rows[2] == dict.fromkeys(source.columns())
    assert type(rows[0]["mixed"]) is float


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ("9223372036854775807 -9223372036854775808", "integer"),
        ("9223372036854775808 1", "text"),  # one beyond 64 bits: a float would lose digits
        ("9007199254740993 0.5", "text"),  # 2**53 + 1 is no float
        ("0.5 9007199254740993", "text"),
        ("9007199254740992 0.5", "number"),
        ("1e999 1", "text"),
        ("1 1e999", "text"),
        ("-0 1", "number"),
        ("00 1", "text"),
        ("NaN 1.5", "text"),
        ("Infinity 1.5", "text"),
        (".5 1.5", "text"),
        ("1. 1.5", "text"),
        ("1_000 2", "text"),
        ("٣ 1", "text"),  # a digit, though not an ASCII one
        ("true 1", "text"),
        ("1 true", "text"),
        ("yes no", "text"),
    ],
)
def test_a_type_is_inferred_only_where_nothing_is_lost(cells, kind, source_of):
    source = source_of("a.csv", ("a,b\n" + "".join(f"{cell},.\n" for cell in cells.split())).encode())
    assert source.column_types()["a"] == kind


def test_the_last_row_of_a_long_file_can_change_a_columns_type(source_of):
    source = source_of("a.csv", b"a,b\n" + b"7,8\n" * 5000 + b"7,x\n")
    assert source.column_types() == {"a": "integer", "b": "text"}
    assert [row.fields["b"] for row in source.rows()] == ["8"] * 5000 + ["x"]


def test_integers_that_no_float_holds_keep_a_column_from_becoming_numbers_much_later(source_of):
    source = source_of("a.csv", b"a,b\n" + b"9007199254740993,9007199254740992\n" * BATCH_ROWS + b"0.5,0.5\n")
    assert source.column_types() == {"a": "text", "b": "number"}


def test_types_override_what_the_cells_say(fields_of):
    types = {"a": "text", "b": "number", "c": "integer", "d": "boolean"}
    assert fields_of("a.csv", b"a,b,c,d\n1,2,007,TRUE\n,,,\n", types=types) == [
        {"a": "1", "b": 2.0, "c": 7, "d": True},
        {"a": None, "b": None, "c": None, "d": None},
    ]


@pytest.mark.parametrize(
    ("kind", "cell"),
    [("integer", "1.5"), ("integer", "9223372036854775808"), ("number", "1e999"), ("boolean", "1")],
)
def test_a_cell_that_does_not_fit_its_given_type_is_named(kind, cell, source_of):
    error = refused(source_of("a.csv", f"x,y\na,\nb,{cell}\n".encode(), types={"y": kind}))
    assert (error.row, error.field) == (2, "y")
    assert repr(cell) in str(error) and kind in str(error) and "a.csv, row 2, field 'y'" in str(error)


def test_types_for_an_unknown_column_or_of_an_unknown_kind_are_refused(source_of):
    assert "'z'" in str(refused(source_of("a.csv", b"x,y\n1,2\n", types={"z": "text"})))
    with pytest.raises(InvalidInput, match="text, integer, number, boolean"):
        source_of("a.csv", b"x,y\n1,2\n", types={"x": "date"})


def test_columns_kept_as_text_are_not_inferred_and_may_be_absent(fields_of):
    assert fields_of("a.csv", b"id,n\n1,2\n", keep_text=("id", "title")) == [{"id": "1", "n": 2}]


def test_tabs_part_tsv_files_and_commas_do_not(fields_of):
    assert fields_of("a.tsv", b"a\tb\n1,5\t2\n") == [{"a": "1,5", "b": 2}]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_every_line_ending_ends_a_row_and_stays_within_quotes(ending, fields_of):
    text = ending.join(["a,b", f'"x{ending}y",1', "z,2"])
    assert fields_of("a.csv", text.encode()) == [{"a": f"x{ending}y", "b": 1}, {"a": "z", "b": 2}]


class OneByteAtATime(io.BytesIO):
    def read1(self, n_bytes=-1):
        return self.read(1)


def test_lines_are_whole_wherever_the_blocks_are_cut():
    content = b"\xef\xbb\xbf" + 'a\r\né\n\r\r\n"b'.encode()
    stream = ByteStream(OneByteAtATime(content), "pipe")
    assert list(text_lines(stream)) == ["a\r\n", "é\n", "\r", "\r\n", '"b']
    stream = ByteStream(OneByteAtATime(content), "pipe")
    assert list(byte_lines(stream)) == [(3, b"a\r"), (6, "é".encode()), (9, b"\r\r"), (12, b'"b')]


def test_a_byte_order_mark_is_no_part_of_the_first_name(fields_of):
    assert fields_of("a.csv", b"\xef\xbb\xbfa,b\n1,2\n") == [{"a": 1, "b": 2}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_other_encodings_of_unicode_are_named(encoding, source_of):
    bom = b"\xfe\xff" if encoding == "utf-16-be" else b""
    error = refused(source_of("a.csv", bom + "a,b\n1,2\n".encode(encoding)))
    assert "UTF-16" in str(error) and "save it as UTF-8" in str(error)


def test_utf16_without_a_mark_is_refused_for_its_nul_bytes(source_of):
    assert "NUL byte at byte offset 1" in str(refused(source_of("a.csv", "a,b\n1,2\n".encode("utf-16-le"))))


def test_blank_lines_are_skipped_and_a_quoted_empty_cell_is_a_row(source_of):
    rows = list(source_of("a.csv", b'\n\na\n\n1\n\n""\n\n3\n').rows())
    assert [(row.number, row.fields["a"]) for row in rows] == [(1, 1), (2, None), (3, 3)]


def test_a_header_alone_gives_no_rows(source_of):
    source = source_of("a.csv", b"a,b\n")
    assert list(source.rows()) == []
    assert source.columns() == ["a", "b"]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_header_is_refused(content, source_of):
    assert "is empty" in str(refused(source_of("a.csv", content)))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("a,b,a", "names column 'a' twice"),
        ("a,,b", "column 2 of the header has no name"),
        ("a, ,b", "column 2"),
        ("a;b;c", "';'"),
        ("a\tb", "'\\\\t'"),
        ('"a', "never closed"),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(header, said, source_of):
    assert said.replace("\\\\", "\\") in str(refused(source_of("a.csv", f"{header}\n1,2,3\n".encode())))


@pytest.mark.parametrize(("row", "cells"), [("1", "1 cell"), ("1,2,3", "3 cells"), ("1,2,", "3 cells")])
def test_a_ragged_row_is_named_before_any_row_is_given(row, cells, source_of):
    rows = source_of("a.csv", f"a,b\n1,2\n\n{row}\n".encode()).rows()
    with pytest.raises(InvalidRecord, match=f"row 2: the row has {cells}; the header has 2"):
        next(rows)


@pytest.mark.parametrize(
    ("row", "said"),
    [('1,"x', "never closed"), ('1,"x\n2,3\n', "never closed"), ('1,"x"y', "written twice")],
)
def test_broken_quotes_are_named_with_the_row_they_begin_in(row, said, source_of):
    error = refused(source_of("a.csv", f"a,b\n1,2\n{row}".encode()))
    assert error.row == 2 and said in str(error)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_what_is_not_utf8_is_named_by_row_and_offset_in_the_unpacked_file(mark, suffix, source_of):
    content = mark + b"a,b\n" + b"x,y\n" * 100_000 + b"caf\xe9,y\nx,y\n"
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    error = refused(source_of(f"a.csv{suffix}", pack(content)))
    assert error.row == 100_001
    assert f"byte offset {content.index(0xE9)}" in str(error) and "(E9)" in str(error)


def test_nul_is_refused_with_its_row_and_offset(source_of):
    error = refused(source_of("a.csv", b"a,b\n1,2\n1,\0\n"))
    assert error.row == 2 and "NUL byte at byte offset 10" in str(error)


def test_a_cell_may_be_far_longer_than_csv_allows_elsewhere(fields_of):
    before = csv.field_size_limit()
    long = "x" * (before + 1000)
    assert fields_of("a.csv", f"a,b\n{long},1\n".encode()) == [{"a": long, "b": 1}]
    assert csv.field_size_limit() == before


def test_the_limit_for_others_stays_while_a_reader_rests(source_of):
    before = csv.field_size_limit()
    rows = source_of("a.csv", b"a,b\n1,2\n3,4\n").rows()
    next(rows)
    assert csv.field_size_limit() == before


def test_rows_at_fault_are_told_and_left_out_where_the_caller_asks(source_of):
    source = source_of("a.csv", b'a,b\n1,2\n3\n4,5\n"x"y,6\ncaf\xe9,7\n8,9\n1.5,\0\n10,11\n', types={"b": "integer"})
    told = []
    rows = list(source.rows(on_error=told.append))
    assert [(row.number, row.fields) for row in rows] == [
        (1, {"a": 1, "b": 2}), (3, {"a": 4, "b": 5}), (6, {"a": 8, "b": 9}), (8, {"a": 10, "b": 11}),
    ]  # fmt: skip
    assert [error.row for error in told] == [2, 4, 5, 7]
    assert all(error.source == source.name for error in told)
    assert "1 cell" in told[0].reason and "written twice" in told[1].reason
    assert "byte E9" in told[2].reason and "NUL" in told[3].reason
    refused(source)  # and without it they still stop the reading


def test_an_open_quote_stops_the_reading_even_where_rows_may_be_left_out(source_of):
    with pytest.raises(InvalidRecord, match="row 2: a quote that opens in this row is never closed"):
        list(source_of("a.csv", b'a,b\n1,2\n3,"4\n5,6\n').rows(on_error=lambda error: None))


def test_types_are_told_anew_when_the_file_has_changed(source_of, tmp_path):
    source = source_of("a.csv", b"a,b\n1,2\n")
    assert source.column_types()["b"] == "integer"
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,longer\n")
    assert [row.fields for row in source.rows()] == [{"a": 1, "b": "longer"}]


def test_position_ends_at_the_size_of_the_packed_file(source_of):
    source = source_of("a.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 10_000))
    positions = [row.position for row in source.rows()]
    assert positions == sorted(positions)
    assert positions[-1] == source.total and source.unit == "bytes"


def test_the_naughty_strings_come_back_from_csv(data, fields_of):
    strings = json.loads((data / "naughty_strings" / "blns.json").read_bytes())
    strings = [text for text in strings if "\0" not in text]
    written = io.StringIO(newline="")
    csv.writer(written).writerows([("n", "text"), *enumerate(strings)])
    rows = fields_of("a.csv", written.getvalue().encode())
    assert [row["text"] for row in rows] == [text or None for text in strings]


def test_latin1_is_refused_with_the_offset_of_its_first_byte(data, source_of):
    latin1 = (data / "sentence_clf" / "TREC.train.all").read_bytes()
    first = next(place for place, byte in enumerate(latin1) if byte > 127)
    written = b"text\n" + latin1.replace(b'"', b"'").replace(b",", b" ")
    assert f"byte offset {first + 5}" in str(refused(source_of("a.csv", written)))


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(CELLS, CELLS, st.booleans()), max_size=8), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_text_comes_back_from_csv(source_of, cells, ending):
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator=ending, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b", "c"), *cells])
    source = source_of("any.csv", written.getvalue().encode(), types={"a": "text", "b": "text"})
    expected = [{"a": a or None, "b": b or None, "c": c} for a, b, c in cells]
    assert [row.fields for row in source.rows()] == expected


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "utf-8-sig", "cp1252", "utf-32"])
@pytest.mark.parametrize("compressed", [False, True])
def test_other_delimiters_encodings_and_no_header(source_of, encoding, compressed):
    rows = [{"id": f"r{i}", "text": f"Crème; brûlée {i}" * 40, "n": i} for i in range(3000)]
    content = "".join(f'{row["id"]};"{row["text"]}";{row["n"]}\r\n' for row in rows).encode(encoding)
    written = CellFormat(";", ("id", "text", "n"), encoding)
    name = "a.csv.gz" if compressed else "a.csv"
    source = source_of(name, gzip.compress(content) if compressed else content, written=written)
    found = list(source.rows())
    assert [row.fields for row in found] == rows
    assert [row.number for row in found[:3]] == [1, 2, 3]
    assert source.column_types() == {"id": "text", "text": "text", "n": "integer"}


@pytest.mark.parametrize("given", [
    {"delimiter": ";;"}, {"delimiter": '"'}, {"delimiter": ""}, {"columns": ()}, {"columns": ("a", " ")},
    {"columns": ("a", "a")}, {"columns": ("a", "te\udcff")}, {"delimiter": "\udcff"}, {"delimiter": b";"},
    {"encoding": 5}, {"encoding": "klingon"}, {"encoding": "base64"},
])  # fmt: skip
def test_what_no_file_can_be_written_in_is_refused(given):
    with pytest.raises(InvalidInput) as caught:
        CellFormat(**given)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_in_the_encoding_that_was_named_is_refused(source_of):
    error = refused(source_of("a.csv", "text\nö\n".encode("latin-1"), written=CellFormat(encoding="ascii")))
    assert "the file is not in ascii, as was said" in str(error)
    told = []
    lines = b"text\nx\n\xff\ny\n"
    source = source_of("b.csv", lines, written=CellFormat(encoding="UTF8"))
    assert [row.fields["text"] for row in source.rows(on_error=told.append)] == ["x", "y"] and len(told) == 1
    rows = list(source_of("c.csv", b"text: a, or b\n1\n", written=CellFormat(";")).rows())
    assert rows[0].fields == {"text: a, or b": 1}
    error = refused(source_of("a.csv", b"a;b\n1;2\n"))
    assert "(--delimiter ';', delimiter=';')" in str(error)
    error = refused(source_of("a.csv", b"1,2\n3\n", written=CellFormat(columns=("a", "b"))))
    assert "the row has 1 cell" in str(error)


def test_the_format_is_for_files_of_cells(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}')
    with pytest.raises(InvalidInput, match="are for CSV and TSV files"):
        open_sources([str(tmp_path / "a.jsonl")], written=CellFormat(";"))
