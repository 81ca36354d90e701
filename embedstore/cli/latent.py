"""``embedstore latent``: what can be computed in a collection's spaces."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.state import State, pass_state


@click.group("latent")
def latent_command() -> None:
    """Compute in the spaces of a collection."""


@latent_command.command("anomaly")
@click.argument("collection")
@click.option("--space", metavar="NAME", help="The space; else the collection's default one.")
@click.option("--method", type=click.Choice(["reconstruction", "elbo", "knn"]), default="reconstruction",
              show_default=True, help="By what the autoencoder does not give back, by its bound, or by distance.")
@click.option("--where", metavar="EXPR", help="Only records for which this holds.")
@click.option("--top", type=int, default=20, show_default=True, metavar="N", help="How many records.")
@click.option("--quantile", type=float, default=0.99, show_default=True, metavar="Q",
              help="From which share of ordinary records on one counts as strange.")
@click.option("--neighbour", type=int, default=5, show_default=True, metavar="N", help="For knn: to which one.")
@click.option("--store-as", metavar="FIELD", help="Keep score, share and strange of every record in this field.")
@pass_state
def anomaly_command(state: State, /, collection: str, **options: Any) -> None:
    """Print the strangest records of COLLECTION, the strangest first.

    \b
    embedstore latent anomaly parts --top 5
    embedstore latent anomaly parts --store-as odd && embedstore get parts --where "odd.strange = true"
    """
    from embedstore.cli.output import print_rows

    with state.collection(collection) as found:
        report = found.anomalies(**options)
    for line in report.unreadable:
        state.note(f"not scored: {line}")
    rows = [
        {"key": one.key, "score": one.score, "share": round(one.share, 4), "strange": one.strange}
        for one in report.anomalies
    ]
    print_rows(rows, state.format_)
    state.note(f"{report.n_strange:,} of {report.n_scored:,} are beyond {report.threshold:.6g}")


@latent_command.command("diagnose")
@click.argument("collection")
@click.option("--space", metavar="NAME", help="The space; else the collection's default one.")
@click.option("--label", metavar="FIELD", help="A field to predict from the vectors, and to tell reconstruction by.")
@click.option("--where", metavar="EXPR", help="Only records for which this holds.")
@click.option("--sample", type=int, default=2000, show_default=True, metavar="N", help="Through how many records.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of which records are drawn.")
@pass_state
def diagnose_command(state: State, /, collection: str, **options: Any) -> None:
    """Tell what the latent space of an autoencoder is like: what its dimensions tell, how well one can walk it."""
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        diagnosis = found.diagnose(**options).to_dict()
    for line in diagnosis.pop("unreadable"):
        state.note(f"not read: {line}")
    print_mapping(diagnosis, state.format_)
