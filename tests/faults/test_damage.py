"""A damaged file is noticed; no answer is wrong for it but those of a database that ``verify`` calls damaged."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shared import ROOT

import embedstore
from embedstore import StoreDamaged
from faults import damage
from faults.damage import Damage, Specimen, copied, drawn, examine
from faults.specimen import clear_query, everything_used, made, nearest_by_brute_force, same

N = 120


@pytest.fixture(scope="module")
def specimens(tmp_path_factory):
    """A store that was closed, and one whose newest commits are in SQLite's log alone."""
    folder = tmp_path_factory.mktemp("specimens")
    for end in ("closed", "killed"):
        made(folder / end, N, end)
    return {end: Specimen.of(folder / end) for end in ("closed", "killed")}


@pytest.fixture(autouse=True)
def quiet():
    """Warnings about damage are expected here."""
    logger = logging.getLogger("embedstore")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)


def test_the_answers_are_those_of_brute_force(specimens):
    for specimen in specimens.values():
        for (name, space), metric in {
            ("notes", "text"): "cosine", ("notes", "extra"): "euclidean", ("points", "vector"): "cosine"
        }.items():  # fmt: skip
            for where in (None, "even = true") if name == "points" else (None,):
                query = clear_query(specimen.truth, name, space, metric, where)
                wanted = nearest_by_brute_force(specimen.truth, name, space, metric, where, query)
                assert same(specimen.answers[f"{name}/{space} where {where}"], wanted)


@pytest.mark.parametrize("end", ["closed", "killed"])
@pytest.mark.parametrize("kind", ["flip", "zero", "cut"])
def test_damage_of_any_file_is_told_or_changes_no_answer(specimens, end, kind):
    specimen = specimens[end]
    counts = {"flip": 0, "zero": 0, "cut": 0} | {kind: 10 if kind == "flip" else 6}
    for number, one in enumerate(drawn(specimen.folder, *counts.values(), seed=3)):
        outcome = examine(specimen, one, caches_at_once=number % 2 == 0)
        assert outcome.violations == [], one


@pytest.mark.parametrize(
    "table", ["sqlite_schema", "records", "vectors", "spaces", "collections", "store_info", "commits"]
)
def test_a_zeroed_page_of_any_table_loses_at_most_its_own_rows_in_repair(specimens, table):
    specimen = specimens["closed"]
    for page in sorted(pages_of_table(specimen.folder, table))[:2]:
        outcome = damage.Outcome(Damage("zero", "store.db", page - 1))
        with copied(specimen.folder) as folder:
            outcome.damage.apply(folder)
            damage._repair(specimen, folder, outcome)
        assert outcome.violations == [], page


def pages_of_table(folder, table):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(f"file:{folder / 'store.db'}?mode=ro&immutable=1", uri=True)) as database:
        return [row[0] for row in database.execute("SELECT pageno FROM dbstat WHERE name = ?", [table])]


def test_a_flipped_bit_in_the_log_costs_at_most_its_own_page_in_repair(specimens):
    specimen = specimens["killed"]
    for place in (4_000, 1_000_000, 4_000_001):
        outcome = damage.Outcome(Damage("flip", "store.db-wal", place))
        with copied(specimen.folder) as folder:
            outcome.damage.apply(folder)
            damage._repair(specimen, folder, outcome)
        assert outcome.violations == []


def test_a_lost_log_is_noticed_and_nothing_is_written_until_the_loss_is_accepted(specimens, caplog):
    logging.getLogger("embedstore").setLevel(logging.WARNING)
    with copied(specimens["killed"].folder) as folder:
        os.remove(folder / "store.db-wal")
        os.remove(folder / "store.db-shm")
        refuses_to_write(folder, caplog)
        os.remove(folder / "HEAD")
        with embedstore.open(folder) as store:
            assert store.verify().lost == []
            store.collection("points").add([{"key": "new", "text": "accepted"}])
            assert store.collection("points").get("new").content == "accepted"


def test_an_older_database_put_in_place_is_noticed(specimens, caplog):
    logging.getLogger("embedstore").setLevel(logging.WARNING)
    with copied(specimens["closed"].folder) as folder:
        older = shutil.copy(folder / "store.db", folder.parent / "older.db")
        with embedstore.open(folder) as store:
            store.collection("points").add([{"key": "new", "text": "x"}])
        shutil.copy(older, folder / "store.db")
        refuses_to_write(folder, caplog)


def refuses_to_write(folder: Path, caplog) -> None:
    caplog.clear()
    with embedstore.open(folder) as store:
        n = store.collection("points").count()
        assert "was acknowledged" in caplog.text
        assert "embedstore verify" in caplog.text
        with pytest.raises(StoreDamaged, match="Nothing more is written"):
            store.collection("points").add([{"key": "late", "text": "x"}])
        assert store.collection("points").count() == n
        assert any("was acknowledged" in str(one) for one in store.verify().lost)
        with pytest.raises(StoreDamaged, match="was acknowledged"):
            store.backup(folder.parent / "lost.backup")
    assert not (folder.parent / "lost.backup").exists()


