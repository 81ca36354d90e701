"""``embedstore export`` and ``import``."""

from __future__ import annotations

import click

from embedstore.cli.state import State, pass_state


@click.command("export")
@click.argument("collection")
@click.argument("file")
@click.option("--where", metavar="EXPR", help="Only records for which this holds.")
@click.option("--no-vectors", is_flag=True, help="Leave the vectors out.")
@click.option("--overwrite", is_flag=True, help="Replace FILE, whatever it is; an earlier export is always replaced.")
@pass_state
def export_command(
    state: State, collection: str, file: str, where: str | None, no_vectors: bool, overwrite: bool
) -> None:
    """Write the records of COLLECTION to FILE: .parquet or .jsonl, with their vectors."""
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        n = found.export(file, where=where, vectors=not no_vectors, overwrite=overwrite)
        print_mapping({"exported": n, "file": file}, state.format_)


@click.command("import")
@click.argument("collection")
@click.argument("file")
@pass_state
def import_command(state: State, collection: str, file: str) -> None:
    """Read FILE, written by export, into COLLECTION; only what was written without vectors is encoded again."""
    from embedstore.cli.output import print_mapping

    with state.opened() as store:
        target = store.collection(collection)
        report = target.import_(file)
        print_mapping({"collection": collection, **report.to_dict(), "records": len(target)}, state.format_)
