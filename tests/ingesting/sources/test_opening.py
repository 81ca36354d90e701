import errno
import os
import pathlib
import subprocess
import sys

import pytest

from embedstore.errors import InvalidInput, InvalidRecord, StorageFailed
from embedstore.ingesting.sources import open_sources


def refused(given, **options):
    with pytest.raises(InvalidInput) as caught:
        open_sources(given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write(folder, *names, content=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def keys_of(source):
    return [row.fields["key"] for row in source.rows()]


def test_a_folder_is_one_source_of_its_texts_in_order(tmp_path):
    write(tmp_path, "b.md", "a.txt", "sub/c.MARKDOWN", "sub/deep/a.txt", "picture.png")
    [source] = open_sources([tmp_path])
    assert keys_of(source) == ["a.txt", "b.md", "sub/c.MARKDOWN", "sub/deep/a.txt"]
    assert source.name == str(tmp_path)
    assert (source.total, source.unit, source.rereadable) == (4, "bytes", True)


def test_a_text_row_says_where_it_comes_from(tmp_path):
    write(tmp_path, "sub/a.md", content=b"\xef\xbb\xbf# Caf\xc3\xa9\r\n")
    os.utime(tmp_path / "sub" / "a.md", (1_700_000_000, 1_700_000_000))
    [row] = open_sources([tmp_path])[0].rows()
    assert row.fields == {
        "key": "sub/a.md",
        "text": "# Café\r\n",
        "uri": str(tmp_path / "sub" / "a.md"),
        "name": "a.md",
        "modified": "2023-11-14T22:13:20+00:00",
    }
    assert open_sources([tmp_path])[0].columns() == list(row.fields)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write(tmp_path, ".hidden.txt", ".git/a.txt", "a.txt", "sub/.b.txt")
    assert keys_of(open_sources([tmp_path])[0]) == ["a.txt"]


def test_loops_of_links_end_and_linked_folders_are_read_once(tmp_path):
    write(tmp_path, "top/z/a.txt")
    write(tmp_path, "elsewhere/b.txt")
    (tmp_path / "top" / "z" / "loop").symlink_to(tmp_path / "top")
    for link in ("again", "zz"):  # before and after what they point to
        (tmp_path / "top" / link).symlink_to(tmp_path / "top" / "z")
    (tmp_path / "top" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "top")
    assert keys_of(open_sources([tmp_path / "top"])[0]) == ["linked/b.txt", "z/a.txt"]


def test_a_link_to_nothing_is_refused_by_name(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    assert "gone.txt" in refused([tmp_path])
    assert "gone.txt" in refused([tmp_path / "gone.txt"])


def test_a_folder_of_data_files_is_a_source_a_file(tmp_path):
    write(tmp_path, "b.csv", "a/c.jsonl", "notes.pdf", content=b"a\n1\n")
    assert [source.name for source in open_sources([tmp_path])] == [
        str(tmp_path / "a" / "c.jsonl"), str(tmp_path / "b.csv"),
    ]  # fmt: skip


def test_data_files_beside_texts_are_left_out_and_told(tmp_path):
    write(tmp_path, "README.md", "films.csv")
    [source] = open_sources([tmp_path])
    assert keys_of(source) == ["README.md"]
    assert source.left_out == (str(tmp_path / "films.csv"),)


def test_a_folder_with_nothing_to_read_is_refused(tmp_path):
    write(tmp_path, "a.exe", ".b.txt")
    assert ".csv" in refused([tmp_path])


def test_a_single_text_file_has_its_name_as_key(tmp_path):
    write(tmp_path, "a b.txt")
    assert keys_of(open_sources([str(tmp_path / "a b.txt")])[0]) == ["a b.txt"]


def test_a_pattern_gives_sorted_files_and_one_source_of_texts(tmp_path):
    write(tmp_path, "b.csv", "a.csv", "z.txt", "sub/a.csv", "sub/y.md", ".hidden.csv", content=b"a\n1\n")
    assert [source.name for source in open_sources([f"{tmp_path}/*.csv"])] == [
        str(tmp_path / "a.csv"), str(tmp_path / "b.csv"),
    ]  # fmt: skip
    texts, *tables = open_sources([f"{tmp_path}/**/*.*"])
    assert keys_of(texts) == ["sub/y.md", "z.txt"]
    assert [os.path.relpath(source.name, tmp_path) for source in tables] == ["a.csv", "b.csv", "sub/a.csv"]


def test_a_pattern_without_a_match_is_refused(tmp_path):
    assert "no file matches" in refused([f"{tmp_path}/*.csv"])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path, "a[1].csv", "a1.csv", content=b"a\n1\n")
    assert [source.name for source in open_sources([tmp_path / "a[1].csv"])] == [str(tmp_path / "a[1].csv")]


def test_patterns_relative_to_the_working_folder_keep_relative_names(tmp_path, monkeypatch):
    write(tmp_path, "docs/a.md", "docs/in/a.md")
    monkeypatch.chdir(tmp_path)
    [source] = open_sources(["docs/**/*.md"])
    assert [(row.fields["key"], row.fields["uri"]) for row in source.rows()] == [
        ("a.md", "docs/a.md"), ("in/a.md", "docs/in/a.md"),
    ]  # fmt: skip


def test_two_texts_of_one_key_are_refused(tmp_path):
    write(tmp_path, "a/x.md", "b/x.md")
    message = refused([tmp_path / "a" / "x.md", tmp_path / "b" / "x.md"])
    assert "same key 'x.md'" in message
    assert keys_of(open_sources([tmp_path])[0]) == ["a/x.md", "b/x.md"]


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.csv.bz2", "a.pickle", ".csv"])
def test_an_unknown_suffix_is_refused_with_the_known_ones(name, tmp_path):
    write(tmp_path, name)
    message = refused([tmp_path / name])
    assert all(suffix in message for suffix in (".csv", ".jsonl", ".parquet", ".md", ".zst"))


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.arrow.zst"])
def test_compressed_wrappers_of_binary_files_are_refused(name, tmp_path):
    write(tmp_path, name)
    assert "unpack it first" in refused([tmp_path / name])


@pytest.mark.parametrize("path", ["nowhere.csv", "", "no/where.csv", "a\0b.csv", "x" * 5000 + ".csv"])
def test_what_is_not_there_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "there is no file" in refused([path]) or "cannot be read" in refused([path])


def test_a_pipe_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    assert "pipe JSON lines into '-'" in refused([tmp_path / "a.jsonl"])


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, InvalidInput), (errno.EIO, StorageFailed), (errno.EMFILE, StorageFailed)]
)
def test_what_cannot_be_opened_is_one_line_with_the_reason(number, kind, tmp_path, monkeypatch):
    def refuse(path, *rest, **more):
        raise OSError(number, os.strerror(number), path)

    write(tmp_path, "a.csv")
    [source] = open_sources([tmp_path / "a.csv"])
    monkeypatch.setattr("embedstore.ingesting.sources.bytestream.open", refuse, raising=False)
    with pytest.raises(kind, match=f"a.csv' cannot be read: {os.strerror(number)}$"):
        list(source.rows())


