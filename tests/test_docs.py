"""The documentation is true: its examples are run, its generated pages are fresh, its links lead somewhere."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
GENERATED = ROOT / "docs" / "cli.md"
POSTGRES_PAGE = ROOT / "docs" / "howto" / "postgres.md"
POSTGRES_URL = "postgresql+psycopg://me@db.example.org/library"
DOCTEST_OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
DECIMAL = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")

# Decisions are records of their day, and benchmark tables are results; their links are checked, their code is not run.
NOT_RUN = (ROOT / "docs" / "decisions", ROOT / "docs" / "benchmarks.md")

NOT_RUNNABLE = {
    "make demo    # makes .venv, installs, and answers three queries about a small sample\n"
    "make test    # the same, and runs every test",
    "pip install '.[cpu,offline]'",
    "pip uninstall -y faiss-cpu && pip install --force-reinstall --no-deps faiss-gpu",
    "pip install -c constraints.txt '.[cpu,offline]'",
    "pip install torch --index-url https://download.pytorch.org/whl/cpu\npip install '.[cpu,offline]'",
    "pip install '.[cpu,postgres]'",
    "make              # lint, types and tests\n"
    "make test         # the tests alone; make test PYTEST_ARGS='-k filters' runs some\n"
    "make demo         # what a new user sees\n"
    "make docs         # writes docs/cli.md anew\n"
    "make bench        # the benchmarks, some minutes",
    "make faults    # every campaign in its long form, about an hour; results go to tests/faults/results.json",
    "pg_dump --format=custom --file=library.dump --dbname=postgresql://me@db.example.org/library\n"
    "pg_restore --dbname=postgresql://me@db.example.org/empty library.dump",
}
"""Every ``sh`` block, by its exact content."""

TEXT_BLOCKS = {
    "library/\n"
    "    store.db              the truth: every record, vector and commit\n"
    "    store.db-wal          SQLite's write-ahead log; part of the truth while it is there\n"
    "    store.db-shm          SQLite's index of that log\n"
    "    HEAD                  the newest commit that was acknowledged\n"
    "    writer.lock           locked by the process that writes; holds the id and program of whoever locked it last\n"
    "    cache/\n"
    "        space-1/          one folder a space\n"
    "            MANIFEST\n"
    "            exact-….f32\n"
    "            bytes-….u8    where a large space is scanned\n"
    "            labels-….i64\n"
    "            hnsw-….faiss  where an index was built; some have .f32 and .sums files of their own\n"
    "            build.lock\n"
    "        keywords-1.db     one file a collection, SQLite's FTS5; beside it keywords-1.seal and .lock",
    '[project.entry-points."embedstore.encoders"]\n'
    'letters = "my_package:LettersEncoder"',
}
"""Every ``text`` block outside the generated page, by its exact content."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: the page and line it stands at, its language and its content."""

    page: Path
    line: int
    language: str
    content: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page for readers."""
    return [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")), *sorted(ROOT.glob("docs/**/*.md"))
    ]  # fmt: skip


def run_pages() -> list[Path]:
    """The pages whose blocks are run."""
    return [page for page in pages() if page not in NOT_RUN and not set(page.parents) & set(NOT_RUN)]


def named(page: Path) -> str:
    """A page's name in a test's name."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    fence, language, start, content = "", "", 0, []
    for number, line in enumerate(lines, start=1):
        opened = re.match(r"\s*(`{3,}|~{3,})\s*(.*)", line)
        if not fence and opened:
            fence, language, start, content = opened[1], opened[2].strip(), number, []
        elif fence and line.strip() == fence:
            yield Block(page, start, language, textwrap.dedent("\n".join(content)))
            fence = ""
        elif fence:
            content.append(line)
    assert not fence, f"{named(page)}: the block that opens at line {start} is never closed"


# ---- the blocks are of known kinds


@pytest.mark.parametrize("page", run_pages(), ids=named)
def test_every_block_is_run_or_is_listed_as_not_runnable(page):
    for block in blocks_of(page):
        if block.language in ("python", "console"):
            continue
        if block.language == "sh":
            assert block.content in NOT_RUNNABLE, f"{block.place}: not in NOT_RUNNABLE:\n{block.content}"
        elif block.language == "text":
            listed = page == GENERATED or block.content in TEXT_BLOCKS
            assert listed, f"{block.place}: not in TEXT_BLOCKS:\n{block.content}"
        else:
            pytest.fail(f"{block.place}: blocks are python, console, sh or text, not {block.language!r}")


def test_what_is_listed_as_not_runnable_is_still_there():
    found = {block.content for page in run_pages() for block in blocks_of(page)}
    assert NOT_RUNNABLE | TEXT_BLOCKS <= found


# ---- the blocks are run


