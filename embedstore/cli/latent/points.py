"""``embedstore latent``: points, ways between them, and directions."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.latent.group import (
    k_option,
    latent_command,
    out_option,
    read_pairs,
    seed_option,
    show_points,
    shown_hit,
    space_option,
    where_option,
)
from embedstore.cli.state import State, pass_state


@latent_command.command("analogy")
@click.argument("collection")
@click.argument("key")
@click.option("--plus", multiple=True, metavar="KEY", help="A record to add. Repeatable.")
@click.option("--minus", multiple=True, metavar="KEY", help="A record to take away. Repeatable.")
@click.option("--method", type=click.Choice(["3cosadd", "3cosmul", "pairdirection"]), default="3cosadd",
              show_default=True, help="By the sum, or of one plus and one minus by shares or by the way between them.")
@click.option("--include-sources", is_flag=True, help="Do not leave out the records of the expression.")
@k_option
@space_option
@where_option
@pass_state
def analogy_command(
    state: State, /, collection: str, key: str, plus: tuple[str, ...], minus: tuple[str, ...], **options: Any
) -> None:
    """Print the records of COLLECTION nearest to KEY plus and minus others.

    Where the space compares by cosine, each counts at length one.

    \b
    embedstore latent analogy words king --minus man --plus woman -k 5
    """
    from embedstore.cli.output import print_rows

    method, where, k = options["method"], options["where"], options["k"]
    if method != "3cosadd" and (len(plus), len(minus)) != (1, 1):
        raise click.UsageError(f"--method {method} takes one --plus and one --minus")
    with state.collection(collection) as found:
        space = found.space(options["space"])
        if method == "3cosadd":
            point = _at_one(space[key])
            for one in plus:
                point = point + _at_one(space[one])
            for one in minus:
                point = point - _at_one(space[one])
            hits = point.nearest(k, where=where, include_sources=options["include_sources"])
        else:
            hits = space.analogy(
                minus[0], key, plus[0], k, method=method, where=where, include_sources=options["include_sources"]
            )
        print_rows([shown_hit(hit) for hit in hits], state.format_)


def _at_one(point: Any) -> Any:
    return point.normalize() if point.space.metric.value == "cosine" else point


@latent_command.command("analogies")
@click.argument("collection")
@click.argument("file", type=click.Path())
@click.option("--method", type=click.Choice(["3cosadd", "3cosmul", "pairdirection"]), default="3cosadd",
              show_default=True, help="How an analogy is solved.")
@space_option
@pass_state
def analogies_command(state: State, /, collection: str, file: str, **options: Any) -> None:
    """Print how many analogies of FILE the space solves, by section.

    FILE has four words a line, and sections after a colon, as word2vec's questions-words.txt. Words are keys.
    """
    from embedstore.cli.output import print_rows

    with state.collection(collection) as found:
        report = found.space(options["space"]).analogies(file, method=options["method"])
    rows = [
        {"section": one.name, "questions": one.n, "right": one.n_right,
         "accuracy": None if one.accuracy is None else round(one.accuracy, 4)}
        for one in [*report.sections, report.total]
    ]  # fmt: skip
    print_rows(rows, state.format_)
    if report.n_left_out:
        state.note(f"{report.n_left_out:,} questions hold a word that is no record's key")


@latent_command.command("interpolate")
@click.argument("collection")
@click.argument("start", metavar="KEY1")
@click.argument("end", metavar="KEY2")
@click.option("--steps", type=int, default=9, show_default=True, metavar="N", help="Points, both ends among them.")
@click.option("--way", type=click.Choice(["slerp", "lerp"]), default="slerp", show_default=True,
              help="Along the great circle, or straight.")
@click.option("--moving", is_flag=True, help="One after the other in a WebP, too, as in a GIF.")
@out_option
@space_option
@pass_state
def interpolate_command(state: State, /, collection: str, start: str, end: str, **options: Any) -> None:
    """Walk from one record to another: what lies on the way, or what it decodes to.

    \b
    embedstore latent interpolate faces anna ben --steps 9 --out strip.png
    """
    with state.collection(collection) as found:
        space = found.space(options["space"])
        points = space.interpolate(start, end, options["steps"], way=options["way"])
        show_points(state, [points], options["out"], moving=options["moving"])


@latent_command.command("traverse")
@click.argument("collection")
@click.argument("key")
@click.option("--dimension", "dimensions", type=int, multiple=True, metavar="N",
              help="Which of the point's numbers changes, from 0. Repeatable; else all, up to 16.")
@out_option
@space_option
@pass_state
def traverse_command(
    state: State, /, collection: str, key: str, dimensions: tuple[int, ...], **options: Any
) -> None:
    """Show what each dimension does: KEY with other values of one of its numbers, from -3 to 3."""
    with state.collection(collection) as found:
        space = found.space(options["space"])
        chosen = dimensions or range(min(space.dim or 0, 16))
        show_points(state, [space.traverse(key, one) for one in chosen], options["out"])


@latent_command.command("decode")
@click.argument("collection")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@out_option
@space_option
@pass_state
def decode_command(state: State, /, collection: str, keys: tuple[str, ...], **options: Any) -> None:
    """Decode the vectors of records: what an autoencoder makes of them."""
    from embedstore.encoders.spec import TABLE_VAE

    with state.collection(collection) as found:
        space = found.space(options["space"])
        if options["out"] is None and space.root.family != TABLE_VAE:
            raise click.UsageError("a picture is decoded into a file: give --out FILE")
        show_points(state, [[space[key] for key in keys]], options["out"])


@latent_command.command("sample")
@click.argument("collection")
@click.option("-n", "n", type=int, default=8, show_default=True, metavar="N", help="How many points.")
@click.option("--of", type=click.Choice(["prior", "posterior"]), default="prior", show_default=True,
              help="Of the autoencoder's prior, or of a mixture fitted to the space's vectors.")
@click.option("--into", metavar="COLLECTION", help="Keep what is decoded as records of another collection.")
@seed_option
@out_option
@space_option
@pass_state
def sample_command(state: State, /, collection: str, into: str | None, **options: Any) -> None:
    """Draw points at random and decode them."""
    from embedstore.cli.output import print_mapping
    from embedstore.latent.strips import check_strip

    if options["out"] is not None:
        check_strip(options["out"])
    if into == collection:
        raise click.UsageError("--into names the collection itself; give another one for what is drawn")
    with state.collection(collection) as found:
        points = found.space(options["space"]).sample(options["n"], of=options["of"], seed=options["seed"])
        if into is not None:
            report = found.keep_decoded(points, into, about={"of": options["of"], "seed": options["seed"]})
            print_mapping({"collection": into, **report.to_dict()}, state.format_)
            if options["out"] is None:
                return
        show_points(state, [points], options["out"])


@latent_command.command("direction")
@click.argument("collection")
@click.argument("name")
@click.option("--positive", metavar="EXPR", help="The records that it leads to.")
@click.option("--negative", metavar="EXPR", help="The records that it leads from.")
@click.option("--pairs", metavar="FILE", help="Pairs of keys, from and to, one a line with a tab between, instead.")
@click.option("--method", type=click.Choice(["mean", "logistic", "pairs"]),
              help="Difference of means, logistic regression, principal component of pairs.  [mean; pairs for pairs]")
@click.option("--forget", is_flag=True, help="Forget the direction of that name.")
@seed_option
@space_option
@pass_state
def direction_command(state: State, /, collection: str, name: str, **options: Any) -> None:
    """Fit the direction NAME from one group of records to another, and keep it with the space.

    One that has the name is replaced.

    \b
    embedstore latent direction faces smile --positive "smiling = true" --negative "smiling = false"
    embedstore latent move faces anna smile --out strip.png
    """
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        space = found.space(options["space"])
        if options["forget"]:
            if any(options[one] is not None for one in ("positive", "negative", "pairs", "method")):
                raise click.UsageError("--forget goes with no other option but --space")
            space.forget_direction(name)
            state.note(f"forgot the direction {name!r} of {space}")
            return
        made = space.fit_direction(
            name, positive=options["positive"], negative=options["negative"],
            pairs=None if options["pairs"] is None else read_pairs(options["pairs"]), method=options["method"],
            seed=options["seed"],
        )  # fmt: skip
        print_mapping({"direction": made.name, "space": str(space), **made.about}, state.format_)


@latent_command.command("directions")
@click.argument("collection")
@space_option
@pass_state
def directions_command(state: State, /, collection: str, space: str | None) -> None:
    """Print the directions that a space keeps."""
    from embedstore.cli.output import print_rows

    with state.collection(collection) as found:
        rows = [{"direction": one.name, **one.about} for one in found.space(space).directions()]
    print_rows(rows, state.format_, empty="no directions")


@latent_command.command("move")
@click.argument("collection")
@click.argument("key")
@click.argument("direction")
@click.option("--strength", type=float, default=1.0, show_default=True, metavar="X", help="How far to go.")
@click.option("--steps", type=int, default=7, show_default=True, metavar="N", help="Of a strip: from -X to X.")
@k_option
@out_option
@space_option
@where_option
@pass_state
def move_command(state: State, /, collection: str, key: str, direction: str, **options: Any) -> None:
    """Go from KEY along a direction: the records nearest to where that leads, or a strip of what is decoded."""
    import numpy as np

    from embedstore.cli.output import print_rows

    with state.collection(collection) as found:
        space = found.space(options["space"])
        way, strength = space.direction(direction), options["strength"]
        if options["out"] is not None:
            if options["steps"] < 2:
                raise click.UsageError(f"--steps is {options['steps']}; it must be 2 or more")
            shares = np.linspace(-strength, strength, options["steps"]).tolist()
            show_points(state, [[space[key] + share * way for share in shares]], options["out"])
            return
        hits = (space[key] + strength * way).nearest(options["k"], where=options["where"])
        print_rows([shown_hit(hit) for hit in hits], state.format_)
