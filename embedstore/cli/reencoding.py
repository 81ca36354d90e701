"""``embedstore reencode``."""

from __future__ import annotations

import click

from embedstore.cli.state import State, pass_state


@click.command("reencode")
@click.argument("collection")
@click.option("--encoder", required=True, metavar="NAME", help="What makes the vectors from now on.")
@click.option("--space", metavar="NAME", help="The space; else the collection's default one.")
@click.option("--keep", is_flag=True, help="Keep the old space, as SPACE.old.")
@pass_state
def reencode_command(state: State, collection: str, encoder: str, space: str | None, keep: bool) -> None:
    """Make a space of COLLECTION anew with another encoder. The old one serves until the new one is whole.

    Interrupted and called again, it goes on where it was.
    """
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        report = found.reencode(encoder, space=space, keep=keep)
        print_mapping({"collection": collection, "encoded": report.encoded, "encoder": encoder}, state.format_)