class Session:
    """What the blocks of one page share: a folder, variables, and an environment."""

    def __init__(self, folder: Path, replaced: dict[str, str]) -> None:
        self._folder = folder
        self._replaced = replaced
        self._variables: dict[str, Any] = {"__name__": "page"}
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'plugin'}",
            "PYTHONWARNINGS": "error::ResourceWarning",
            "COLUMNS": "120",
        }
        for name in ("EMBEDSTORE_STORE", "EMBEDSTORE_DATABASE"):
            self._environment.pop(name, None)

    def run(self, block: Block) -> None:
        content = block.content
        for shown, real in self._replaced.items():
            content = content.replace(shown, real)
        if block.language == "console":
            self._run_commands(block, content)
        elif content.startswith(">>>"):
            self._run_prompted(block, content)
        else:
            padding = "\n" * block.line  # so that a traceback names the page's own line
            exec(compile(padding + content, str(block.page), "exec"), self._variables)

    def _run_prompted(self, block: Block, content: str) -> None:
        test = doctest.DocTestParser().get_doctest(content, {}, block.place, str(block.page), block.line)
        test.globs = self._variables
        report: list[str] = []
        runner = doctest.DocTestRunner(TolerantChecker(), optionflags=DOCTEST_OPTIONS)
        failed = runner.run(test, out=report.append, clear_globs=False).failed
        assert not failed, "".join(report)

    def _run_commands(self, block: Block, content: str) -> None:
        for command, expected in commands_of(content):
            done = subprocess.run(
                command, shell=True, cwd=self._folder, env=self._environment, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=120, check=False, encoding="utf-8",
            )  # fmt: skip
            found = "\n".join(line.rstrip() for line in done.stdout.splitlines())
            shown = f"{block.place}: {command}\nends with {done.returncode} and prints:\n{found}"
            failed = any(f"embedstore: {word}:" in expected for word in ("error", "damage"))
            assert (done.returncode != 0) == failed, shown
            if expected:
                assert matches(expected, found), f"{shown}\nthe page shows:\n{expected}"


def commands_of(content: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output shown below it; a backslash at the end goes on."""
    command: list[str] = []
    output: list[str] = []
    for line in content.splitlines():
        if command and command[-1].endswith("\\") and not output:
            command.append(line)
        elif line.startswith("$ "):
            if command:
                yield "\n".join(command), "\n".join(output).strip("\n")
            command, output = [line[2:]], []
        else:
            assert command, f"output without a command: {line!r}"
            output.append(line.rstrip())
    if command:
        yield "\n".join(command), "\n".join(output).strip("\n")


def matches(expected: str, found: str) -> bool:
    """Whether an output is the one shown, in which ``...`` stands for anything.

    Numbers with decimals may differ by 0.001: an encoder's last digits depend on the processor.
    """
    wanted = [float(number) for number in DECIMAL.findall(expected)]
    pattern = DECIMAL.sub("\0", expected)
    pattern = ".*?".join(re.escape(part) for part in pattern.split("..."))
    pattern = pattern.replace(re.escape("\0"), rf"({DECIMAL.pattern})")
    match = re.fullmatch(pattern, found.strip("\n"), re.DOTALL)
    return match is not None and all(
        abs(float(number) - one) <= 0.001 for number, one in zip(match.groups(), wanted, strict=True)
    )


class TolerantChecker(doctest.OutputChecker):
    """Doctest's own comparison, and where that fails ``matches``, which lets decimals differ a little."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        if super().check_output(want, got, optionflags):
            return True
        return matches(" ".join(want.split()), " ".join(got.split()))


def test_shown_output_matches_exactly_but_for_dots_and_last_digits():
    assert matches("a ... c", "a b\nb c")
    assert not matches("a", "a b")
    assert not matches("a.c", "abc")
    assert matches("score 0.4735 of ...", "score 0.4739 of all")
    assert not matches("score 0.4735", "score 0.4835")
    assert not matches("0.5", "1")


def run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, replaced: dict[str, str]) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.delenv("EMBEDSTORE_MINILM", raising=False)
    session = Session(folder, replaced)
    for block in blocks_of(page):
        if block.language in ("python", "console"):
            session.run(block)


@pytest.mark.parametrize("page", [page for page in run_pages() if page != POSTGRES_PAGE], ids=named)
def test_examples_do_what_the_page_says(page, tmp_path, monkeypatch):
    run_page(page, tmp_path, monkeypatch, {})


@pytest.mark.postgres
def test_postgresql_examples_do_what_the_page_says(fresh_database, tmp_path, monkeypatch):
    run_page(POSTGRES_PAGE, tmp_path, monkeypatch, {POSTGRES_URL: fresh_database})


# ---- the reference is fresh and whole


def test_the_command_reference_is_what_make_docs_writes():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", "--check"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_in_the_reference():
    from embedstore.cli.main import COMMANDS

    headings = re.findall(r"^## embedstore (\S+)$", GENERATED.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(headings) >= set(COMMANDS)


# ---- links


def anchors_of(page: Path) -> set[str]:
    """The anchors that a page's headings get on GitHub."""
    inside = {
        line for block in blocks_of(page) for line in range(block.line, block.line + block.content.count("\n") + 3)
    }
    found = set()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        heading = re.match(r"#+ +(.*)", line)
        if heading and number not in inside:
            plain = re.sub(r"[^\w\- ]", "", heading[1].strip().lower())
            found.add(plain.replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", pages(), ids=named)
def test_links_lead_somewhere(page):
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{named(page)} links to {target}"
        assert linked.is_relative_to(ROOT), f"{named(page)} links outside the project: {target}"
        if anchor:
            assert anchor in anchors_of(linked), f"{named(page)} links to {target}, which has no such heading"


def test_every_page_is_in_the_table_of_contents():
    index = ROOT / "docs" / "index.md"
    linked = {(index.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", index.read_text())}
    howto = set(ROOT.glob("docs/*.md")) | set(ROOT.glob("docs/howto/*.md"))
    assert howto - {index} <= linked


def test_the_library_reference_leaves_out_what_there_is_and_nothing_else(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import library

    text = (ROOT / "docs" / "library.md").read_text()
    for name, members in library.INTERNAL.items():
        kind = library._named(name)
        assert members <= vars(kind).keys(), name
    for name in library.CLASSES:
        assert f"\n## {name}\n" in text
        for member, value in library._members(library._named(name)):
            assert f"\n### {member}\n" in text
            assert (value.fget if isinstance(value, property) else value).__doc__, f"{name}.{member} says nothing"
