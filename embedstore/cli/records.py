"""``embedstore get``, ``update``, ``delete``, ``count`` and ``sample``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from embedstore.cli.state import State, pass_state

if TYPE_CHECKING:
    from embedstore.collection import Collection

_NO_METADATA = {"key", "text", "image", "row", "vector", "vectors", "uri", "metadata"}


@click.command("get")
@click.argument("collection")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--where", metavar="EXPR", help="The records for which this holds, instead of keys.")
@click.option("--limit", type=click.IntRange(1, 2**31), help="At most so many, with --where; else all.")
@pass_state
def get_command(state: State, collection: str, keys: tuple[str, ...], where: str | None, limit: int | None) -> None:
    """Print records of COLLECTION by KEY, or by --where."""
    from embedstore.cli.output import print_rows, records_as_rows

    if bool(keys) == (where is not None):
        raise click.UsageError("give either keys or --where ('_key IS NOT NULL' holds for every record)")
    if keys and limit is not None:
        raise click.UsageError("--limit is for --where; of keys every one is printed")
    with state.collection(collection) as found:
        if where is not None:
            print_rows(records_as_rows(found.records(where, limit=limit)), state.format_)
            return
        print_rows(records_as_rows([found.get(key) for key in keys]), state.format_)


@click.command("update")
@click.argument("collection")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@click.option("--set", "assigned", multiple=True, metavar="FIELD=VALUE",
              help="Set a field; a value that is JSON (12, true, [1, 2]) is read as such, anything else is text.")
@click.option("--unset", multiple=True, metavar="FIELD", help="Remove a field.")
@pass_state
def update_command(
    state: State, collection: str, keys: tuple[str, ...], assigned: tuple[str, ...], unset: tuple[str, ...]
) -> None:
    """Change metadata of the records of COLLECTION with these KEYs; texts and vectors stay."""
    from embedstore.cli.output import print_mapping

    changes = [*(_assignment(one) for one in assigned), *((name, None) for name in unset)]
    fields = dict(changes)
    if not fields:
        raise click.UsageError("nothing to change: give --set FIELD=VALUE or --unset FIELD")
    if len(fields) < len(changes):
        twice = next(name for name in fields if sum(name == other for other, _ in changes) > 1)
        raise click.UsageError(f"what is to become of {twice!r} is said twice; say it once")
    with state.collection(collection) as found:
        doubtful = sorted(_NO_METADATA & fields.keys())
        for name in doubtful and set(doubtful) - found.stats()["fields"].keys():
            raise click.UsageError(f"{name!r} is no metadata; update changes metadata only, and 'ingest' the rest")
        report = found.update([{"key": key, "metadata": fields} for key in keys])
        print_mapping({"updated": report.updated, "unchanged": report.unchanged}, state.format_)


def _assignment(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.UsageError(f"--set {text!r} cannot be read; write it as FIELD=VALUE")
    try:
        return name, json.loads(value, parse_constant=_no_number)  # keeps whole numbers whole, however large
    except (ValueError, RecursionError):
        return name, value


def _no_number(word: str) -> None:
    raise ValueError(word)  # NaN and its like are no JSON


@click.command("delete")
@click.argument("collection")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option("--where", metavar="EXPR", help="The records for which this holds, instead of keys.")
@click.option("--collection", "whole", is_flag=True, help="The collection itself, with everything in it.")
@click.option("--dry-run", is_flag=True, help="Only say how many records it would be.")
@pass_state
def delete_command(
    state: State, collection: str, keys: tuple[str, ...], where: str | None, whole: bool, dry_run: bool
) -> None:
    """Delete records of COLLECTION by KEY, or by --where, or the whole collection."""
    from embedstore.cli.output import print_mapping

    if [bool(keys), where is not None, whole].count(True) != 1:
        raise click.UsageError("give either keys, or --where, or --collection")
    with state.collection(collection) as found:
        if dry_run:
            n = len(found.get_many(keys)) if keys else found.count(where)
            _note_unknown(state, found, keys)
            print_mapping({"would_delete": n, "records": len(found)}, state.format_)
            return
        if whole:
            print_mapping({"deleted": found.drop(), "records": 0}, state.format_)
            return
        _note_unknown(state, found, keys)
        n = found.delete(where=where) if where is not None else found.delete(list(keys))
        print_mapping({"deleted": n, "records": len(found)}, state.format_)


def _note_unknown(state: State, found: Collection, keys: tuple[str, ...]) -> None:
    unknown = [key for key in dict.fromkeys(keys) if key not in found]
    if unknown:
        state.note(f"no record has the key {', '.join(map(repr, unknown[:5]))}" + (" ..." if unknown[5:] else ""))


@click.command("count")
@click.argument("collection")
@click.option("--where", metavar="EXPR", help="Only records for which this holds.")
@pass_state
def count_command(state: State, collection: str, where: str | None) -> None:
    """Count the records of COLLECTION."""
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        n = found.count(where)
    if state.format_ == "table":
        click.echo(n)
    else:
        print_mapping({"count": n}, state.format_)


@click.command("sample")
@click.argument("collection")
@click.option("-n", "n", type=int, default=10, show_default=True, help="How many.")
@click.option("--where", metavar="EXPR", help="Only records for which this holds.")
@click.option("--seed", type=int, help="The same seed draws the same records.")
@pass_state
def sample_command(state: State, collection: str, n: int, where: str | None, seed: int | None) -> None:
    """Print records of COLLECTION drawn at random."""
    from embedstore.cli.output import print_rows, records_as_rows

    with state.collection(collection) as found:
        print_rows(records_as_rows(found.sample(n, where=where, seed=seed)), state.format_)