def test_a_file_that_vanishes_is_refused_when_it_is_read(tmp_path):
    write(tmp_path, "a.csv", content=b"a\n1\n")
    [source] = open_sources([tmp_path / "a.csv"])
    (tmp_path / "a.csv").unlink()
    with pytest.raises(InvalidInput, match="there is no file"):
        list(source.rows())


def test_texts_that_are_not_utf8_are_named_with_the_byte_offset_or_left_out(tmp_path, data):
    write(tmp_path, "a.txt", "c.txt", content=b"fine")
    write(tmp_path, "b.txt", content=(data / "utf8" / "UTF-8-test.txt").read_bytes())
    [source] = open_sources([tmp_path])
    with pytest.raises(InvalidRecord, match=r"row 2: the file 'b.txt' .* byte offset 4461"):
        list(source.rows())
    told = []
    assert [row.number for row in source.rows(on_error=told.append)] == [1, 3]
    assert [error.row for error in told] == [2]


def test_utf16_texts_and_texts_over_the_limit_are_refused(tmp_path, monkeypatch):
    write(tmp_path, "a.txt", content="text".encode("utf-16"))
    with pytest.raises(InvalidRecord, match="UTF-16"):
        list(open_sources([tmp_path])[0].rows())
    monkeypatch.setattr("embedstore.ingesting.sources.text_files.MAX_TEXT_BYTES", 10)
    write(tmp_path, "a.txt", content=b"x" * 11)
    with pytest.raises(InvalidRecord, match="'a.txt' has over"):
        list(open_sources([tmp_path])[0].rows())


