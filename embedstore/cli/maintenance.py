"""``embedstore verify``, ``backup``, ``restore``, ``repair`` and ``compact``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.state import State, pass_state

if TYPE_CHECKING:
    from embedstore.maintenance import Problem

DAMAGE_FOUND = 4


@click.command("verify")
@pass_state
@click.pass_context
def verify_command(context: click.Context, /, state: State) -> None:
    """Check the whole store: every row against its hash, every count and digest, every cache file.

    Nothing is changed. Every problem is printed; the exit code is 4 where there is any.
    """
    from embedstore.cli.output import print_lines, print_mapping, print_rows

    with state.opened() as store:
        report = store.verify()
    if report.ok or state.format_ in ("json", "ndjson"):
        problems = _problems(report.problems) if state.format_ in ("json", "ndjson") else 0
        print_mapping({**_counts(report), "problems": problems}, state.format_)
    elif state.format_ == "csv":
        print_rows(_problems(report.problems), state.format_)
    else:
        print_lines(report.problems)
    if report.ok:
        return
    n_lost = len(report.lost)
    if n_lost:
        state.note(
            f"embedstore: damage: {n_lost:,} problem{'s' if n_lost > 1 else ''} in the database. Keep a copy; then"
            " restore a backup, or salvage what is whole, if there is anything, with 'embedstore repair --into FOLDER'"
        )
    else:
        state.note("embedstore: damage: only in caches; they are made anew when they are next used, nothing is lost")
    context.exit(DAMAGE_FOUND)


def _counts(report: Any) -> dict[str, int]:
    return {name: value for name, value in asdict(report).items() if isinstance(value, int)}


def _problems(problems: list[Problem]) -> list[dict[str, str]]:
    return [{"part": one.part, "name": one.name, "found": one.what} for one in problems]


@click.command("backup")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace FILE where it exists.")
@pass_state
def backup_command(state: State, file: Path, overwrite: bool) -> None:
    """Write the store, as it is at its newest commit, to FILE; others may go on reading and writing.

    The copy is verified before it gets its name. 'embedstore restore' makes a store of it.
    """
    from embedstore.cli.output import print_mapping

    with state.opened() as store:
        print_mapping(asdict(store.backup(file, overwrite=overwrite)), state.format_)


@click.command("restore")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@pass_state
def restore_command(state: State, file: Path) -> None:
    """Make a store from the backup FILE in the folder that --store names, which must not hold one."""
    import embedstore
    from embedstore.cli.output import print_mapping
    from embedstore.errors import InvalidInput

    if state.database is not None:
        raise InvalidInput("a backup is restored into a folder; for PostgreSQL use pg_restore")
    print_mapping(asdict(embedstore.restore(file, state.store)), state.format_)


@click.command("repair")
@click.option("--into", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Where the new store is made; else the store's folder with '.repaired' behind its name.")
@pass_state
@click.pass_context
def repair_command(context: click.Context, /, state: State, into: Path | None) -> None:
    """Salvage every record and vector that is whole into a new store, and list what is not.

    The damaged store is not changed. The exit code is 4 where something could not be brought over.
    """
    import embedstore
    from embedstore.cli.output import print_lines, print_mapping, print_rows
    from embedstore.errors import InvalidInput

    if state.database is not None:
        raise InvalidInput("repair reads a folder; a damaged PostgreSQL database is restored from its own backup")
    report = embedstore.repair(state.store, into)
    if not report.lost or state.format_ in ("json", "ndjson"):
        lost = _problems(report.lost) if state.format_ in ("json", "ndjson") else 0
        print_mapping({"path": report.path, **_counts(report), "lost": lost}, state.format_)
    elif state.format_ == "csv":
        print_rows(_problems(report.lost), state.format_)
    else:
        print_lines(report.lost)
    if report.lost:
        state.note(
            f"embedstore: damage: {report.path} has {report.n_records:,} records, {report.n_vectors:,} vectors that are"
            " whole; what is listed could not be brought over"
        )
        context.exit(DAMAGE_FOUND)


@click.command("compact")
@pass_state
def compact_command(state: State) -> None:
    """Give back room: free pages of the database, logs, dead rows in caches, files left behind."""
    from embedstore.cli.output import print_mapping

    with state.opened() as store:
        report = store.compact()
        print_mapping(asdict(report), state.format_)
        if report.bytes_after > report.bytes_before:
            state.note("the log could not be emptied while others read; run compact again when they are done")
