"""``embedstore latent``: what a space is like, what is strange in it, how it falls into clusters."""

from __future__ import annotations

from typing import Any

import click

from embedstore.cli.latent.group import latent_command, seed_option, space_option, where_option
from embedstore.cli.state import State, pass_state


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
@click.option("--label", metavar="FIELD",
              help="Of an autoencoder: a field to predict from the vectors, and to tell reconstruction by.")
@click.option("--sample", type=int, default=2000, show_default=True, metavar="N", help="Through how many records.")
@click.option("--beside", metavar="SPACE", help="Tell how alike another space is, too.")
@click.option("--drift", nargs=2, metavar="EXPR EXPR", help="Test whether two sets of records are alike, too.")
@click.option("--html", metavar="FILE", help="Write it as a page to look at, too.")
@seed_option
@space_option
@where_option
@pass_state
def diagnose_command(state: State, /, collection: str, **options: Any) -> None:
    """Tell what a space is like: intrinsic dimension, isotropy, hubs, duplicates, drift.

    Of a trained autoencoder's space also what its dimensions tell, how the prior is filled, how well one can walk it.

    \b
    embedstore latent diagnose papers --beside pca --html papers.html
    """
    from embedstore.cli.output import print_mapping
    from embedstore.html_pages import check_page
    from embedstore.latent.report import report_on, write_report

    if options["html"] is not None:
        check_page(options["html"])
    with state.collection(collection) as found:
        told = report_on(
            found, options["space"], where=options["where"], label=options["label"], sample=options["sample"],
            seed=options["seed"], beside=options["beside"], drift=options["drift"],
        )  # fmt: skip
    for line in told.pop("unreadable", ()):
        state.note(f"not read: {line}")
    if options["html"] is not None:
        write_report(told, options["html"])
    print_mapping(told, state.format_)


@latent_command.command("cluster")
@click.argument("collection")
@click.option("--method", type=click.Choice(["kmeans", "gmm", "hdbscan"]), default="kmeans", show_default=True,
              help="k-means, a Gaussian mixture, or dense regions.")
@click.option("--clusters", "k", type=int, metavar="N", help="How many; gmm chooses by the BIC where it is not told.")
@click.option("--least", type=int, default=5, show_default=True, metavar="N",
              help="For hdbscan: the fewest records of a cluster.")
@click.option("--sample", type=int, default=20_000, show_default=True, metavar="N", help="To how many it is fitted.")
@click.option("--store-as", metavar="FIELD", help="Keep the label of every record in this field.")
@seed_option
@space_option
@where_option
@pass_state
def cluster_command(state: State, /, collection: str, **options: Any) -> None:
    """Group the records of COLLECTION into clusters."""
    from embedstore.cli.output import print_mapping

    with state.collection(collection) as found:
        print_mapping(found.cluster(**options).to_dict(), state.format_)
