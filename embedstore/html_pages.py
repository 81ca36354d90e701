"""Pages that need no other file."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedstore.names import check_file
from embedstore.storage.files import replace_file, storage_errors

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse } td, th { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th { font-weight: 600 } .wide { overflow-x: auto }
.lens td, .lens th { text-align: center; white-space: pre; font-size: .85rem; padding: .15rem .4rem }
img, svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) { body { background: #16181b; color: #e6e6e6 } td, th { border-color: #333 } }
"""


def check_page(file: str | os.PathLike[str]) -> Path:
    """The path of a page that can be written; else InvalidInput."""
    return check_file(file, (".html", ".htm"), "page")


def write_page(file: str | os.PathLike[str], title: str, parts: Sequence[str]) -> Path:
    """Write parts of HTML as one page."""
    path = check_page(file)
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *parts])
    head = (
        f'<meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    )
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'
    with storage_errors(path):
        replace_file(path, page.encode("utf-8", "replace"))
    return path


def table(rows: Sequence[dict[str, object]]) -> str:
    """Rows with the same names as a table."""
    if not rows:
        return ""
    names = list(rows[0])
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(_shown(row.get(name)))}</td>" for name in names) + "</tr>" for row in rows
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_COLOURS = ("#4472c4", "#c55a11", "#548235", "#7030a0", "#bf9000", "#5b5b5b", "#c00000", "#00838f")


def curves(lines: Mapping[str, Mapping[int, tuple[float, float, float]]], metric: str) -> str:
    """Curves by layer with their intervals, as SVG; a value is (value, low, high)."""
    width, height, left, bottom = 640, 300, 50, 40
    layers = sorted({layer for line in lines.values() for layer in line})
    values = [one for line in lines.values() for point in line.values() for one in point]
    if not layers or not values:
        return ""
    low, high = min(values), max(values)
    room = 0.05 if high - low < 1e-9 else 0.04 * (high - low)
    low, high = low - room, high + room
    first, last = layers[0], max(layers[-1], layers[0] + 1)

    def x(layer: int) -> float:
        return left + (layer - first) / (last - first) * (width - left - 150)

    def y(value: float) -> float:
        return 10 + (high - value) / (high - low) * (height - bottom - 10)

    parts = []
    for number in range(5):
        value = low + (high - low) * number / 4
        parts.append(
            f'<line x1="{left}" x2="{width - 150}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#8884"/>'
            f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" font-size="11" fill="currentColor">'
            f"{value:.3g}</text>"
        )
    step = max(1, len(layers) // 16)
    for layer in layers[::step]:
        parts.append(
            f'<text x="{x(layer):.1f}" y="{height - 20}" text-anchor="middle" font-size="11" fill="currentColor">'
            f"{layer}</text>"
        )
    for number, (name, line) in enumerate(lines.items()):
        colour, there = _COLOURS[number % len(_COLOURS)], sorted(line)
        band = [f"{x(layer):.1f},{y(line[layer][1]):.1f}" for layer in there]
        band += [f"{x(layer):.1f},{y(line[layer][2]):.1f}" for layer in reversed(there)]
        points = " ".join(f"{x(layer):.1f},{y(line[layer][0]):.1f}" for layer in there)
        dots = "".join(
            f'<circle cx="{x(layer):.1f}" cy="{y(line[layer][0]):.1f}" r="3" fill="{colour}">'
            f"<title>{html.escape(name)}, layer {layer}: {line[layer][0]:.4f}</title></circle>"
            for layer in there
        )
        parts.append(
            f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>'
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>{dots}'
            f'<text x="{width - 142}" y="{20 + 16 * number}" font-size="12" fill="{colour}">{html.escape(name)}</text>'
        )
    parts.append(
        f'<text x="{(width - 100) / 2}" y="{height - 4}" text-anchor="middle" font-size="12" fill="currentColor">'
        f"layer</text>"
    )
    head = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(metric)} by layer">'
    return f"{head}{''.join(parts)}</svg>"


def heat_map(values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> str:
    """A matrix of numbers from 0 to 1 as a coloured table."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    lines = []
    for name, row in zip(rows, values, strict=True):
        cells = "".join(
            f'<td style="background:rgba(68,114,196,{min(max(value, 0.0), 1.0):.3f})">{value:.2f}</td>' for value in row
        )
        lines.append(f"<tr><th>{html.escape(name)}</th>{cells}</tr>")
    return f'<div class="wide"><table class="heat"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
