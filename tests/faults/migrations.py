"""Upgrades of an old store under kill -9 and in a race: the tables are old or new, and everything in them is there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from embedstore.storage.layout import SCHEMA_REVISION

TESTS = Path(__file__).resolve().parent.parent
OLD = TESTS / "stores" / "v0"
SQLITE_STEPS = ("migrate.locked", "migrate.backed_up", "migrate.migrated", "migrate.committed")
POSTGRES_STEPS = ("migrate.locked", "migrate.migrated", "migrate.committed")

OPENER = (
    "import json, logging, os, sys, time, embedstore\n"
    "from stores.write import contents\n"
    "import embedstore.storage.migrations\n"  # imported before the start, so that all come at once
    "logging.basicConfig(format='%(message)s')\n"
    "folder, url, start = sys.argv[1], sys.argv[2] or None, float(sys.argv[3])\n"
    "time.sleep(max(0, start - time.time()))\n"
    "with embedstore.open(folder, database=url) as store:\n"
    "    print(json.dumps(contents(store)))\n"
)
"""Opens a store, which upgrades it, and prints what is in it."""

WATCHER = (
    "import sys, time, embedstore\n"
    "store = embedstore.open(sys.argv[1], database=sys.argv[2] or None)\n"
    "seen = set()\n"
    "stop = float(sys.argv[3]) + 1.2\n"
    "print('ready', flush=True)\n"
    "while time.time() < stop:\n"
    "    with store.database.read() as read:\n"
    "        before = read.one('SELECT version_num FROM alembic_version')[0]\n"
    "        info = dict(read.all('SELECT name, value FROM store_info'))\n"
    "        seen.add((before, 'head' in info, 'needs' in info))\n"
    "    time.sleep(0.001)\n"
    "print(sorted(seen))\n"
)
"""Reads snapshots while others upgrade, and prints what it saw of the revision and of what belongs to it."""
SANE = {("0001", False, False), (SCHEMA_REVISION, True, True)}


def expected() -> dict[str, Any]:
    """What is in the old store."""
    found: dict[str, Any] = json.loads((OLD / "expected.json").read_text())["contents"]
    return found


def copy_old(folder: Path) -> None:
    """Put a copy of the old store into ``folder``."""
    folder.mkdir(parents=True)
    shutil.copyfile(OLD / "store.db", folder / "store.db")


def load_old(url: str) -> None:
    """Put the old store into an empty PostgreSQL database: its tables by Alembic, its rows as they are."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    from embedstore.shipped import shipped_folder
    from embedstore.storage.postgres import PostgresTransaction
    from embedstore.storage.schema import tables

    config = Config()
    config.set_main_option("script_location", str(shipped_folder("migrations")))
    engine = create_engine(url)
    held = sqlite3.connect(f"file:{OLD / 'store.db'}?immutable=1", uri=True)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table in tables.sorted_tables:
            names = [row[1] for row in held.execute(f"PRAGMA table_info({table.name})")]
            if not names:
                continue  # a table of a later revision
            rows = held.execute(f"SELECT {', '.join(names)} FROM {table.name}").fetchall()
            PostgresTransaction(connection).insert(table.name, names, rows)
    held.close()
    engine.dispose()


def revision(folder: Path, url: str | None) -> str:
    """The revision of the tables as another program reads it."""
    if url is None:
        connection = sqlite3.connect(f"file:{folder / 'store.db'}?mode=ro", uri=True)
    else:
        import psycopg

        connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))
    try:
        found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(found[0]) if found else ""
    finally:
        connection.close()