@pytest.mark.parametrize(
    ("one", "searching"),
    [
        (Damage("flip", "store.db", 8 * 8192 * 22 + 8 * 8000), None),
        (Damage("zero", "store.db", 0), 4),
        (Damage("cut", "store.db", 5000), 4),
        (Damage("flip", "cache/keywords-1.db", 8 * 9000), 0),
    ],
)
def test_the_command_line_says_damage_in_one_line_and_ends_with_4(specimens, one, searching):
    with copied(specimens["closed"].folder) as folder:
        assert one.apply(folder)
        assert_one_line(run(folder, "verify"), 4)
        if searching is None:
            assert_one_line(run(folder, "backup", str(folder.parent / "refused.backup")), 4)
            assert not (folder.parent / "refused.backup").exists()
        else:
            done = run(folder, "search", "notes", "word1x0", "--mode", "text")
            assert_one_line(done, searching)
        if one.part == "database":
            assert_one_line(run(folder, "repair", "--into", str(folder.parent / "repaired")), 4)
            if one.kind != "cut":  # of which nothing is left
                assert_one_line(run(folder.parent / "repaired", "verify"), 0)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'plugin'}", "COLUMNS": "160"}
    command = [sys.executable, "-m", "embedstore", "--store", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def assert_one_line(done: subprocess.CompletedProcess, code: int) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) <= 1, done.stderr
    if code == 4 and errors:
        assert "store.db" in errors[0]
        assert "embedstore verify" in errors[0] or "restore a backup" in errors[0]


def test_questions_are_answered_alike_with_caches_written_at_once_and_late(specimens):
    specimen = specimens["closed"]
    for at_once in (True, False):
        with copied(specimen.folder) as folder, everything_used(caches_at_once=at_once):
            with embedstore.open(folder) as store:
                for name, question in specimen.asked.items():
                    assert same(question(store), specimen.answers[name]), name


@pytest.fixture
def small(store):
    """A store with two records."""
    collection = store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0, 0.0], "text": "abc"}, {"key": "b", "vector": [0.0, 1.0]}])
    return store


@pytest.mark.parametrize("vec", ["zeroblob(8)", "5", "'text'", "zeroblob(7)"])
def test_a_vector_that_is_not_what_was_written_is_never_given_out(small, tmp_path, vec):
    with small.database.write() as transaction:
        transaction.run(f"UPDATE vectors SET vec = {vec}")
    collection = small.collection("c")
    for call in (
        lambda: collection.vectors(["a"]), lambda: collection.search([1.0, 0.0]),
        lambda: collection.search(like=["a"]), collection.refresh, collection.index,
        lambda: collection.export(str(tmp_path / "out.parquet")),
        lambda: collection.export(str(tmp_path / "out.jsonl")),
        lambda: list(collection.scan(columns=["vector.vector"])),
    ):  # fmt: skip
        with pytest.raises(StoreDamaged, match="embedstore verify"):
            call()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert {one.part for one in small.verify().problems} == {"vector"}


def test_a_text_that_is_not_what_was_written_is_not_indexed(small):
    with small.database.write() as transaction:
        transaction.run("UPDATE records SET content = 'abd' WHERE key = 'a'")
    with pytest.raises(StoreDamaged, match="embedstore verify"):
        small.collection("c").search("other", mode="text")


def test_an_index_that_leads_to_no_record_is_told_as_damage(small):
    import sqlite3
    from contextlib import closing

    small.close()
    with closing(sqlite3.connect(small.path / "store.db", isolation_level=None)) as database:
        database.execute("PRAGMA foreign_keys = OFF")
        database.execute("PRAGMA writable_schema = ON")  # the rows go, and the index over their keys stays as it is
        kept = database.execute("SELECT type, name, tbl_name, rootpage, sql FROM sqlite_schema").fetchall()
        database.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'records' AND type = 'index'")
        database.execute("UPDATE sqlite_schema SET sql = replace(sql, 'UNIQUE (collection_id, \"key\")', 'CHECK (1)')"
                         " WHERE name = 'records'")
        database.execute("UPDATE sqlite_schema SET sql = replace(sql, 'UNIQUE (collection_id, key)', 'CHECK (1)')"
                         " WHERE name = 'records'")
    with closing(sqlite3.connect(small.path / "store.db", isolation_level=None)) as database:
        database.execute("DELETE FROM records WHERE key = 'a'")
        database.execute("PRAGMA writable_schema = ON")
        database.execute("DELETE FROM sqlite_schema WHERE tbl_name = 'records'")
        database.executemany(
            "INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", [one for one in kept if one[2] == "records"]
        )
    collection = small.collection("c")
    for call in (lambda: collection.get("a"), lambda: collection.search([1.0, 0.0])):
        with pytest.raises(StoreDamaged, match="embedstore verify"):
            call()
    assert not small.verify().ok


def test_a_database_of_which_only_the_first_page_is_left_is_not_repaired(specimens, tmp_path):
    with copied(specimens["closed"].folder) as folder:
        os.truncate(folder / "store.db", 10_000)
        with pytest.raises(StoreDamaged, match="nothing that is whole"):
            embedstore.repair(folder, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_was_cut_is_repaired_and_its_missing_pages_are_listed(specimens, tmp_path):
    with copied(specimens["closed"].folder) as folder:
        os.truncate(folder / "store.db", 8192 * 40 + 100)
        report = embedstore.repair(folder, tmp_path / "new")
    assert report.n_records > 0
    assert any("pages are missing" in str(one) for one in report.lost)
