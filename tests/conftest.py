"""What the tests share: data, stores, a PostgreSQL server, and an encoder that can be computed in the head."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import embedstore

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "plugin"))
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("EMBEDSTORE_CACHE", str(ROOT / ".cache"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["EMBEDSTORE_BUILD"] = "0"  # tests that build in the background ask for it


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets; the test is skipped where it is absent."""
    from shared import data_folder

    folder = data_folder()
    if folder is None:
        pytest.skip("no folder of data sets (../shared/data, or EMBEDSTORE_DATA)")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[embedstore.Store]:
    """An empty store in a folder of its own."""
    with embedstore.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(scope="session")
def square_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small image autoencoder, trained on pictures of a light square."""
    from vae.made import trained_on_squares

    folder = tmp_path_factory.mktemp("models") / "squares"
    trained_on_squares(folder)
    return folder


@pytest.fixture(scope="session")
def people_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small table autoencoder, trained on rows of people."""
    from vae.made import trained_on_people

    folder = tmp_path_factory.mktemp("models") / "people"
    trained_on_people(folder)
    return folder


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a private PostgreSQL server. In CI there must be one; elsewhere its absence skips the test."""
    from postgres_server import find_binaries, running_server

    binaries = find_binaries()
    if binaries is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL's server binaries are missing; .ci/run installs them")
        pytest.skip("PostgreSQL's server binaries are not installed (Debian: postgresql)")
    with running_server(binaries) as url:
        yield url


@pytest.fixture
def fresh_database(postgres_url: str) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    import secrets

    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    admin = postgres_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres_url.rsplit("/", 1)[0] + f"/{name}"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[embedstore.Store]:
    """An empty store, once in SQLite and once in PostgreSQL."""
    url = request.getfixturevalue("fresh_database") if request.param == "postgres" else None
    with embedstore.open(tmp_path / "store", database=url) as opened:
        yield opened


@pytest.fixture
def letters_calls() -> list[int]:
    """How many texts each call of the encoder ``letters`` was given, from now on."""
    import embedstore_letters

    embedstore_letters.calls.clear()
    return embedstore_letters.calls


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``embedstore`` as a process of its own, in an empty folder, with the store ``tmp_path/store``."""

    def run(*arguments: str, stdin: str | bytes = b"", **options: object) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ, "EMBEDSTORE_STORE": str(tmp_path / "store"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'plugin'}", "COLUMNS": "160",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-m", "embedstore", *arguments],
            input=stdin.encode() if isinstance(stdin, str) else stdin, capture_output=True, cwd=tmp_path,
            env=environment, timeout=120, check=False, **options,
        )  # fmt: skip
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode(errors="backslashreplace")
        )

    return run
