import gzip
import io
import json
import random

import pytest

from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord
from embedstore.ingesting.sources import open_sources
from embedstore.ingesting.sources.json_records import parsed


def refused(source):
    with pytest.raises(InvalidInput) as caught:
        list(source.rows())
    assert "\n" not in str(caught.value)
    return caught.value


def torture(folder, prefix):
    found = sorted(folder.glob(f"{prefix}_*.json"))
    assert found
    return found


def test_all_valid_json_is_parsed_as_the_standard_library_parses_it(data):
    for path in torture(data / "json_torture", "y"):
        text = path.read_bytes()
        assert parsed(text, 0) == json.loads(text), path.name


def test_valid_json_gives_records_where_it_is_objects_and_is_refused_where_not(data):
    for path in torture(data / "json_torture", "y"):
        document = json.loads(path.read_bytes())
        records = [document] if isinstance(document, dict) else document
        [source] = open_sources([path])
        if isinstance(records, list) and all(isinstance(record, dict) for record in records):
            assert [row.fields for row in source.rows()] == records, path.name
        else:
            assert path.name in str(refused(source))


def test_invalid_json_is_refused_in_one_line_as_document_and_as_lines(data, tmp_path):
    for path in torture(data / "json_torture", "n"):
        assert path.name in str(refused(open_sources([path])[0]))
        text = path.read_bytes()
        if not text.removeprefix(b"\xef\xbb\xbf").strip() or b"\n" in text.strip():
            continue  # lines without anything are no records, and two lines are two documents
        lines = tmp_path / "lines.jsonl"
        lines.write_bytes(text)
        assert refused(open_sources([lines])[0]).row == 1, path.name


def test_a_hundred_thousand_open_brackets_are_refused(fields_of):
    with pytest.raises(InvalidInput, match="depth"):
        fields_of("deep.json", b"[" * 100_000)
    with pytest.raises(InvalidRecord, match="row 1"):
        fields_of("deep.jsonl", b'{"a":' * 100_000)


def test_a_document_is_a_list_of_objects_or_one_object(fields_of):
    assert fields_of("a.json", b' [{"a": 1}, {"b": null}] ') == [{"a": 1}, {"b": None}]
    assert fields_of("b.json", b'\xef\xbb\xbf{"a": {"b": [1]}}') == [{"a": {"b": [1]}}]
    assert fields_of("c.json", b"[]") == []


def test_an_element_that_is_no_object_is_named_by_its_row(source_of):
    source = source_of("a.json", b'[{"a": 1}, [2], {"a": 3}]')
    assert refused(source).row == 2
    told = []
    assert [row.number for row in source.rows(on_error=told.append)] == [1, 3]
    assert str(told[0]) == f"{source.name}, row 2: a record must be an object, not a list"


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b" \n", "is empty"), (b"42", "not a number")])
def test_a_document_without_records_is_refused(content, said, source_of):
    assert said in str(refused(source_of("a.json", content)))


def test_json_lines_under_the_name_json_are_recognised(source_of):
    assert ".jsonl" in str(refused(source_of("a.json", b'{"a": 1}\n{"a": 2}\n')))


def test_a_document_over_the_limit_is_refused_while_it_is_read(source_of, monkeypatch):
    monkeypatch.setattr("embedstore.ingesting.sources.json_records.MAX_DOCUMENT_BYTES", 1000)
    assert ".jsonl" in str(refused(source_of("a.json.gz", gzip.compress(b"[" + b" " * 2000 + b"]"))))


