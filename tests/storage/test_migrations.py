"""Stores of older releases: upgraded whole or not at all, after a backup, with everything in them."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from shared import ROOT
from stores.write import answers, contents

import embedstore
from embedstore import UnsupportedFormat
from embedstore.storage.layout import SCHEMA_REVISION

STORES = ROOT / "tests" / "stores"
BACKUP = "store.db.before-upgrade-from-0001"
RELEASES = sorted(one.parent.name for one in STORES.glob("*/store.db"))


@pytest.fixture
def old(tmp_path):
    """A copy of the store that the first release wrote."""
    return copied("v0", tmp_path)


def copied(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copyfile(STORES / name / "store.db", folder / "store.db")
    return folder


def revision(path: Path) -> str:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    connection.close()
    return found


def rows(path: Path) -> dict[str, list]:
    """Every row of every table."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        found = {name: connection.execute(f"SELECT * FROM {name}").fetchall() for name in names}
    connection.close()
    return found


def upgraded(folder: Path) -> None:
    with embedstore.open(folder) as store:
        store.collections()


@pytest.mark.parametrize("name", RELEASES)
def test_a_store_of_every_release_is_read_whole(name, tmp_path):
    expected = json.loads((STORES / name / "expected.json").read_text())
    folder = copied(name, tmp_path)
    for _ in range(2):  # as it is opened first, and again
        with embedstore.open(folder) as store:
            assert contents(store) == expected["contents"]
            assert answers(store) == expected["answers"]
            assert store.database.lost_commits() is None
    assert revision(folder / "store.db") == SCHEMA_REVISION


def test_a_collection_that_was_never_written_to_is_upgraded_soundly(old):
    with sqlite3.connect(old / "store.db") as connection:
        connection.execute("INSERT INTO collections VALUES (77, 'empty', 'vector', 0, 0, 0, 0, zeroblob(16), '2026')")
        connection.execute(
            "INSERT INTO spaces VALUES"
            " (78, 77, 'vector', NULL, 'cosine', 'float32', '', '', 'flat', 0, 0, zeroblob(16))"
        )
        connection.execute("UPDATE store_info SET value = '80' WHERE name IN ('last_collection_id', 'last_space_id')")
    connection.close()
    with embedstore.open(old) as store:
        assert store.collection("empty").count() == 0
        assert store.verify().problems == []
        store.collection("empty").add([{"key": "a", "vector": [1.0, 2.0]}])
        assert store.verify().problems == []


