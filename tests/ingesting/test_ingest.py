"""Ingest: whatever the input, whole batches, nothing encoded twice, errors before anything is written."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

import embedstore
from embedstore import DuplicateKey, InvalidInput, InvalidRecord

ROWS = [
    {"id": "a", "text": "aab", "year": 2001, "open": True},
    {"id": "b", "text": "bbc", "year": 2002, "open": False},
    {"id": "c", "text": "ccd", "year": None, "open": True},
]


def write_csv(path, rows=ROWS):
    lines = [",".join(rows[0])]
    lines += [
        ",".join("" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in row.values())
        for row in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def inputs(tmp_path):
    table = pyarrow.Table.from_pylist(ROWS)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pyarrow.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    return {
        "csv": write_csv(tmp_path / "rows.csv"), "jsonl": tmp_path / "rows.jsonl", "gz": tmp_path / "rows.jsonl.gz",
        "json": tmp_path / "rows.json", "parquet": tmp_path / "rows.parquet", "arrow": tmp_path / "rows.arrow",
        "table": table, "frame": pandas.DataFrame(ROWS).astype({"year": "Int64"}), "iterator": iter(ROWS), "list": ROWS,
    }  # fmt: skip


KINDS = ["csv", "jsonl", "gz", "json", "parquet", "arrow", "table", "frame", "iterator", "list"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gives_the_same_records(store, tmp_path, kind):
    collection = store.collection("c", encoder="letters")
    report = collection.ingest(inputs(tmp_path)[kind])
    assert (report.added, report.encoded) == (3, 3)
    assert collection.get("a").metadata == {"year": 2001, "open": True}
    assert collection.get("c").metadata == {"open": True}
    assert collection.search("ccd", k=1).keys == ["c"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_encodes_nothing_and_a_changed_row_alone(store, tmp_path, kind, letters_calls):
    collection = store.collection("c", encoder="letters")
    collection.ingest(inputs(tmp_path)[kind])
    letters_calls.clear()
    report = collection.ingest(inputs(tmp_path)[kind])
    assert (report.unchanged, report.encoded, letters_calls) == (3, 0, [])
    changed = [ROWS[0], {**ROWS[1], "text": "eee"}, {**ROWS[2], "year": 1}]
    report = collection.ingest(changed)
    assert (report.updated, report.unchanged, report.encoded) == (2, 1, 1)


def test_prune_removes_what_the_input_no_longer_holds(store):
    collection = store.collection("c", encoder="letters")
    collection.ingest(ROWS)
    report = collection.ingest(ROWS[1:], prune=True)
    assert (report.deleted, report.unchanged) == (1, 2)
    assert "a" not in collection
    with pytest.raises(InvalidInput, match="would delete every record"):
        collection.ingest([], prune=True)
    assert len(collection) == 2


def test_fields_are_chosen_by_name_or_asked_for(store, tmp_path):
    collection = store.collection("c", encoder="letters")
    rows = [{"doi": "x/1", "title": "aa", "abstract": "bb", "venue": "V", "n": 1}]
    with pytest.raises(InvalidInput, match="which field holds the text.*doi, title, abstract, venue, n"):
        collection.ingest(rows)
    with pytest.raises(InvalidInput, match="has no field 'body', which was named for text"):
        collection.ingest(rows, text="body")
    collection.ingest(rows, text="title,abstract", key="doi", metadata=["venue"])
    record = collection.get("x/1")
    assert (record.content, record.metadata) == ("aa bb", {"venue": "V"})


def test_rows_without_a_key_are_named_by_file_and_row(store, tmp_path):
    collection = store.collection("c", encoder="letters")
    collection.ingest(write_csv(tmp_path / "x.csv", [{"text": "aa"}, {"text": "bb"}]))
    assert [record.key for record in collection.records()] == ["x.csv:1", "x.csv:2"]
    os.mkdir(tmp_path / "d")
    report = collection.ingest(
        write_csv(tmp_path / "d" / "x.csv", [{"text": "cc"}]), write_csv(tmp_path / "x.csv", [{"text": "aa"}])
    )
    assert report.added == 2


def test_given_vectors_go_into_a_collection_without_an_encoder(store, tmp_path):
    matrix = np.random.default_rng(0).standard_normal((50, 7)).astype(np.float32)
    table = pyarrow.table({
        "key": [str(i) for i in range(50)], "text": ["x"] * 50,
        "embedding": pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(matrix.ravel()), 7),
    })  # fmt: skip
    collection = store.collection("c", encoder="none")
    assert collection.ingest(table, vector="embedding").added == 50
    assert collection.vectors(["33"]).tobytes() == matrix[33].tobytes()
    assert collection.get("33").metadata == {}


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([*ROWS, {"id": "d", "text": " "}], InvalidRecord, r"rows.jsonl, row 4, field 'text': the text is empty"),
        ([*ROWS, {"id": "a", "text": "x"}], DuplicateKey, r"row 4, field 'key': key 'a' is in row 1 already"),
        ([*ROWS, {"id": None, "text": "x"}], InvalidRecord, r"row 4, field 'key': the key is empty"),
        ([*ROWS, {"id": "d", "text": "x", "m": "\ud800"}], InvalidRecord, r"row 4"),
        ([*ROWS, {"id": "d"}], InvalidRecord, r"row 4, field 'text': the text is missing"),
    ],
)
def test_an_input_with_a_bad_row_is_refused_before_anything_is_written(store, tmp_path, rows, error, message):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection = store.collection("c", encoder="letters")
    with pytest.raises(error, match=message):
        collection.ingest(path)
    assert len(collection) == 0


def test_bad_rows_can_be_skipped_and_are_written_down(store, tmp_path):
    rows = [*ROWS, {"id": "d", "text": " "}, {"id": "a", "text": "again"}, {"id": "e", "text": "eee"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    collection = store.collection("c", encoder="letters")
    report = collection.ingest(path, on_error="skip", rejects=str(tmp_path / "rejects.jsonl"))
    assert (report.added, report.failed) == (4, 3)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(one["row"], one["field"]) for one in rejects] == [(7, None), (4, "text"), (5, "key")] or [
        (one["row"], one["field"]) for one in rejects
    ] == [(4, "text"), (5, "key"), (7, None)]
    assert collection.get("a").content == "aab"


def test_options_that_contradict_each_other_are_refused(store):
    collection = store.collection("c", encoder="letters")
    for options, message in [
        ({"prune": True, "on_error": "skip"}, "one or the other"),
        ({"rejects": "x"}, "needs on_error='skip'"),
        ({"on_error": "ignore"}, "'abort' or 'skip'"),
        ({"chunk": 2}, "at least 8 tokens"),
        ({"chunk": 10, "chunk_overlap": 10}, "less than chunk"),
        ({"colour": "red"}, "does not know such an option"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            collection.ingest(ROWS, **options)
    with pytest.raises(InvalidInput, match="nothing to ingest"):
        collection.ingest()


def test_long_texts_are_cut_into_records_that_know_their_text(store):
    collection = store.collection("c", encoder="letters")
    text = " ".join(f"word{i}" for i in range(40))
    collection.ingest([{"id": "long", "text": text, "year": 1}, {"id": "short", "text": "few words"}], chunk=10)
    pieces = list(collection.records("chunk_of = 'long'"))
    assert [piece.key for piece in pieces] == [f"long#{i}" for i in range(len(pieces))]
    assert len(pieces) >= 4
    for piece in pieces:
        assert text[piece.metadata["chunk_start"] : piece.metadata["chunk_end"]] == piece.content
        assert len(piece.content.split()) <= 10
        assert piece.metadata["year"] == 1
    assert collection.get("short#0").content == "few words"
    collection.ingest([{"id": "long", "text": "now it is short"}], chunk=10)
    assert [record.key for record in collection.records("chunk_of = 'long'")] == ["long#0"]


def test_progress_is_told(store):
    seen = []
    collection = store.collection("c", encoder="letters")
    collection.ingest(ROWS * 1, progress=seen.append)
    assert seen[-1].n_rows == 3
    assert seen[-1].phase == "writing"


def test_memory_stays_flat_whatever_the_size(tmp_path):
    script = (
        "import embedstore, resource, sys\n"
        "def rows(n):\n"
        "    return ({'key': str(i), 'text': 'x' * 2000, 'vector': [float(i), 1.0]} for i in range(n))\n"
        "c = embedstore.open(sys.argv[1]).collection('c', encoder='none')\n"
        "c.ingest(rows(60_000))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "c.ingest(rows(240_000))\n"
        "print(len(c), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "s")], capture_output=True, text=True, check=True
    )
    n, grown = done.stdout.split()
    assert n == "240000"
    assert float(grown) < 120  # MB; the 180,000 further texts alone are 360 MB


@pytest.mark.parametrize(("word", "code"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGKILL", -9)])
def test_an_interrupted_ingest_goes_on_where_it_was(tmp_path, run_cli, word, code):
    rows = [{"id": f"k{i}", "text": "abcde"[i % 5] * (i % 17 + 1), "n": i} for i in range(30_000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = tmp_path / "store"
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.pathsep.join([os.path.dirname(tests), os.path.join(tests, "plugin")])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(
        [sys.executable, "-m", "embedstore", "--store", str(store), "ingest", "c", "rows.jsonl", "--encoder=letters"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        n = 0
        while n == 0 and time.monotonic() < deadline and process.poll() is None:
            try:
                with embedstore.open(store) as reader:
                    n = reader.collection("c").count()
            except embedstore.EmbedstoreError:
                pass
        process.send_signal(getattr(signal, word))
        process.communicate()
        assert process.returncode in (code, 0)
    with embedstore.open(store) as reader:
        collection = reader.collection("c")
        n = len(collection)
        assert n % 1000 == 0  # whole batches
    report = json.loads(run_cli("--format", "json", "ingest", "c", "rows.jsonl").stdout)
    assert (report["unchanged"], report["added"], report["records"]) == (n, 30_000 - n, 30_000)
    with embedstore.open(store) as whole, embedstore.open(tmp_path / "other") as other:
        uninterrupted = other.collection("c", encoder="letters")
        uninterrupted.ingest(tmp_path / "rows.jsonl")
        assert whole.collection("c").stats()["digest"] == uninterrupted.stats()["digest"]
        assert whole.collection("c").stats()["spaces"][0]["digest"] == uninterrupted.stats()["spaces"][0]["digest"]


def test_naughty_strings_come_back_as_they_were(any_store, data, tmp_path):
    strings = [text for text in json.loads((data / "naughty_strings" / "blns.json").read_text()) if text.strip()]
    usable = [text for text in dict.fromkeys(strings) if "\0" not in text]
    collection = any_store.collection("c", encoder="letters")
    (tmp_path / "n.jsonl").write_text(
        "".join(json.dumps({"id": i, "text": text, "note": text}) + "\n" for i, text in enumerate(usable))
    )
    assert collection.ingest(tmp_path / "n.jsonl").added == len(usable)
    for i, text in enumerate(usable):
        record = collection.get(str(i))
        assert (record.content, record.metadata["note"]) == (text, text)
    for text in usable[:120]:
        assert str(usable.index(text)) in {record.key for record in collection.records({"note": text})}
        collection.search(text, mode="text", k=3)


def test_texts_and_keys_that_look_like_numbers_stay_text(store, tmp_path):
    (tmp_path / "n.csv").write_text("id,text,zip,n\n007,1984,02134,1\n1.50,2001,94110,2\n")
    collection = store.collection("c", encoder="letters")
    collection.ingest(tmp_path / "n.csv")
    assert [(r.key, r.content, r.metadata) for r in collection.records()] == [
        ("007", "1984", {"zip": "02134", "n": 1}),
        ("1.50", "2001", {"zip": "94110", "n": 2}),
    ]


def test_lists_of_numbers_can_be_metadata(store):
    collection = store.collection("c", encoder="letters")
    table = pyarrow.table({"key": ["a"], "text": ["x"], "place": pyarrow.array([[1.5, 2.0]])})
    collection.ingest(table)
    assert collection.get("a").metadata == {"place": [1.5, 2.0]}


def test_prune_keeps_the_pieces_of_texts_that_are_still_there(store):
    collection = store.collection("c", encoder="letters")
    text = " ".join(f"word{i}" for i in range(40))
    rows = [{"id": "a", "text": text}, {"id": "b", "text": text}]
    n = collection.ingest(rows, chunk=10).added
    report = collection.ingest(rows, chunk=10, prune=True)
    assert (report.unchanged, report.deleted) == (n, 0)
    report = collection.ingest(rows[:1], chunk=10, prune=True)
    assert (report.unchanged, report.deleted) == (n // 2, n // 2)


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [1.0, 2.0, 3.0], [0.0, 0.0]])
def test_a_bad_vector_far_into_an_input_is_found_before_anything_is_written(store, bad, tmp_path):
    rows = [{"key": str(i), "vector": [1.0, float(i)]} for i in range(6000)]
    rows[5500]["vector"] = bad
    collection = store.collection("c", encoder="none")
    with pytest.raises(InvalidRecord, match="list, row 5501, field 'vector'"):
        collection.ingest(rows)
    assert len(collection) == 0
    report = collection.ingest(rows, on_error="skip", rejects=str(tmp_path / "rejects"))
    assert (report.added, report.failed) == (5999, 1)
    assert json.loads((tmp_path / "rejects").read_text())["row"] == 5501