def test_lines_are_numbered_as_an_editor_numbers_them(source_of):
    source = source_of("a.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"a": "\xc3\xa9"}')
    assert [(row.number, row.fields) for row in source.rows()] == [(1, {"a": 1}), (4, {"a": "é"})]
    assert source.columns() is None and source.rereadable


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": 1', "not JSON"),
        (b'{"a": NaN}', "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[1]", "not a list"),
        (b"null", "not null"),
        (b"true", "not a boolean"),
        (b'"x"', "not a text"),
        (b'{"a": 1}{"a": 2}', "after document"),
        (b'{"a": 18446744073709551616}', "64 bits"),
        (b'{"a": [-9223372036854775809]}', "64 bits"),
    ],
)
def test_a_line_at_fault_is_named_or_left_out(line, said, source_of):
    source = source_of("a.ndjson", b'{"a": 0}\n\n' + line + b'\n{"a": 3}\n')
    error = refused(source)
    assert error.row == 3 and said in str(error) and error.source == source.name
    told = []
    assert [row.number for row in source.rows(on_error=told.append)] == [1, 4]
    assert [error.row for error in told] == [3]


def test_long_numbers_that_lose_nothing_as_integers_are_read(fields_of):
    line = b'{"a": -9223372036854775808, "b": 9223372036854775807, "c": 0.12345678901234567890}'
    assert fields_of("a.jsonl", line) == [json.loads(line)]
    line = b'{"d": "99999999999999999999", "e": 1e30}'
    assert fields_of("a.jsonl", line) == [json.loads(line)]


def test_what_is_not_utf8_is_named_by_its_offset_in_the_file(source_of):
    content = b'{"a": 1}\n{"a": "caf\xe9"}\n'
    error = refused(source_of("a.jsonl.gz", gzip.compress(content)))
    assert error.row == 2 and f"byte offset {content.index(0xE9)}" in str(error)
    assert "byte offset 9:" in str(refused(source_of("a.json", b'\xef\xbb\xbf[{"a":\xff}]')))


def test_utf16_is_named(source_of):
    assert "UTF-16" in str(refused(source_of("a.jsonl", '{"a": 1}\n'.encode("utf-16"))))
    assert "UTF-16" in str(refused(source_of("a.json", '[{"a": 1}]'.encode("utf-16"))))


def test_lines_longer_than_a_block_are_whole_and_too_long_ones_refused(source_of, fields_of, monkeypatch):
    long = "é" * 400_000
    content = json.dumps({"a": long}, ensure_ascii=False).encode() + b'\n{"a": 2}\n'
    assert fields_of("a.jsonl", content) == [{"a": long}, {"a": 2}]
    monkeypatch.setattr("embedstore.ingesting.sources.lines.MAX_LINE_BYTES", 500_000)
    error = refused(source_of("b.jsonl", b'{"a": 1}\n' + content))
    assert error.row == 2 and "longer than" in str(error)


def test_standard_input_is_read_once_and_as_it_comes():
    class Pipe(io.BytesIO):
        def read(self, n_bytes=-1):
            raise AssertionError("read() of a pipe waits until all is there")

    [source] = open_sources(["-"], stdin=Pipe(b'{"a": 1}\nnonsense\n{"a": 3}'))
    assert (source.name, source.rereadable, source.total, source.fingerprint()) == (
        "stdin",
        False,
        None,
        None,
    )
    told = []
    rows = list(source.rows(on_error=told.append))
    assert [row.fields for row in rows] == [{"a": 1}, {"a": 3}]
    assert str(told[0]).startswith("stdin, row 2: not JSON")
    assert rows[-1].position == 26


def test_the_naughty_strings_come_back_from_json_lines(data, fields_of):
    strings = json.loads((data / "naughty_strings" / "blns.json").read_bytes())
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in strings).encode()
    assert [row["text"] for row in fields_of("a.jsonl", content)] == strings


def test_a_thousand_damaged_lines_are_each_refused_or_read():
    generator = random.Random(0)
    n_refused = 0
    for _ in range(1000):
        line = bytearray(b'{"key": "k1", "text": "caf\xc3\xa9", "n": [1, 2.5e3, true]}')
        line[generator.randrange(len(line))] = generator.randrange(256)
        [source] = open_sources(["-"], stdin=io.BytesIO(line))
        try:
            assert all(isinstance(row.fields, dict) for row in source.rows())
        except EmbedstoreError as error:
            n_refused += 1
            assert "\n" not in str(error)
    assert 500 < n_refused < 1000
