"""The command line: results on stdout, one line for every error, the exit codes, all four formats."""

import csv
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from shared import ROOT

import embedstore
from embedstore.cli.main import COMMANDS, _hoisted

ROWS = [
    {"id": "a", "text": "aab", "year": 2001, "tags": ["x"]},
    {"id": "b", "text": "bbc", "year": 2002, "tags": ["y"]},
    {"id": "c", "text": 'ccd, "quoted"\nand a new line', "year": 2003},
]


@pytest.fixture
def filled(run_cli):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    done = run_cli("ingest", "things", "-", "--encoder", "letters", "--format", "json", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 3
    return run_cli


def is_one_line_error(done, code, *words):
    assert done.returncode == code, (done.stdout, done.stderr)
    errors = [line for line in done.stderr.splitlines() if line.startswith("embedstore: error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def test_the_same_hits_in_every_format(filled):
    lines = [json.loads(line) for line in filled("search", "things", "aab", "--format", "ndjson").stdout.splitlines()]
    assert [line["key"] for line in lines] == ["a", "b", "c"]
    assert lines[0] == {
        "rank": 1,
        "key": "a",
        "score": pytest.approx(1, abs=1e-6),
        "text": "aab",
        "metadata": {"year": 2001, "tags": ["x"]},
    }
    assert json.loads(filled("--format", "json", "search", "things", "aab").stdout) == lines
    table = list(csv.DictReader(io.StringIO(filled("search", "things", "aab", "--format=csv").stdout)))
    assert [row["text"] for row in table] == [row["text"] for row in ROWS]
    assert (table[0]["year"], table[0]["tags"], table[2]["tags"]) == ("2001", '["x"]', "")
    shown = filled("search", "things", "aab").stdout.splitlines()
    assert shown[0].split() == ["rank", "score", "key", "text", "tags", "year"]
    assert shown[2].split()[2:] == ["a", "aab", '["x"]', "2001"]


def test_vectors_are_asked_for_as_json_from_files_and_many_at_once(run_cli, tmp_path):
    rows = '{"key":"a","v":[1,0]}\n{"key":"b","v":[0,1]}\n'
    assert run_cli("ingest", "vectors", "-", "--encoder", "none", "--vector", "v", stdin=rows).returncode == 0

    def keys(*arguments):
        done = run_cli("--format", "ndjson", "search", "vectors", *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["key"] for line in done.stdout.splitlines()]

    np.save(tmp_path / "one.npy", np.array([[0.2, 0.9]]))
    (tmp_path / "one.json").write_text("[0.9, 0.1]")
    (tmp_path / "many.json").write_text('[{"id": "x", "vector": [1, 0.1]}, {"id": "y", "vector": [0.1, 1]}]')
    assert keys("--vector", "[1, 0.5]") == ["a", "b"]
    assert keys("--vector", str(tmp_path / "one.npy")) == ["b", "a"]
    assert keys("--vector", str(tmp_path / "one.json"), "-k", "1") == ["a"]
    assert keys("--queries", str(tmp_path / "many.json"), "-k", "1") == ["a", "b"]
    assert keys("--queries", str(tmp_path / "many.json"), "-k", "1", "--offset", "1") == ["b", "a"]
    for vector, words in (
        ("[1, 2, 3]", "the query has 3 numbers"), ('[1, "x"]', "takes a list of numbers"),
        ("[[1, 2], [3, 4]]", "takes a list of numbers"), ("[1, true]", "takes a list of numbers"),
        ("absent.npy", "there is no file"), ("absent.json", "No such file"), ("[1, 2", "cannot be read as a list"),
        ("[0, 0]", "all zeros"),
    ):  # fmt: skip
        is_one_line_error(run_cli("search", "vectors", "--vector", vector), 2, words)
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "complex.npy", np.array([1j, 2.0]))
    np.save(tmp_path / "huge.npy", np.zeros(2))
    huge = (tmp_path / "huge.npy").read_bytes().replace(b"(2,), }           ", b"(99999999999999,)}")
    (tmp_path / "huge.npy").write_bytes(huge)
    for name in ("empty.npy", "complex.npy", "huge.npy"):
        is_one_line_error(run_cli("search", "vectors", "--vector", str(tmp_path / name)), 2, "list of numbers")
    for wrong in ('{"id": "x", "vector": "[1, x]"}', '{"id": "x", "vector": {"age": 3}}', '{"id": "x", "vector": []}'):
        (tmp_path / "wrong.jsonl").write_text(wrong)
        done = run_cli("search", "vectors", "--queries", str(tmp_path / "wrong.jsonl"))
        is_one_line_error(done, 2, "row 1: a query needs a field 'text' with words, or 'vector'; its vector is no list")
    (tmp_path / "blank.jsonl").write_text('{"id": "x", "text": "", "vector": [1, 0]}')
    assert keys("--queries", str(tmp_path / "blank.jsonl"), "-k", "1") == ["a"]
    np.save(tmp_path / "many.npy", np.array([[1, 0.1], [0.1, 1]]))
    assert keys("--queries", str(tmp_path / "many.npy"), "-k", "1") == ["a", "b"]
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    is_one_line_error(run_cli("search", "vectors", "--queries", str(tmp_path / "pickled.npy")), 2, "cannot be read")
    np.save(tmp_path / "row.npy", np.array([1.0, 2.0]))
    is_one_line_error(run_cli("search", "vectors", "--queries", str(tmp_path / "row.npy")), 2, "are a matrix")
    (tmp_path / "cells.csv").write_text('id,vector\nc,"[0.5, 0.5]"\n')
    assert keys("--queries", str(tmp_path / "cells.csv"), "-k", "2") == ["a", "b"]
    assert run_cli("ingest", "cells", str(tmp_path / "cells.csv"), "--encoder", "none").returncode == 0
    (tmp_path / "bad.csv").write_text('id,vector\nc,"[0.5, x]"\n')
    is_one_line_error(run_cli("ingest", "cells", str(tmp_path / "bad.csv")), 2, "row 1, field 'vector'", "not str")
    (tmp_path / "both.jsonl").write_text('{"id": "x", "text": "nothing", "vector": [1, 0]}')
    assert keys("--queries", str(tmp_path / "both.jsonl"), "-k", "1") == ["a"]
    (tmp_path / "three.jsonl").write_text('{"id": "q7", "vector": [1, 0, 0]}')
    done = run_cli("search", "vectors", "--queries", str(tmp_path / "three.jsonl"), "--offset", "1")
    is_one_line_error(done, 2, "query q7: the query has 3 numbers")
    assert keys("--vector", "[1, 0]", "--where", '{"_key": {"$ne": "a"}}') == ["b"]
    words = '{"key":"a","v":[1,0],"text":"dog"}\n{"key":"b","v":[0,1],"text":"cat"}\n'
    assert run_cli("ingest", "vectors", "-", "--encoder", "none", "--vector", "v", stdin=words).returncode == 0
    assert keys("cat", "--vector", "[1, 0.9]", "--mode", "hybrid", "-k", "1") == ["b"]
    (tmp_path / "both.jsonl").write_text('{"id": "x", "text": "cat", "vector": [1, 0.9]}')
    for mode in ("text", "hybrid"):
        assert keys("--queries", str(tmp_path / "both.jsonl"), "--mode", mode, "-k", "1") == ["b"]
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    is_one_line_error(run_cli("search", "vectors", "--vector", str(tmp_path / "pickled.npy")), 2, "list of numbers")
    is_one_line_error(run_cli("search", "vectors", "word", "--vector", "[1, 2]"), 2, "QUERY or --vector")


def test_a_space_is_added_to_a_collection_that_is_there(filled, tmp_path):
    done = filled("spaces", "things", "--add", "again", "--encoder", "letters", "--metric", "dot", "--format", "ndjson")
    assert done.returncode == 0 and "3 vectors in the new space 'again'" in done.stderr
    described = {one["name"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert described["again"]["metric"] == "dot" and described["again"]["n_vectors"] == 3
    assert filled("search", "things", "aab", "--space", "again", "-k", "1").returncode == 0
    is_one_line_error(filled("spaces", "things", "--add", "again", "--encoder", "letters"), 2, "'again' already")
    done = filled("spaces", "things", "--add", "given", "--encoder", "none", "--dim", "2", "--recipe", "hnsw")
    assert done.returncode == 0
    rows = '{"id": "a", "text": "aab", "vectors": {"given": [3, 4]}}\n'
    assert filled("ingest", "things", "-", stdin=rows).returncode == 0
    found = filled("search", "things", "--vector", "[1, 1]", "--space", "given", "--format", "ndjson").stdout
    assert [json.loads(line)["key"] for line in found.splitlines()] == ["a"]
    row = {"id": "a", "text": "aab " * 30, "year": 1, "vectors": {"given": [5, 6]}}
    assert filled("ingest", "things", "-", "--metadata", "year", stdin=json.dumps(row)).returncode == 0
    (tmp_path / "rows.csv").write_text('id,text,vectors\nb,bbc,"{""given"": [7, 8]}"\n')
    assert filled("ingest", "things", str(tmp_path / "rows.csv")).returncode == 0
    with embedstore.open(tmp_path / "store") as store:
        assert store.collection("things").vectors(["a", "b"], space="given").tolist() == [[5, 6], [7, 8]]
    done = filled("ingest", "things", "-", "--chunk", "8", stdin=json.dumps(row))
    is_one_line_error(done, 2, "vectors", "chunk cuts into pieces")
    other = {"id": "c", "text": "ccd", "vectors": {"x": 1, "y": "z"}}  # which are none
    assert filled("ingest", "things", "-", stdin=json.dumps(other)).returncode == 0
    found = json.loads(filled("get", "things", "c", "--format", "ndjson").stdout)
    assert found["metadata"] == {"vectors": {"x": 1, "y": "z"}}
    is_one_line_error(filled("spaces", "things", "--dim", "2"), 2, "--dim is for a space that is added")
    is_one_line_error(filled("spaces", "things", "--add", "more"), 2, "--add NAME --encoder NAME")
    is_one_line_error(filled("spaces", "things", "--metric", "dot"), 2, "for a space that is added")
    is_one_line_error(filled("spaces", "things", "--add", "more", "--encoder", ""), 2, "encoder")


def test_the_life_of_a_collection(filled, tmp_path):
    assert filled("count", "things").stdout == "3\n"
    assert filled("count", "things", "--where", "year > 2001").stdout == "2\n"
    assert json.loads(filled("get", "things", "b", "--format", "ndjson").stdout)["text"] == "bbc"
    assert filled("update", "things", "b", "--set", "lang=en", "--set", "year=7", "--unset", "tags").returncode == 0
    record = json.loads(filled("get", "things", "--where", "lang = 'en'", "--format", "ndjson").stdout)
    assert record["metadata"] == {"lang": "en", "year": 7}
    assert json.loads(filled("stats", "things", "--format", "json").stdout)["fields"]["lang"] == ["text"]
    assert json.loads(filled("collections", "--format", "ndjson").stdout) == {
        "collection": "things",
        "records": 3,
        "spaces": "text",
    }
    assert json.loads(filled("spaces", "things", "--format", "ndjson").stdout)["dim"] == 6
    assert filled("export", "things", "out.parquet").returncode == 0
    assert filled("import", "copy", "out.parquet").returncode == 0
    found = json.loads(filled("search", "copy", "aab", "-k", "1", "--format", "ndjson").stdout)
    assert (found["rank"], found["key"]) == (1, "a")
    assert json.loads(filled("delete", "things", "a", "zzz", "--format", "json").stdout) == {"deleted": 1, "records": 2}
    dry = json.loads(filled("delete", "things", "--where", "year > 0", "--dry-run", "--format", "json").stdout)
    assert dry == {"would_delete": 2, "records": 2}
    assert filled("delete", "things", "--collection").returncode == 0
    is_one_line_error(filled("count", "things"), 2, "no collection 'things'; it has: copy")
    assert len(json.loads(filled("sample", "copy", "-n", "2", "--seed", "1", "--format", "json").stdout)) == 2
    assert json.loads(filled("db", "current", "--format", "json").stdout) == {"store": "0004", "release": "0004"}
    assert filled("db", "upgrade").returncode == 0
    assert filled("index", "copy", "--recipe", "hnsw").returncode == 0
    assert "hnsw" in filled("spaces", "copy").stdout
    assert "HNSW32" in filled("recipes").stdout


def test_searching_by_keywords_both_and_likeness(filled):
    assert json.loads(filled("search", "things", "bbc", "--mode", "text", "--format", "ndjson").stdout)["key"] == "b"
    both = filled("search", "things", "bbc", "--mode", "hybrid", "--explain", "--format", "ndjson")
    assert json.loads(both.stdout.splitlines()[0])["key"] == "b"
    assert both.stderr.startswith("exact: exact scan of 3 vectors; 1 keyword matches; fused by reciprocal rank")
    like = filled("search", "things", "--like", "a", "--unlike", "c", "--format", "ndjson").stdout.splitlines()
    assert [json.loads(line)["key"] for line in like] == ["b"]


def test_small_scores_keep_their_digits_and_no_hits_their_header(run_cli, tmp_path):
    np.save(tmp_path / "X.npy", np.arange(12).reshape(4, 3) * 1.1e-9)
    assert run_cli("ingest", "small", "X.npy", "--encoder", "none", "--metric", "euclidean").returncode == 0
    done = run_cli("search", "small", "--like", "X.npy:1", "--format", "csv")
    scores = [float(row["score"]) for row in csv.DictReader(io.StringIO(done.stdout))]
    assert scores == pytest.approx([-5.7157677e-09, -1.1431535e-08, -1.7147304e-08], rel=1e-6)
    assert "-5.72e-09" in repr(embedstore.open(tmp_path / "store").collection("small").search(like=["X.npy:1"]))
    none = run_cli("search", "small", "--like", "X.npy:1", "--offset", "50", "--format", "csv")
    assert none.stdout == "rank,score,key,text\n"


def test_what_is_no_file_of_queries_is_told_what_is(run_cli, tmp_path):
    np.save(tmp_path / "X.npy", np.ones((2, 3)))
    np.save(tmp_path / "mask.npy", np.ones((2, 3), bool))
    run_cli("ingest", "c", "X.npy", "--encoder", "none")
    for name, said in (("mask.npy", "holds bool"), ("absent.npy", "no file")):
        done = run_cli("search", "c", "--queries", name)
        is_one_line_error(done, 2, name, said, "a .npy matrix of vectors")


def test_many_queries_at_once_name_their_query(filled, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"id": "one", "text": "aab"}\n{"id": "two", "text": "ccd"}\n')
    lines = filled("search", "things", "--queries", "q.jsonl", "-k", "1", "--format", "ndjson").stdout.splitlines()
    assert [(json.loads(line)["query"], json.loads(line)["key"]) for line in lines] == [("one", "a"), ("two", "c")]


def test_many_queries_explain_each_answer(filled, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"key": "a", "text": "red"}\n{"key": "b", "text": "blue"}\n')
    done = filled("search", "things", "--queries", "q.jsonl", "-k", "1", "--explain")
    assert [line.split(":")[:2] for line in done.stderr.splitlines()] == [["a", " exact"], ["b", " exact"]]



@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["search"], 2, ["Missing argument 'COLLECTION'"]),
        (["serch", "things"], 2, ["there is no command 'serch'; did you mean 'search'?"]),
        (["search", "things"], 2, ["nothing to search for"]),
        (["search", "things", ""], 2, ["the query is empty"]),
        (["search", "things", "x", "-k", "0"], 2, ["k is 0"]),
        (["search", "things", "x", "-k", "-1"], 2, ["k is -1"]),
        (["search", "things", "x", "-k", "ten"], 2, ["'ten' is not a valid integer"]),
        (["search", "things", "x", "--mode", "fuzzy"], 2, ["'fuzzy' is not one of"]),
        (["search", "things", "x", "--where", "yaer = 1"], 2, ["'yaer'; did you mean 'year'?"]),
        (["search", "things", "x", "--where", "year = 'x'"], 2, ["year holds numbers"]),
        (["count", "things", "--timeout", "nan"], 2, ["lock_timeout is nan; it must be a number of seconds"]),
        (["search", "things", "x", "--where", "year ="], 2, ["ends too early"]),
        (["search", "things", "x", "--where", "(" * 1000], 2, ["ends too early"]),
        (["search", "things", "x", "--space", "map"], 2, ["no space 'map'; it has: text"]),
        (["search", "things", "--like", "zzz"], 2, ["no record of 'things' has the key 'zzz'"]),
        (["search", "thing", "x"], 2, ["no collection 'thing'; it has: things"]),
        (["get", "things", "zzz"], 2, ["has the key 'zzz'"]),
        (["get", "things"], 2, ["either keys or --where"]),
        (["delete", "things"], 2, ["either keys, or --where, or --collection"]),
        (["update", "things", "a"], 2, ["nothing to change"]),
        (["update", "things", "a", "--set", "year"], 2, ["FIELD=VALUE"]),
        (["ingest", "things", "nowhere.csv"], 2, ["there is no file 'nowhere.csv'"]),
        (["ingest", "things", "*.csv"], 2, ["*.csv"]),
        (["ingest", "things", "-", "--encoder", "none"], 2, ["made by letters"]),
        (["ingest", "new", "-", "--encoder", "nonsense"], 2, ["there is no encoder 'nonsense'"]),
        (["ingest", "bad\nname", "-"], 2, ["only printable"]),
        (["--store", "pyproject.toml", "collections"], 2, ["there is no store"]),
        (["export", "things", "out.xml"], 2, ["must end in .parquet or .jsonl"]),
        (["export", "things", "no/folder/out.jsonl"], 1, ["cannot be written"]),
        (["import", "things", "nowhere.jsonl"], 2, ["there is no file"]),
        (["index", "things", "--recipe", "best"], 2, ["there is no recipe 'best'; there are binary-refine, flat,"]),
        (["sample", "things", "-n", "0"], 2, ["n is 0"]),
        (["--database", "mysql://u:secret@h/d", "collections"], 2, ["postgresql+psycopg://"]),
        (["--database", "postgresql+psycopg://u:secret@127.0.0.1:1/d", "collections"], 1, ["u:***@127.0.0.1:1/d"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_its_exit_code(filled, arguments, code, words):
    done = filled(*arguments)
    is_one_line_error(done, code, *words)
    assert done.stdout == ""
    assert "secret" not in done.stderr


def test_a_large_k_gives_what_there_is(filled):
    assert len(filled("search", "things", "x", "-k", "1000000000", "--format", "ndjson").stdout.splitlines()) == 3


def test_a_missing_store_is_not_created_by_looking(run_cli, tmp_path):
    for command in (
        ["search", "c", "x"],
        ["count", "c"],
        ["collections"],
        ["stats"],
        ["get", "c", "k"],
        ["db", "current"],
    ):
        is_one_line_error(run_cli(*command), 2, "there is no store at")
    assert not (tmp_path / "store").exists()


def test_damage_has_an_exit_code_of_its_own(filled, tmp_path):
    database = tmp_path / "store" / "store.db"
    data = bytearray(database.read_bytes())
    for page in range(2, len(data) // 8192):
        data[page * 8192 : page * 8192 + 4096] = os.urandom(4096)
    database.write_bytes(data)
    is_one_line_error(filled("search", "things", "aab"), 4, "store.db is damaged")


def test_a_busy_store_has_an_exit_code_of_its_own(filled, tmp_path):
    with embedstore.open(tmp_path / "store") as store, store.database.write():
        done = filled("update", "things", "a", "--set", "x=1", "--timeout", "0.2")
        is_one_line_error(done, 3, f"process {os.getpid()}", "--timeout")
        assert filled("count", "things").stdout == "3\n"


def test_a_reader_that_has_seen_enough_is_no_error(filled, tmp_path):
    rows = "".join(json.dumps({"id": i, "text": "abc " * 200}) + "\n" for i in range(3000))
    assert filled("ingest", "many", "-", "--encoder", "letters", stdin=rows).returncode == 0
    command = f"{sys.executable} -m embedstore --format ndjson get many --where \"_key > '0'\" --limit 3000"
    environment = {
        **os.environ,
        "EMBEDSTORE_STORE": str(tmp_path / "store"),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'plugin'}",
    }
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_results_go_to_stdout_and_everything_else_to_stderr(run_cli):
    done = run_cli(
        "ingest", "c", "-", "--encoder", "letters", "--format", "json", stdin='{"text": "' + "a " * 200 + '"}'
    )
    assert json.loads(done.stdout)["truncated"] == 1
    assert "1 text(s) longer than the encoder reads" in done.stderr
    quiet = run_cli("-q", "ingest", "d", "-", "--encoder", "letters", stdin='{"text": "' + "a " * 200 + '"}')
    assert quiet.stderr == ""


def test_bytes_that_are_no_text_are_refused_with_their_offset(run_cli):
    done = run_cli("ingest", "c", "-", "--encoder", "letters", stdin=b'{"text": "a"}\n{"text": "\xff"}\n')
    is_one_line_error(done, 2, "stdin, row 2", "byte offset 24")


def test_files_that_break_readers_end_in_one_line(run_cli, data):
    folder = data / "json_torture"
    cases = sorted(folder.glob("n_*.json"))[::12] + [folder / "n_structure_100000_opening_arrays.json"]
    cases += [data / "utf8" / "UTF-8-test.txt", data / "sentence_clf" / "TREC.train.all"]
    assert len(cases) > 10
    for path in cases:
        done = run_cli("ingest", "c", str(path), "--encoder", "letters")
        is_one_line_error(done, 2)
    done = run_cli("ingest", "c", str(data / "utf8" / "UTF-8-test.txt"), "--encoder", "letters")
    is_one_line_error(done, 2, "byte offset 4461")


def test_global_options_may_stand_anywhere():
    assert _hoisted(["search", "c", "q", "--format", "json", "-q"]) == ["--format", "json", "-q", "search", "c", "q"]
    assert _hoisted(["get", "c", "--store=x", "--", "--format"]) == ["--store=x", "get", "c", "--", "--format"]


def test_every_command_has_help_and_its_one_line_is_true(run_cli):
    listed = run_cli("--help").stdout
    for name in COMMANDS:
        assert f"  {name} " in listed
        assert run_cli(name, "--help").stdout.startswith(f"Usage: embedstore {name}")


def test_the_demo_answers_three_queries(run_cli, tmp_path):
    done = run_cli("demo")
    assert done.returncode == 0, done.stderr
    assert [word in done.stdout for word in ("phonograph", "tortilla", "ceviche")] == [True] * 3
    assert list(tmp_path.iterdir()) == []


def test_doctor_knows_what_is_here(filled):
    done = filled("doctor", "--format", "json")
    found = {one["what"]: one for one in json.loads(done.stdout)}
    assert found["FAISS"]["state"] == "ok"
    assert found["minilm weights"]["state"] == "ok"
    assert found["SQLite"]["state"] == "ok"
    assert done.returncode == 0


def test_an_export_brings_back_everything(tmp_path):
    random = np.random.default_rng(0)
    with embedstore.open(tmp_path / "s") as store:
        collection = store.collection("c", encoder="letters")
        collection.add(
            {"key": f"k{i}", "text": "abc" * (i + 1), "n": i / 3, "t": ["é", None, {"a": 1}]} for i in range(30)
        )
        collection.add_space("map", dim=3, metric="euclidean")
        collection.upsert(
            {**collection.get(f"k{i}").to_dict(), "vectors": {"map": random.standard_normal(3)}}
            for i in range(0, 30, 2)
        )
        stats = collection.stats()
        for suffix in ("parquet", "jsonl"):
            path = str(tmp_path / f"out.{suffix}")
            assert collection.export(path) == 30
            copy = store.collection(f"copy-{suffix}")
            assert copy.import_(path).encoded == 0
            again = copy.stats()
            assert again["digest"] == stats["digest"]
            assert [s["digest"] for s in again["spaces"]] == [s["digest"] for s in stats["spaces"]]
            assert copy.import_(path).unchanged == 30
            assert collection.export(path, where="n < 1", vectors=False) == 3
        (tmp_path / "foreign.jsonl").write_text('{"key": "a", "text": "b"}\n')
        with pytest.raises(embedstore.InvalidInput, match="not written by export"):
            collection.import_(str(tmp_path / "foreign.jsonl"))
        other = store.collection("other", encoder="letters:5")
        other.add([{"key": "a", "text": "b"}])
        collection.export(str(tmp_path / "out.parquet"))
        with pytest.raises(
            embedstore.EncoderMismatch,
            match="was asked for with 'letters:5'",
        ):
            other.import_(str(tmp_path / "out.parquet"))


def test_a_bare_command_prints_its_help(run_cli):
    for words in ([], ["db"]):
        done = run_cli(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: embedstore")


def test_a_text_cannot_steer_the_terminal(run_cli):
    row = json.dumps({"id": "e", "text": "red \x1b[31mtext\x07 \u202e", "note": "\x1b]0;title\x07"})
    assert run_cli("ingest", "c", "-", "--encoder", "letters", stdin=row).returncode == 0
    for command in (["get", "c", "e"], ["search", "c", "text"], ["sample", "c"]):
        shown = run_cli(*command).stdout
        assert all(character.isprintable() or character == "\n" for character in shown)
    exact = json.loads(run_cli("get", "c", "e", "--format", "ndjson").stdout)
    assert exact["text"] == "red \x1b[31mtext\x07 \u202e"


def test_an_empty_file_in_a_folder_is_named(run_cli, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "good.md").write_text("abc")
    (tmp_path / "notes" / "empty.txt").write_text("")
    is_one_line_error(run_cli("ingest", "c", "notes", "--encoder", "letters"), 2, "notes/empty.txt")


def test_encoding_leaves_nothing_in_the_home_folder_and_sends_nothing(tmp_path):
    script = (
        "from embedstore.encoders import load_encoder\n"
        "load_encoder('minilm').encode(['hello', 'world'])\n"
        "load_encoder('minilm').encode_query('hello')\n"
    )
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_doctor_tells_a_damaged_store_from_none(run_cli, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.db").write_text("garbage " * 2000)
    done = run_cli("doctor")
    assert done.returncode == 1
    assert "bad" in done.stdout
    assert "-> " in done.stdout
    assert "not a SQLite database" in done.stdout


def test_update_sets_metadata_alone_and_keeps_whole_numbers_whole(filled):
    key = ROWS[0]["id"]
    for name in ("text", "key", "vector", "metadata", "image"):
        is_one_line_error(filled("update", "things", key, "--set", f"{name}=x"), 2, "no metadata")
    is_one_line_error(filled("update", "things", key, "--set", "x=99999999999999999999999"), 2, "64 bits")
    is_one_line_error(filled("update", "things", key, "--set", "x=1", "--unset", "x"), 2, "said twice")
    assert filled("update", "things", key, "--set", "x=9007199254740993", "--set", "y=NaN").returncode == 0
    (record,) = json.loads(filled("get", "things", key, "--format", "json").stdout)
    assert (record["metadata"]["x"], record["metadata"]["y"]) == (9007199254740993, "NaN")


def test_debug_adds_the_traceback_and_leaves_the_exit_code(filled):
    done = filled("--debug", "search", "nope", "x")
    assert done.returncode == filled("search", "nope", "x").returncode == 2
    assert "Traceback" in done.stderr and done.stderr.splitlines()[-1].startswith("embedstore: error: ")


def test_options_that_say_nothing_here_are_refused(filled):
    key = ROWS[0]["id"]
    is_one_line_error(filled("get", "things", key, "--limit", "2"), 2, "--limit is for --where")
    is_one_line_error(filled("index", "things", "--recipe", "flat", "--plot", "p.png"), 2, "--plot draws what was")
    done = filled("delete", "things", "nokey", "--dry-run")
    assert done.returncode == 0 and "no record has the key 'nokey'" in done.stderr
    assert filled("search", "things", "red", "--where", "_key = 'none'", "--format", "csv").stdout.count("\n") == 1