def test_mappings_are_rows_and_only_sequences_are_read_again():
    [source] = open_sources([[{"a": 1}, {"a": 2}]])
    assert [row.fields for row in source.rows()] == [row.fields for row in source.rows()] == [{"a": 1}, {"a": 2}]
    assert (source.name, source.total, source.rereadable, source.fingerprint()) == ("list", 2, True, None)
    [source] = open_sources([({"a": n} for n in range(3))])
    assert [(row.number, row.position) for row in source.rows()] == [(1, 1), (2, 2), (3, 3)]
    assert (source.name, source.total, source.rereadable) == ("generator", None, False)


def test_an_item_that_is_no_mapping_is_named_or_left_out():
    [source] = open_sources([[{"a": 1}, "b", {"a": 3}]])
    with pytest.raises(InvalidRecord, match="list, row 2: a record must be a mapping of fields, not str"):
        list(source.rows())
    told = []
    assert [row.number for row in source.rows(on_error=told.append)] == [1, 3]
    assert told[0].row == 2


@pytest.mark.parametrize("given", ["a.csv", b"a.csv", {"a": 1}, pathlib.Path("a.csv")])
def test_sources_are_given_as_a_list(given):
    assert "as a list" in refused(given)


@pytest.mark.parametrize("item", [{"a": 1}, b"a.csv", 42, None])
def test_what_is_no_source_is_refused(item):
    assert "no source" in refused([item])


def test_standard_input_can_be_given_once():
    assert "twice" in refused(["-", "-"])


def test_types_without_a_csv_file_are_refused():
    assert "CSV" in refused([[{"a": 1}]], types={"a": "text"})


def test_a_fingerprint_changes_with_the_file_and_with_nothing_else(tmp_path, monkeypatch):
    write(tmp_path, "a.csv", "t/a.txt", "t/b.txt")
    for given, changed in (("a.csv", "a.csv"), ("t", "t/b.txt")):
        first = open_sources([tmp_path / given])[0].fingerprint()
        assert len(first) == 32 and int(first, 16)
        monkeypatch.chdir(tmp_path)
        assert open_sources([given])[0].fingerprint() == first
        os.utime(tmp_path / changed, ns=(1, 1))
        assert open_sources([given])[0].fingerprint() != first


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".txt"])
@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_stream_that_is_cut_off_or_damaged_is_refused(suffix, packing, tmp_path):
    import gzip
    import random

    import zstandard

    pack = gzip.compress if packing == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress
    content = {".csv": b"a\n1\n", ".jsonl": b'{"a": 1}\n', ".json": b"[]", ".txt": b"text"}[suffix]
    content += random.Random(0).randbytes(2000).hex().encode() if suffix == ".txt" else b""
    whole = pack(content)
    path = tmp_path / f"a{suffix}{packing}"
    path.write_bytes(whole + whole if suffix == ".txt" else whole)
    [source] = open_sources([path])
    assert list(source.rows()) or suffix == ".json"
    damaged = bytearray(whole)
    damaged[-6] ^= 0xFF
    for content in (whole[:-1], whole[: len(whole) // 2], bytes(damaged), b"not packed at all", whole + b"rest"):
        path.write_bytes(content)
        with pytest.raises(InvalidInput, match="stream ") as caught:
            list(source.rows())
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_frames_one_after_another_are_one_stream(tmp_path):
    import gzip

    import zstandard

    for packing, pack in ((".gz", gzip.compress), (".zst", zstandard.compress)):
        path = tmp_path / f"a.txt{packing}"
        path.write_bytes(pack(b"one ") + pack(b"") + pack(b"two ") + pack(b"x" * 1_000_000))
        [row] = open_sources([path])[0].rows()
        assert row.fields["text"] == "one two " + "x" * 1_000_000


def test_importing_and_reading_csv_loads_nothing_heavy(tmp_path):
    write(tmp_path, "a.csv", content=b"a,b\n1,2\n")
    code = (
        "import sys\n"
        "from embedstore.ingesting.sources import open_sources\n"
        f"list(open_sources([{str(tmp_path / 'a.csv')!r}])[0].rows())\n"
        "print([name for name in ('pyarrow', 'pandas', 'zstandard', 'torch') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
