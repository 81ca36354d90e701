"""Writes what is generated of the documentation.

``docs/cli.md`` comes from the help of every command, ``docs/library.md`` from docstrings, the table of
``docs/reliability.md`` from the results of the fault campaigns. ``python docs/build.py`` writes them; with ``--check``
it changes nothing and exits 1 where one is stale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import library

from embedstore.cli.main import COMMANDS, cli

PAGE = Path(__file__).with_name("cli.md")
LIBRARY = Path(__file__).with_name("library.md")
RELIABILITY = Path(__file__).with_name("reliability.md")
CAMPAIGNS = Path(__file__).resolve().parents[1] / "tests" / "faults" / "results.json"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
WIDTH = 100

_HEAD = """\
# Command reference

This page is generated: `make docs` writes it from the help of each command (`embedstore COMMAND --help`).

Results go to standard output, progress and messages to standard error. The exit code says what happened:

| code | meaning |
|---|---|
| 0 | done |
| 1 | something failed |
| 2 | the call or the input was wrong |
| 3 | another process holds the store |
| 4 | damage was found |
| 130, 143 | interrupted, terminated |
"""


def page() -> str:
    """The text of ``docs/cli.md``."""
    parts = [_HEAD, *(_section(path, command) for path, command in commands())]
    return "\n".join(parts)


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command with its path, groups before what they hold."""
    yield "embedstore", cli
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        yield f"embedstore {name}", command
        if isinstance(command, click.Group):
            for inner, subcommand in command.commands.items():
                yield f"embedstore {name} {inner}", subcommand


def _section(path: str, command: click.Command) -> str:
    context = click.Context(
        command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=["-h", "--help"]
    )
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    shown = "\n".join(lines).strip()
    return f"## {path}\n\n```text\n{shown}\n```\n"


def reliability() -> str:
    """The text of ``docs/reliability.md``, with the table of what the campaigns found."""
    before, _, rest = RELIABILITY.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = ["| campaign | rounds | violations | seconds |", "|---|---|---|---|"]
    for name, figures in sorted(json.loads(CAMPAIGNS.read_text(encoding="utf-8")).items()):
        shown = f"{figures['rounds']:,} | {figures['violations']:,} | {figures['seconds']:,.0f}"
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}"


def main() -> int:
    """Write the pages, or with ``--check`` hold them against what would be written."""
    stale = False
    for path, text in ((PAGE, page()), (LIBRARY, library.page()), (RELIABILITY, reliability())):
        fresh = path.is_file() and path.read_text(encoding="utf-8") == text
        if "--check" in sys.argv[1:]:
            print(f"{path} is {'up to date' if fresh else 'out of date; run: make docs'}")
            stale = stale or not fresh
        else:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
