"""What a training leaves to be read and looked at: the model's card, and one HTML file with curves and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from embedstore.vae.image_model import ImageModel
from embedstore.vae.item_feed import ItemFeed
from embedstore.vae.preparation import Pixels
from embedstore.vae.training import Epoch
from embedstore.version import __version__

if TYPE_CHECKING:
    from embedstore.vae.image_training import TrainingReport

_SHOWN = 16
_STEPS = np.linspace(-3.0, 3.0, 9)
_MOST_TRAVERSED = 12
_LEAST_SIDE = 56
_WIDTH, _HEIGHT, _MARGIN = 640, 260, 48
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}"
    "img{image-rendering:pixelated;display:block;margin:.4em 0}table{border-collapse:collapse}"
    "td,th{padding:.15em .8em .15em 0;text-align:left}h2{margin-top:1.6em}"
)


def card(model: ImageModel, report: TrainingReport) -> str:
    """The model's card, in Markdown."""
    made, how = model.architecture, model.preparation
    settings = model.made["settings"]
    return f"""# An image autoencoder of embedstore

A variational autoencoder ({made.kind}, {made.likelihood} likelihood) of {made.size} x {made.size}
{"grey" if made.channels == 1 else "colour"} pictures with a latent vector of {made.latent_dim} numbers, trained by
embedstore {__version__}.

**Trained on** {report.n_pictures:,} pictures ({len(report.refused):,} were refused); every picture is prepared by
`{how.fit}` to {how.size} x {how.size}, mode {how.mode}, alpha over {how.background}. BLAKE2b-128 of the prepared
pixels: `{model.made["pixels"]}`.

**How**: {len(report.trained.epochs)} epochs ({report.trained.ended}), batches of {settings["batch"]}, learning rate
{settings["learning_rate"]:g}, beta {settings["beta"]:g}, free nats {settings["free_nats"]:g}, seed {settings["seed"]}.

**How well**, on the {settings["validation"]:.0%} that were held out: -ELBO {report.negative_elbo:.2f} nats a picture
(reconstruction {report.reconstruction:.2f} + KL {report.kl:.2f}), mean squared error of a pixel {report.mse:.5f},
{report.active_units} of {report.latent_dim} units active.

It knows what it was trained on and nothing else: pictures of another kind are mapped somewhere, and decode badly.

`config.json` tells what it is, `model.safetensors` holds the weights, `report.html` shows what it does.
"""


def html_report(
    model: ImageModel, report: TrainingReport, feed: ItemFeed, learned: np.ndarray, held_out: np.ndarray
) -> str:
    """One self-contained page: curves, reconstructions, samples of the prior, a traversal of each dimension."""
    parts = [
        f"<h1>{escape(report.folder.name)}</h1>", _table(report),
        "<h2>Curves</h2>", curves(report.trained.epochs),
        "<h2>Reconstructions of held-out pictures</h2><p>Above what went in, below what came out.</p>",
        _img(_reconstructions(model, feed, held_out[:_SHOWN])),
        "<h2>Reconstructions of pictures that were learned</h2>",
        _img(_reconstructions(model, feed, learned[:_SHOWN])),
        "<h2>Samples of the prior</h2>", _img(_samples(model)),
        "<h2>Traversals</h2><p>A row for each dimension, the ones that tell most first: from -3 to 3, the others as"
        " they are for one held-out picture.</p>", _img(_traversals(model, feed, held_out)),
    ]  # fmt: skip
    title = escape(report.folder.name)
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{STYLE}</style>"
        f"</head><body>{''.join(parts)}</body></html>\n"
    )


def _table(report: TrainingReport) -> str:
    rows = "".join(
        f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(str(value))}</td></tr>"
        for name, value in report.to_dict().items()
        if name != "model"
    )
    refused = "".join(f"<li>{escape(line)}</li>" for line in report.refused[:100])
    return f"<table>{rows}</table>" + (f"<h2>Refused</h2><ul>{refused}</ul>" if refused else "")


def curves(epochs: Sequence[Epoch]) -> str:
    """Minus the ELBO by epoch, in training and on what was held out, as SVG."""
    if len(epochs) < 2:
        return "<p>One epoch has no curve.</p>"
    lines = {"training": [one.training for one in epochs], "held out": [one.validation for one in epochs]}
    values = [value for line in lines.values() for value in line]
    least, most = min(values), float(np.quantile(values, 0.95))
    span = most - least or 1.0

    def point(place: int, value: float) -> str:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * place / (len(epochs) - 1)
        y = _MARGIN / 2 + (_HEIGHT - _MARGIN) * (1 - (min(value, most) - least) / span)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f"<polyline fill='none' stroke='{colour}' stroke-width='2'"
        f" points='{' '.join(point(place, value) for place, value in enumerate(line))}'/>"
        f"<text x='{_WIDTH - _MARGIN}' y='{20 + 18 * row}' fill='{colour}' text-anchor='end'>{name}</text>"
        for row, ((name, line), colour) in enumerate(zip(lines.items(), ("#888", "#06c"), strict=True))
    )
    axes = (
        f"<text x='4' y='{_MARGIN / 2 + 5}'>{most:.0f}</text><text x='4' y='{_HEIGHT - _MARGIN / 2}'>{least:.0f}</text>"
        f"<text x='{_MARGIN}' y='{_HEIGHT - 4}'>epoch 1</text>"
        f"<text x='{_WIDTH - _MARGIN}' y='{_HEIGHT - 4}' text-anchor='end'>epoch {len(epochs)}</text>"
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' font-size='13' role='img'"
        f" aria-label='minus the ELBO by epoch'>{axes}{drawn}</svg>"
    )


def _reconstructions(model: ImageModel, feed: ItemFeed, places: np.ndarray) -> list[Pixels]:
    pixels = feed.items(places)
    return [pixels, model.decode(model.encode(pixels)[0])]


def _samples(model: ImageModel) -> list[Pixels]:
    drawn = np.random.default_rng(0).standard_normal((3 * _SHOWN, model.architecture.latent_dim), np.float32)
    decoded = model.decode(drawn)
    return [decoded[row * _SHOWN : (row + 1) * _SHOWN] for row in range(3)]


def _traversals(model: ImageModel, feed: ItemFeed, held_out: np.ndarray) -> list[Pixels]:
    means, log_variances = model.encode(feed.items(held_out[:256]))
    kl = 0.5 * (means**2 + np.exp(log_variances) - 1 - log_variances).mean(axis=0)
    rows = []
    for dimension in np.argsort(-kl)[:_MOST_TRAVERSED].tolist():
        line = np.repeat(means[:1], len(_STEPS), axis=0)
        line[:, dimension] = _STEPS
        rows.append(model.decode(line))
    return rows


def _img(rows: Sequence[Pixels]) -> str:
    """Rows of pictures (n, channels, size, size) as one picture in the page."""
    from PIL import Image

    side = rows[0].shape[-1]
    width = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (side + 2), width * (side + 2), rows[0].shape[1]), 255, np.uint8)
    for line, row in enumerate(rows):
        for place, pixels in enumerate(row):
            top, left = line * (side + 2), place * (side + 2)
            sheet[top : top + side, left : left + side] = pixels.transpose(1, 2, 0)
    written = io.BytesIO()
    Image.fromarray(sheet[..., 0] if sheet.shape[2] == 1 else sheet).save(written, "PNG", optimize=True)
    scale = max(1, round(_LEAST_SIDE / side))
    encoded = base64.b64encode(written.getvalue()).decode()
    return f"<img alt='' width='{sheet.shape[1] * scale}' src='data:image/png;base64,{encoded}'>"
