"""``embedstore index`` and ``recipes``."""

from __future__ import annotations

import click

from embedstore.cli.state import State, pass_state


@click.command("index")
@click.argument("collection")
@click.option("--space", metavar="NAME", help="The space; else the collection's first one.")
@click.option("--recipe", metavar="NAME", help="Change to this recipe; see 'embedstore recipes'.")
@pass_state
def index_command(state: State, collection: str, space: str | None, recipe: str | None) -> None:
    """Bring the index of a space of COLLECTION up to date, or build it by another recipe."""
    import time

    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        started = time.perf_counter()
        built = found.index(space=space, recipe=recipe).describe()
        shown = {name: built[name] for name in ("name", "recipe", "n_vectors", "n_uncached", "n_unindexed")}
        print_mapping({**shown, "seconds": round(time.perf_counter() - started, 3)}, state.format_)


@click.command("recipes")
@pass_state
def recipes_command(state: State) -> None:
    """List the index recipes."""
    from embedstore.cli.output import print_rows
    from embedstore.indexing.recipes import all_recipes

    print_rows(
        [
            {"recipe": one.name, "factory": one.factory, "exact": one.exact, "summary": one.summary}
            for one in all_recipes().values()
        ],
        state.format_,
    )
