"""The group ``embedstore probe``, and the options that its commands share."""

from __future__ import annotations

from typing import Any

import click


@click.group("probe")
def probe_command() -> None:
    """Look into a language model, layer by layer."""


prefix_option = click.option("--prefix", default="", metavar="TEXT", help="Before the names of the layers' spaces.")
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn at random.")
where_option = click.option("--where", metavar="EXPR", help="Only records for which this holds.")
site_option = click.option("--site", default="hidden", show_default=True, metavar="NAME",
                           help="hidden, final_norm, attention, mlp or head.")  # fmt: skip
layers_option = click.option("--layers", default="all", show_default=True, metavar="LIST",
                             help="all, or numbers such as 0,3,-1.")  # fmt: skip


def layer_options(command: Any) -> Any:
    """Which captured layers are measured, and by which records."""
    for option in (where_option, seed_option, site_option, prefix_option, layers_option):
        command = option(command)
    return command


def chosen_layers(given: str) -> Any:
    """``--layers`` as the library takes it."""
    if given == "all":
        return "all"
    try:
        return [int(one) for one in given.split(",")]
    except ValueError:
        raise click.UsageError(f"--layers is {given!r}; give all, or numbers with commas between: 0,3,-1") from None
