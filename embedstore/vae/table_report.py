"""What the training of a table leaves to be read: the model's card, and one HTML file with its curves and columns."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from embedstore.vae.image_report import STYLE, curves
from embedstore.vae.table_model import TableModel
from embedstore.version import __version__

if TYPE_CHECKING:
    from embedstore.vae.table_training import TableReport


def card(model: TableModel, report: TableReport) -> str:
    """The model's card, in Markdown."""
    settings = model.made["settings"]
    columns = "\n".join(
        f"| {one.name} | {one.kind.value} | {one.n_seen:,} |" for one in model.schema.columns
    )
    return f"""# A table autoencoder of embedstore

A variational autoencoder of rows with a latent vector of {report.latent_dim} numbers, trained by embedstore
{__version__} on {report.n_rows:,} rows: {len(report.trained.epochs)} epochs ({report.trained.ended}), learning rate
{settings["learning_rate"]:g}, beta {settings["beta"]:g}, {settings["hidden"]:.0%} of the columns hidden from the
encoder, seed {settings["seed"]}.

On the {settings["validation"]:.0%} that were held out: -ELBO {report.negative_elbo:.2f} nats a row,
{report.active_units} of {report.latent_dim} units active.

| column | kind | values seen |
|---|---|---|
{columns}

Rows must have these columns and no others, each with values of its kind; a category that was not seen counts as any
other. Free text is read, but not decoded.
"""


def html_report(report: TableReport) -> str:
    """One self-contained page: curves, and how well each column is given back."""
    scores = [(name, f"R² {value:.3f}") for name, value in report.numeric_r2.items()]
    scores += [(name, f"accuracy {value:.3f}") for name, value in report.categorical_accuracy.items()]
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{score}</td></tr>" for name, score in scores)
    facts = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in report.to_dict().items() if name != "model"
    )  # fmt: skip
    title = escape(report.folder.name)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"</head><body><h1>{title}</h1><table>{facts}</table><h2>Curves</h2>{curves(report.trained.epochs)}"
        f"<h2>Held-out rows, given back column by column</h2><table>{rows}</table></body></html>\n"
    )
