"""Everything that can be told of a space, as one mapping and as one page to look at."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from embedstore.encoders.spec import IMAGE_VAE, TABLE_VAE
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.html_pages import write_page

if TYPE_CHECKING:
    from embedstore.collection import Collection

_BARS = 64
_WIDTH, _HEIGHT = 640, 120


def report_on(
    collection: Collection,
    space: str | None,
    *,
    where: Where | None = None,
    label: str | None = None,
    sample: int = 2000,
    seed: int = 0,
    beside: str | None = None,
    drift: Sequence[Where] | None = None,
) -> dict[str, Any]:
    """The structure of a space; of a trained autoencoder's what ``diagnose`` tells; likeness and drift where asked."""
    here = collection.space(space)
    if label is not None and here.family not in (IMAGE_VAE, TABLE_VAE):
        raise InvalidInput(f"{here} is no space of a trained autoencoder, for which alone a label is of use")
    told = {**here.structure(where=where, sample=sample, seed=seed).to_dict(), "space": str(here)}
    if beside is not None:
        told["beside"] = {"space": beside, **asdict(here.likeness(beside, sample=sample, seed=seed))}
    if drift is not None:
        told["drift"] = asdict(here.drift(drift[0], drift[1], seed=seed))
    if here.family in (IMAGE_VAE, TABLE_VAE):
        told |= collection.diagnose(space=space, label=label, where=where, sample=sample, seed=seed).to_dict()
    return told


def write_report(told: Mapping[str, Any], file: str | os.PathLike[str]) -> None:
    """Write a report as one HTML file that needs no other."""
    parts = ["<table>"]
    for name, value in told.items():
        if name == "space" or (isinstance(value, list) and value and isinstance(value[0], float)):
            continue
        parts.append(f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{_shown(value)}</td></tr>")
    parts.append("</table>")
    for name, value in told.items():
        if isinstance(value, list) and value and isinstance(value[0], float):
            parts.append(f"<h2>{html.escape(name.replace('_', ' '))}, dimension by dimension</h2>{_bars(value)}")
    write_page(file, f"The space {told['space']}", parts)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{html.escape(str(name))}: {_shown(one)}" for name, one in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "<br>".join(_shown(one) for one in value[:20]) + (" …" if len(value) > 20 else "") or "none"
    return html.escape(f"{value:.4g}" if isinstance(value, float) else str(value))


def _bars(values: Sequence[float]) -> str:
    """Values as bars above and below a line."""
    shown = values[:_BARS]
    greatest = max(max(map(abs, shown)), 1e-12)
    low, high = min(0.0, *shown), max(0.0, *shown)
    scale = (_HEIGHT - 10) / max(high - low, 1e-12)
    zero, width = 5 + high * scale, _WIDTH / len(shown)
    drawn = "".join(
        f"<rect x='{place * width:.1f}' y='{zero - max(value, 0) * scale:.1f}' width='{width * 0.8:.1f}'"
        f" height='{abs(value) * scale:.1f}' fill='#4472a8'><title>{place}: {value:.4g}</title></rect>"
        for place, value in enumerate(shown)
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' role='img' aria-label='up to {greatest:.4g}'>"
        f"<line x1='0' x2='{_WIDTH}' y1='{zero:.1f}' y2='{zero:.1f}' stroke='#999'/>{drawn}</svg>"
    )
