"""``embedstore latent``: spaces that are made of others."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.latent.group import latent_command, seed_option, space_option, where_option
from embedstore.cli.state import State, pass_state


@latent_command.command("reduce")
@click.argument("collection")
@click.option("--method", default="pca", show_default=True, metavar="NAME",
              help="pca, whiten, all-but-the-top, random, truncate, pullback, lda, erase, umap, tsne, pacmap, product.")
@click.option("--dim", type=int, metavar="N", help="Numbers of a vector of the new space.")
@click.option("--name", metavar="NAME", help="Of the new space; else that of the method.")
@click.option("--metric", type=click.Choice(["cosine", "dot", "euclidean"]),
              help="How the new space compares; else as the other one, by distance if a map, erase or one number.")
@click.option("--label", metavar="FIELD", help="What lda tells apart, and erase makes untellable.")
@click.option("--with", "others", multiple=True, metavar="NAME", help="Of a product, the spaces beside --space.")
@click.option("--weight", "weights", type=float, multiple=True, metavar="X",
              help="Of a product, what each space counts, in their order.")
@click.option("--sample", type=int, default=10_000, show_default=True, metavar="N",
              help="To how many records a map is fitted.")
@seed_option
@space_option
@where_option
@pass_state
def reduce_command(state: State, /, collection: str, method: str, name: str | None, **options: Any) -> None:
    """Make a space of another one, with a vector for every record; those that come later are placed in it, too.

    \b
    embedstore latent reduce papers --method pca --dim 64
    embedstore latent reduce papers --method erase --label language
    embedstore latent reduce papers --method product --space title --with picture --weight 2 --weight 1
    """
    from embedstore.cli.output import print_mapping

    first, others, weights = options.pop("space"), options.pop("others"), options.pop("weights")
    with state.collection(collection) as found:
        options["of"] = [first or found.space().name, *others] if others else first
        space = found.add_space(name or method, reduce=method, weights=weights or None, **options)
        told = space.describe()
    told.pop("shares", None)
    kept = ("name", "dim", "metric", "n_vectors", "made_of", "method", "n_fitted", "explained_variance", "parts",
            "fidelity")  # fmt: skip
    print_mapping({name: told[name] for name in kept if name in told}, state.format_)


@latent_command.command("map")
@click.argument("collection")
@click.option("--method", type=click.Choice(["umap", "tsne", "pacmap", "pca"]),
              help="How records are laid out; else umap, or as the map is that there is.")
@click.option("--name", default="map", show_default=True, metavar="NAME", help="Of the new space, or of one there is.")
@click.option("--label", metavar="FIELD", help="By which field records are coloured.")
@click.option("--sample", type=int, default=10_000, show_default=True, metavar="N",
              help="To how many records it is fitted.")
@click.option("--out", metavar="FILE", help="Draw it: PNG, SVG or PDF.")
@seed_option
@space_option
@where_option
@pass_state
def map_command(state: State, /, collection: str, method: str | None, name: str, **options: Any) -> None:
    """Lay the records of COLLECTION out in two numbers, as a space of its own, and draw them.

    \b
    embedstore latent map papers --label venue --out papers.png
    """
    from embedstore.cli.output import print_mapping
    from embedstore.errors import InvalidInput
    from embedstore.plots import check_picture, draw_map

    if options["out"] is not None:
        check_picture(options["out"])
    with state.collection(collection) as found:
        label, parent = options["label"], options["space"]
        if label is not None:
            found.count({label: {"$exists": True}})  # refuses a field that no record has
        if name not in [space.name for space in found.spaces()]:
            found.add_space(
                name, reduce=method or "umap", dim=2, of=parent, sample=options["sample"], metric="euclidean",
                seed=options["seed"], where=options["where"],
            )  # fmt: skip
        space = found.space(name)
        made = space.describe()
        asked = (made["dim"], method or made.get("method"), parent or made.get("made_of"))
        if made.get("method") is None or asked != (2, made.get("method"), made.get("made_of")):
            of = f", made by {made['method']} of {made['made_of']}" if "made_of" in made else ""
            raise InvalidInput(
                f"there is a space {name!r} already, of {made['dim']} numbers{of}; give the map another --name"
            )
        if options["out"] is not None:
            draw_map(space, options["out"], label=options["label"], where=options["where"])
        told = space.describe()
    kept = ("name", "dim", "n_vectors", "made_of", "method", "n_fitted", "fidelity")
    print_mapping({name: told[name] for name in kept if name in told}, state.format_)
