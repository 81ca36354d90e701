"""``embedstore index`` and ``recipes``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from embedstore.cli.state import State, pass_state

if TYPE_CHECKING:
    from embedstore.collection import Collection

_SHOWN = ("name", "recipe", "n_vectors", "n_uncached", "n_unindexed")


@click.command("index")
@click.argument("collection")
@click.option("--space", metavar="NAME", help="The space; else the collection's default one.")
@click.option("--recipe", metavar="NAME", help="Change to this recipe; see 'embedstore recipes'.")
@click.option("--tune", is_flag=True, help="Measure recipes and settings on the space's own vectors; take the fastest"
              " that reaches --recall; with --recipe, the settings of that one, and flat.")
@click.option("--recall", type=float, default=0.95, show_default=True, metavar="R",
              help="With --tune: the share of the true nearest that must be found.")
@click.option("-k", "k", type=click.IntRange(1), default=10, show_default=True, metavar="N",
              help="With --tune: among how many nearest.")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N",
              help="With --tune: of the vectors that are drawn to be asked for.")
@click.option("--plot", type=click.Path(dir_okay=False), metavar="FILE",
              help="Draw what was measured when the space was tuned: recall against time (PNG, SVG or PDF).")
@pass_state
def index_command(
    state: State, collection: str, space: str | None, recipe: str | None, tune: bool, recall: float, k: int, seed: int,
    plot: str | None,
) -> None:  # fmt: skip
    """Bring the index of a space of COLLECTION up to date, or build it by another recipe, or tune it."""
    import time

    from embedstore.cli.output import print_mapping

    _refuse_idle_options(tune)
    if plot is not None:
        from embedstore.plots import check_picture

        check_picture(plot)
    with state.collection(collection) as found:
        if plot is not None and not tune:
            if recipe is not None:
                raise click.UsageError("--plot draws what was measured; give it alone, or with --tune")
            _plot(found, space, plot)
            state.note(f"{plot} shows what was measured")
            return
        started = time.perf_counter()
        if tune:
            found.tune(
                recall=recall, k=k, space=space, recipes=None if recipe is None else [recipe], seed=seed,
                progress=state.note,
            )  # fmt: skip
            built = found.space(space).describe()
            if recipe is not None and built["recipe"] != recipe:
                state.note(f"no setting of {recipe!r} reaches a recall of {recall} faster than 'flat', which is kept")
        else:
            built = found.index(space=space, recipe=recipe).describe()
        print_mapping(
            {**{name: built[name] for name in _SHOWN}, **_measured(built),
             "seconds": round(time.perf_counter() - started, 3)}, state.format_,
        )  # fmt: skip
        if built.get("tune_again"):
            state.note(f"tune it again: {built['tune_again']}")
        if plot is not None:
            _plot(found, space, plot)


def _refuse_idle_options(tune: bool) -> None:
    """Refuse options that only tuning would heed."""
    context = click.get_current_context()
    for name in () if tune else ("recall", "k", "seed"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{'-k' if name == 'k' else '--' + name} is for --tune; give that too")


def _measured(built: dict[str, Any]) -> dict[str, Any]:
    """What is known of a space's recall, where its recipe is the one that was measured."""
    if built["recall"] is None:
        return {}
    names = ("settings", "recall", "recall_at", "search_microseconds", "measured_at")
    return {name: built[name] for name in names}


def _plot(found: Collection, space: str | None, file: str) -> None:
    from embedstore.plots import plot_tuning

    plot_tuning(found.space(space), file)


@click.command("recipes")
@click.argument("recipe", required=False)
@pass_state
def recipes_command(state: State, recipe: str | None) -> None:
    """List the index recipes; with a RECIPE, all that is known of it and its measured curve."""
    from embedstore.cli.output import print_mapping, print_rows
    from embedstore.indexing.recipes import all_recipes, find_recipe, measured_curve, measured_on

    if recipe is None:
        print_rows(
            [
                {"recipe": one.name, "factory": one.factory, "metrics": ", ".join(m.value for m in one.metrics),
                 "summary": one.summary}
                for one in all_recipes().values()
            ],
            state.format_,
        )  # fmt: skip
        return
    one = find_recipe(recipe)
    measured: Any = measured_curve(one.name)
    if state.format_ == "table":
        measured = {
            " ".join(f"{name} {value}" for name, value in point["settings"].items()) or "as it is":
                f"recall@10 {point['recall_at_10']:.4f}, {point['microseconds']:.0f} µs"
            for point in measured
        }  # fmt: skip
    print_mapping(
        {
            "recipe": one.name, "summary": one.summary, "use": one.use, "factory": one.factory,
            "metrics": [metric.value for metric in one.metrics], "placement": one.placement.value,
            "build": dict(one.build), "search": dict(one.search),
            "useful": {name: list(values) for name, values in one.useful.items()}, "rescore": one.rescore,
            "dims": one.dims, "mapped": one.mapped, "min_vectors": one.min_vectors,
            "measured_on": measured_on(one.name), "measured": measured,
        },
        state.format_,
    )  # fmt: skip