@pytest.mark.parametrize("name", RELEASES)
def test_a_store_of_every_release_can_be_written_on(name, tmp_path):
    folder = copied(name, tmp_path)
    with embedstore.open(folder) as store:
        before = store.collection("words").search("bad", k=3).keys
        store.collection("words").upsert([{"key": "w01", "text": "bad bad"}, {"key": "new", "text": "c"}])
        store.collection("far").index(recipe="hnsw")
        store.collection("points").delete(["yes"])
        store.collection("fresh", encoder="none").add([{"key": "a", "vector": [1.0]}])
        assert store.collection("words").search("bad", k=3).keys != before
        assert "yes" not in store.collection("points")
        assert store.collections() == ["far", "fresh", "points", "words"]
        with store.reading() as transaction:
            assert transaction.one("SELECT max(collection_id), max(space_id) FROM spaces") == (5, 6)  # ids go on
    with sqlite3.connect(folder / "store.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def test_after_an_upgrade_the_writing_connection_is_as_safe_as_ever(old):
    with embedstore.open(old) as store:
        store.collections()
        with store.database.write() as transaction:
            for name, value in [("foreign_keys", 1), ("synchronous", 2), ("journal_mode", "wal")]:
                assert transaction.one(f"PRAGMA {name}") == (value,)
    log = old / "store.db-wal"
    assert not log.exists() or log.stat().st_size == 0  # a copy of store.db alone has the upgrade


def test_the_backup_is_the_old_database_for_its_owner_alone(old):
    before = rows(old / "store.db")
    upgraded(old)
    assert (old / BACKUP).stat().st_mode & 0o777 == 0o600
    names = sorted(one.name for one in old.iterdir() if not one.name.startswith("store.db-"))
    assert names == ["store.db", BACKUP, "writer.lock"]
    assert rows(old / BACKUP) == before
    restored = old.parent / "restored"
    restored.mkdir()
    shutil.copyfile(old / BACKUP, restored / "store.db")
    with embedstore.open(restored) as store, embedstore.open(old) as now:
        assert contents(store) == contents(now)


def test_an_interrupted_upgrade_uses_its_backup_again(old):
    killed(old, "migrate.backed_up")
    made = (old / BACKUP).stat()
    assert revision(old / "store.db") == "0001"
    upgraded(old)
    assert (old / BACKUP).stat().st_ino == made.st_ino
    assert not (old / f"{BACKUP}-2").exists()


def test_a_backup_is_never_overwritten_by_another_database(old):
    killed(old, "migrate.backed_up")
    first = (old / BACKUP).read_bytes()
    with sqlite3.connect(old / "store.db") as connection:  # the old release goes on writing
        connection.execute("UPDATE collections SET last_serial = last_serial + 1")
    connection.close()
    before = rows(old / "store.db")
    upgraded(old)
    assert (old / BACKUP).read_bytes() == first
    assert rows(old / f"{BACKUP}-2") == before


def test_a_damaged_backup_does_not_count(old):
    killed(old, "migrate.backed_up")
    (old / BACKUP).write_bytes((old / BACKUP).read_bytes()[:20_000])
    upgraded(old)
    assert rows(old / f"{BACKUP}-2")["alembic_version"] == [("0001",)]


def killed(folder: Path, failpoint: str) -> None:
    """Open a store with a process that dies at ``failpoint``."""
    done = subprocess.run(
        [sys.executable, "-c", "import embedstore, sys; embedstore.open(sys.argv[1]).collections()", folder],
        env={**os.environ, "EMBEDSTORE_FAILPOINT": failpoint}, check=False, capture_output=True,
    )  # fmt: skip
    assert done.returncode == -9, done.stderr


def test_db_current_only_looks_and_db_upgrade_names_the_backup(old, run_cli):
    current = {"store": "0001", "release": SCHEMA_REVISION}
    assert json.loads(run_cli("db", "current", "--format", "json").stdout) == current
    assert revision(old / "store.db") == "0001"
    done = run_cli("db", "upgrade", "--format", "json")
    assert json.loads(done.stdout) == {"found": "0001", "store": SCHEMA_REVISION, "backup": str(old / BACKUP)}
    assert f"upgrading {old / 'store.db'} from revision 0001; the old database is kept as {BACKUP}" in done.stderr
    again = run_cli("db", "upgrade", "--format", "json")
    assert json.loads(again.stdout) == {"found": SCHEMA_REVISION, "store": SCHEMA_REVISION, "backup": None}
    assert again.stderr == ""


@pytest.mark.parametrize("needs", ["9.1.0", None])
def test_a_newer_store_is_refused_and_not_touched(old, run_cli, needs):
    upgraded(old)
    with sqlite3.connect(old / "store.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.execute("DELETE FROM store_info WHERE name = 'needs'")
        if needs is not None:
            connection.execute("INSERT INTO store_info VALUES ('needs', ?)", [needs])
    connection.close()
    before = {one.name: one.read_bytes() for one in old.iterdir() if one.is_file()}
    words = f"Open it with embedstore {needs} or newer" if needs else "Open it with a newer release of embedstore"
    told = rf"'0999'; this release, .*, knows up to '{SCHEMA_REVISION}'\. {words}"
    with pytest.raises(UnsupportedFormat, match=told):
        embedstore.open(old).collections()
    with pytest.raises(UnsupportedFormat):
        embedstore.open(old).collection("points").add([{"key": "x", "vector": [1, 2, 3, 4]}])
    for arguments in (["db", "upgrade"], ["count", "points"], ["delete", "points", "yes"]):
        done = run_cli(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
    current = {"store": "0999", "release": SCHEMA_REVISION}
    assert json.loads(run_cli("db", "current", "--format", "json").stdout) == current
    after = {one.name: one.read_bytes() for one in old.iterdir() if one.is_file()}
    assert {**before, "store.db-wal": b"", "store.db-shm": b""} == {**after, "store.db-wal": b"", "store.db-shm": b""}


def test_a_process_that_has_the_store_open_does_not_write_to_newer_tables(any_store):
    collection = any_store.collection("c", encoder="none")
    collection.add([{"key": "a", "vector": [1.0]}])
    with any_store.database.write() as transaction:
        transaction.run("UPDATE alembic_version SET version_num = '0999'")
        transaction.run("UPDATE store_info SET value = '9.1.0' WHERE name = 'needs'")
    with pytest.raises(UnsupportedFormat, match="Open it with embedstore 9.1.0 or newer"):
        collection.add([{"key": "b", "vector": [1.0]}])
    assert collection.count() == 1


ROOM = (
    "import os, shutil, subprocess, sys\n"
    "folder = sys.argv[1]\n"
    "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=' + sys.argv[3], 'none', folder], check=True)\n"
    "shutil.copyfile(sys.argv[2], folder + '/store.db')\n"
    "import embedstore\n"
    "def listed():\n"
    "    return sorted(name for name in os.listdir(folder) if not name.startswith(('store.db-', 'writer')))\n"
    "try:\n"
    "    embedstore.open(folder).collections()\n"
    "    print('upgraded')\n"
    "except embedstore.EmbedstoreError as error:\n"
    "    print(type(error).__name__, error)\n"
    "print(*listed())\n"
    "subprocess.run(['mount', '-o', 'remount,size=10m', folder], check=True)\n"
    "embedstore.open(folder).collections()\n"
    "print(*listed())\n"
)


def can_mount() -> bool:
    return subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True
    ).returncode == 0  # fmt: skip


@pytest.mark.skipif(shutil.which("unshare") is None or not can_mount(), reason="needs the right to mount")
@pytest.mark.parametrize(
    ("free_bytes", "words"),
    [
        (0, r"^StorageFull no space left to open .*store\.db"),
        (100_000, rf"^StorageFull .*upgrades before it reads them, but: no space left for .*{BACKUP}"),
        (210_000, r"^StorageFull .*upgrades before it reads them, but: no space left for .*store\.db;"),
    ],
)
def test_a_full_disk_leaves_the_old_store_and_no_half_backup(tmp_path, free_bytes, words):
    folder = tmp_path / "small"
    folder.mkdir()
    old = STORES / "v0" / "store.db"
    size = old.stat().st_size + free_bytes
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", ROOM, folder, old, str(size)],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    told, left, after = done.stdout.splitlines()
    assert re.search(words, told), done
    assert left in ("store.db", f"store.db {BACKUP}")
    assert after == f"store.db {BACKUP}"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user who may not write")
def test_an_old_store_in_a_read_only_folder_is_one_clear_error(old):
    script = (
        "import os, sys, embedstore\n"
        "embedstore.open(sys.argv[2]).collections()\n"  # imports all that an upgrade needs
        "os.setegid(65534), os.seteuid(65534)\n"
        "try:\n"
        "    embedstore.open(sys.argv[1]).collections()\n"
        "except embedstore.StorageFailed as error:\n"
        "    print(error)\n"
    )
    for one in (old, *old.parents):
        if one.stat().st_uid == 0 and "pytest" in str(one):
            os.chmod(one, 0o755)
    os.chmod(old / "store.db", 0o644)
    shutil.copytree(old, old.parent / "other")
    done = subprocess.run(
        [sys.executable, "-c", script, old, old.parent / "other"], check=False, capture_output=True, text=True
    )
    assert done.stdout == (
        f"{old}/store.db has tables of revision '0001', which this release upgrades before it reads them, but: the lock"
        f" {old}/writer.lock cannot be taken: Permission denied; writing needs a folder that can be written to\n"
    ), done.stderr
    assert sorted(one.name for one in old.iterdir()) == ["store.db"]


def normalised(connection: sqlite3.Connection) -> dict[str, object]:
    """Tables with their columns, keys and indexes, however the statement that made them was spelled."""
    found: dict[str, object] = {}
    for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
        indexes = []
        for _, index, unique, origin, partial in connection.execute(f"PRAGMA index_list({name})").fetchall():
            columns = connection.execute(f"PRAGMA index_xinfo({index})").fetchall()
            indexes.append((index, unique, origin, partial, tuple(columns)))
        found[name] = (
            connection.execute(f"PRAGMA table_info({name})").fetchall(),
            sorted(row[2:] for row in connection.execute(f"PRAGMA foreign_key_list({name})").fetchall()),
            sorted(indexes),
            "WITHOUT ROWID" in sql,
            "AUTOINCREMENT" in sql,
        )
    return found


def test_a_migrated_database_has_the_tables_of_a_new_one(old, store, tmp_path):
    from sqlalchemy import create_engine

    from embedstore.storage.migrations import run_migrations

    store.ensure()
    engine = create_engine(f"sqlite:///{tmp_path}/from-scratch.db")
    with engine.begin() as connection:
        run_migrations(connection)
    engine.dispose()
    upgraded(old)
    described = []
    for path in (store.path / "store.db", tmp_path / "from-scratch.db", old / "store.db"):
        with sqlite3.connect(path) as connection:
            described.append(normalised(connection))
        connection.close()
    assert described[0] == described[1] == described[2]
    assert len(described[0]) == 13


POSTGRES_SHAPE = (
    "SELECT table_name, column_name, rank() OVER (PARTITION BY table_name ORDER BY ordinal_position), is_nullable,"
    " data_type, character_maximum_length, column_default, is_generated, generation_expression"
    " FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 3",
    "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2",
    "SELECT conrelid::regclass::text, contype, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2, 3",
)


@pytest.mark.postgres
def test_a_migrated_postgres_database_has_the_tables_of_a_new_one(postgres_url, fresh_database, tmp_path):
    import psycopg
    from sqlalchemy import create_engine

    from embedstore.storage.migrations import run_migrations

    address = fresh_database.replace("postgresql+psycopg", "postgresql")

    def shape():
        with psycopg.connect(address) as connection:
            return [connection.execute(sql).fetchall() for sql in POSTGRES_SHAPE]

    engine = create_engine(fresh_database)
    with engine.begin() as connection:
        run_migrations(connection)
        migrated_rows = dict(connection.exec_driver_sql("SELECT name, value FROM store_info").all())
    engine.dispose()
    migrated = shape()
    with psycopg.connect(address) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    with embedstore.open(tmp_path / "cache", database=fresh_database) as store:
        store.ensure()
        with store.reading() as transaction:
            new_rows = dict(transaction.all("SELECT name, value FROM store_info"))
    assert migrated == shape()
    assert set(migrated_rows) <= set(new_rows)
