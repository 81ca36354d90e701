"""A password in a database URL is never shown: not in errors and what caused them, not in logs, not in a repr."""

import logging
import subprocess
import sys
import traceback

import pytest

import embedstore
from embedstore import EmbedstoreError

SECRET = "Tr0ub4dor"  # noqa: S105
URLS = {
    "nobody listens": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1:1/name",
    "no such host": "postgresql+psycopg://user:Tr0ub4dor@no-such-host.invalid/name",
    "port is a word": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1:port/name",
    "port is too large": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1:99999999/name",
    "no URL": "user:Tr0ub4dor@127.0.0.1",
    "blanks": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1 name",
    "no host": "postgresql+psycopg://user:Tr0ub4dor@:1/name",
    "an at sign in the password": "postgresql+psycopg://user:@Tr0ub4dor@127.0.0.1:1/name",
    "a slash in the password": "postgresql+psycopg://user:/Tr0ub4dor@127.0.0.1:1/name",
    "a percent sign in the password": "postgresql+psycopg://user:%zzTr0ub4dor@127.0.0.1:1/name",
    "a colon in the password": "postgresql+psycopg://user:1:Tr0ub4dor@127.0.0.1:1/name",
    "a bracket in the password": "postgresql+psycopg://user:[Tr0ub4dor@127.0.0.1:1/name",
    "a question mark in the password": "postgresql+psycopg://user:?Tr0ub4dor@127.0.0.1:1/name",
    "a hash in the password": "postgresql+psycopg://user:#Tr0ub4dor@127.0.0.1:1/name",
    "two at signs in the password": "postgresql+psycopg://user:1@2@Tr0ub4dor@127.0.0.1:1/name",
    "a NUL in the password": "postgresql+psycopg://user:%00Tr0ub4dor@127.0.0.1:1/name",
    "a quote in the password": "postgresql+psycopg://user:'Tr0ub4dor@127.0.0.1:1/name",
    "the password in the query": "postgresql+psycopg://user@127.0.0.1:1/name?password=Tr0ub4dor",
    "the host in the query": "postgresql+psycopg://user:Tr0ub4dor@/name?host=127.0.0.1&port=1",
    "an unknown option": "postgresql+psycopg://user@127.0.0.1:1/name?pasword=Tr0ub4dor",
    "an option of a wrong kind": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1:1/name?connect_timeout=x",
    "a wrong mode": "postgresql+psycopg://user:Tr0ub4dor@127.0.0.1:1/name?sslmode=x",
    "another driver": "postgresql+asyncpg://user:Tr0ub4dor@127.0.0.1/name",
    "an unknown driver": "postgresql+nothing://user:Tr0ub4dor@127.0.0.1/name",
    "another database": "mysql://user:Tr0ub4dor@127.0.0.1/name",
    "an unknown database": "nothing://user:Tr0ub4dor@127.0.0.1/name",
    "SQLite": "sqlite:///Tr0ub4dor",
}


def everything(error: BaseException) -> str:
    """All that an exception shows, and all that it was raised from or during, suppressed or not."""
    shown = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None:
            shown += [str(one), repr(one), repr(one.args), "".join(traceback.format_exception(one, chain=False))]
            waiting += [one.__cause__, one.__context__]
    return "\n".join(shown)


def told(url, tmp_path, caplog):
    """What a failed use of a URL shows in every way there is."""
    caplog.set_level(logging.DEBUG)
    shown = []
    with pytest.raises(EmbedstoreError) as caught:
        with embedstore.open(tmp_path / "s", database=url) as store:
            shown += [repr(store), repr(store.database), repr(store.collection("c")), store.database.address]
            store.collections()
    shown += [everything(caught.value), caplog.text]
    return "\n".join(shown)


@pytest.mark.parametrize("what", URLS)
def test_a_url_that_cannot_be_used_does_not_show_its_password(tmp_path, caplog, what):
    assert SECRET in URLS[what]
    assert SECRET not in told(URLS[what], tmp_path, caplog)


@pytest.mark.parametrize("what", ["nobody listens", "port is a word", "the password in the query", "an unknown option"])
def test_the_command_line_does_not_show_it_either(tmp_path, what):
    for options in ([], ["--debug"]):
        done = subprocess.run(
            [sys.executable, "-m", "embedstore", *options, "--store", str(tmp_path), "--database", URLS[what],
             "collections"], capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode in (1, 2)
        assert SECRET not in done.stdout + done.stderr
        assert ("Traceback" in done.stderr) == bool(options)


@pytest.mark.postgres
def test_a_server_that_refuses_does_not_show_it(tmp_path, postgres_url, caplog):
    address = postgres_url.split("@")[1]
    for url in (
        f"postgresql+psycopg://stranger:{SECRET}@{address}",
        f"postgresql+psycopg://tester:{SECRET}@{address}-missing",
        f"postgresql+psycopg://tester:{SECRET}@{address}?options=-c%20nothing.such%3D1%20-c%20work_mem%3Dx",
    ):
        assert SECRET not in told(url, tmp_path, caplog)


@pytest.mark.postgres
def test_a_statement_that_fails_shows_neither_password_nor_data(tmp_path, fresh_database, caplog):
    caplog.set_level(logging.DEBUG)
    url = fresh_database.replace("tester@", f"tester:{SECRET}@")
    with embedstore.open(tmp_path, database=url) as store:
        collection = store.collection("c", encoder="none")
        collection.add([{"key": "a", "text": "PRIVATE-TEXT", "vector": [1.0]}])
        assert SECRET not in repr(store) + repr(collection) + repr(store.stats()) + repr(vars(store.database))
        with pytest.raises(EmbedstoreError) as caught, store.database.write() as transaction:
            transaction.run("INSERT INTO nothing VALUES (:text)", {"text": collection.get("a").content})
        shown = everything(caught.value) + caplog.text
        assert SECRET not in shown
        assert "PRIVATE-TEXT" not in shown