def spawn(script: str, folder: Path, url: str | None, start: float, failpoint: str = "") -> subprocess.Popen[str]:
    """Run ``script`` with the store's folder, its URL and the moment to begin."""
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}{os.pathsep}{TESTS / 'plugin'}"}
    environment.pop("EMBEDSTORE_FAILPOINT", None)
    if failpoint:
        environment["EMBEDSTORE_FAILPOINT"] = failpoint
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder), url or "", str(start)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def after_a_kill(folder: Path, url: str | None, failpoint: str, delay: float | None = None) -> list[str]:
    """Kill a process that upgrades, at a failpoint or after ``delay`` seconds; what is wrong afterwards."""
    faults = []
    with spawn(OPENER, folder, url, 0, failpoint) as process:
        if delay is not None:
            time.sleep(delay)
            process.kill()
        process.communicate()
    if delay is None and process.returncode != -9:
        faults.append(f"{failpoint} was not reached")
    found = revision(folder, url)
    if found not in ("0001", SCHEMA_REVISION):
        faults.append(f"the revision is {found!r} after {failpoint or delay}")
    if failpoint:
        wanted = SCHEMA_REVISION if failpoint == "migrate.committed" else "0001"
        if found != wanted:
            faults.append(f"the revision after {failpoint} is {found!r}, not {wanted!r}")
    with spawn(OPENER, folder, url, 0) as process:
        printed, errors = process.communicate()
    if process.returncode != 0 or json.loads(printed) != expected():
        faults.append(f"after {failpoint or delay} the store is not what it was: {errors[-500:]}")
    if revision(folder, url) != SCHEMA_REVISION:
        faults.append("the upgrade was not made up for")
    leftovers = [one.name for one in folder.iterdir() if ".partial" in one.name]
    return faults + [f"{name} is left over" for name in leftovers]


def race(folder: Path, url: str | None, n_openers: int, n_watchers: int) -> list[str]:
    """Let many processes open an old store at the same moment; what is wrong afterwards."""
    start = time.time() + 1.5 + 0.25 * (n_openers + n_watchers)
    watchers = [spawn(WATCHER, folder, url, start) for _ in range(n_watchers)]
    openers = [spawn(OPENER, folder, url, start) for _ in range(n_openers)]
    faults = []
    n_upgrades = 0
    for process in openers:
        printed, errors = process.communicate()
        n_upgrades += errors.count("upgrading ")
        if process.returncode != 0 or json.loads(printed) != expected():
            faults.append(f"a process could not read the store: {errors[-500:]}")
    for process in watchers:
        printed, errors = process.communicate()
        lines = printed.splitlines()
        if process.returncode != 0 or not set(map(tuple, _pairs(lines[-1]))) <= SANE:
            faults.append(f"a reader saw {lines[-1:]}: {errors[-500:]}")
    if n_upgrades != 1:
        faults.append(f"{n_upgrades} processes upgraded the store")
    return faults


def _pairs(line: str) -> list[list[Any]]:
    import ast

    found: list[list[Any]] = ast.literal_eval(line)
    return found


# ---- the long form


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="embedstore-migrations-") as name:
        yield Path(name)


@contextmanager
def databases() -> Iterator[Callable[[], str] | None]:
    """Makes PostgreSQL databases on a private server; None where there is no server to start."""
    import secrets

    from postgres_server import find_binaries, running_server

    binaries = find_binaries()
    if binaries is None:
        yield None
        return
    import psycopg

    with running_server(binaries) as url:

        def create() -> str:
            name = f"m{secrets.token_hex(6)}"
            with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return url.rsplit("/", 1)[0] + f"/{name}"

        yield create


class _Stores:
    """Old stores, one after the other, each in a folder or a database of its own."""

    def __init__(self, root: Path, create: Callable[[], str] | None) -> None:
        self._root = root
        self._create = create
        self.n_made = 0

    def next(self) -> tuple[Path, str | None]:
        """The folder of a new one, and its URL where it is on PostgreSQL."""
        self.n_made += 1
        folder = self._root / f"{'sqlite' if self._create is None else 'postgres'}-{self.n_made}"
        if self._create is None:
            copy_old(folder)
            return folder, None
        folder.mkdir()
        url = self._create()
        load_old(url)
        return folder, url


def campaign(seed: int, n_kills: int = 40, n_races: int = 5) -> dict[str, Any]:
    """Kill at every step, at ``n_kills`` random moments, and race; on SQLite and on PostgreSQL."""
    random = Random(seed)
    faults: list[str] = []
    rounds = 0
    with scratch() as root, databases() as create:
        for stores in (_Stores(root, None), *([] if create is None else [_Stores(root, create)])):
            for step in SQLITE_STEPS if stores.next()[1] is None else POSTGRES_STEPS:
                faults += after_a_kill(*stores.next(), step)
            for _ in range(n_kills):
                faults += after_a_kill(*stores.next(), "", delay=random.uniform(0.3, 1.2))
            for _ in range(n_races):
                faults += race(*stores.next(), n_openers=6, n_watchers=2)
            rounds += stores.n_made - 1
    return {"rounds": rounds, "violations": len(faults), "faults": faults[:20]}


CAMPAIGNS = {"migrations": campaign}
QUICK_CAMPAIGNS = {"migrations": lambda seed: campaign(seed, n_kills=2, n_races=1)}
