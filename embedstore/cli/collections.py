"""``embedstore collections``, ``spaces`` and ``stats``."""

from __future__ import annotations

import click

from embedstore.cli.state import State, pass_state
from embedstore.wording import counted


@click.command("collections")
@pass_state
def collections_command(state: State) -> None:
    """List the collections of the store."""
    from embedstore.cli.output import print_rows

    with state.opened() as store:
        rows = []
        for name in store.collections():
            collection = store.collection(name)
            spaces = [space.name for space in collection.spaces()]
            rows.append({"collection": name, "records": len(collection), "spaces": ", ".join(spaces)})
        print_rows(rows, state.format_, empty="the store has no collections yet")


@click.command("spaces")
@click.argument("collection")
@click.option("--add", metavar="NAME", help="Add a space of this name, and encode every record into it.")
@click.option("--encoder", metavar="NAME", help="With --add, what makes its vectors; none for vectors that are given.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "euclidean"]),
              help="With --add, how its vectors are compared; else as the encoder says.")
@click.option("--recipe", metavar="NAME", help="With --add, its index; see 'embedstore recipes'.  [default: flat]")
@click.option("--dim", type=int, metavar="N", help="With --add, the numbers of its vectors, where they will be given.")
@click.option("--drop", metavar="NAME", help="Delete this space with its vectors first; not the default one.")
@click.option("--fill", is_flag=True, help="Give records the vectors that they lack, where something was interrupted.")
@pass_state
def spaces_command(
    state: State, collection: str, add: str | None, encoder: str | None, metric: str | None, recipe: str | None,
    dim: int | None, drop: str | None, fill: bool,
) -> None:  # fmt: skip
    """List the spaces of COLLECTION, or add or delete one first.

    \b
    embedstore spaces films --add multilingual --encoder st:./models/multilingual
    """
    from embedstore.cli.output import print_rows

    if (add is None) != (encoder is None):
        raise click.UsageError("--add and --encoder belong together: --add NAME --encoder NAME")
    for name, value in (("--metric", metric), ("--recipe", recipe), ("--dim", dim)):
        if value is not None and add is None:
            raise click.UsageError(f"{name} is for a space that is added: --add NAME --encoder NAME {name} ...")
    with state.collection(collection) as found:
        if add is not None:
            found.add_space(add, encoder=str(encoder), metric=metric, recipe=recipe or "flat", dim=dim)
            state.note(f"{counted(found.space(add).describe()['n_vectors'], 'vector')} in the new space {add!r}")
        if drop is not None:
            state.note(f"{counted(found.drop_space(drop), 'vector')} deleted with the space {drop!r}")
        if fill:
            state.note(f"{counted(found.fill_spaces().updated, 'record')} lacked vectors")
        shown = ("name", "dim", "metric", "recipe", "n_vectors", "encoder")
        print_rows(
            [{name: described[name] for name in shown} for described in (s.describe() for s in found.spaces())],
            state.format_,
        )


@click.command("stats")
@click.argument("collection", required=False)
@pass_state
def stats_command(state: State, collection: str | None) -> None:
    """Tell what the store holds, or COLLECTION: records, fields, spaces, digests."""
    from embedstore.cli.output import print_mapping

    with state.opened(builds=False) as store:  # who asks what is pending is not to change it
        stats = store.stats() if collection is None else store.existing_collection(collection).stats()
        print_mapping(stats, state.format_)
