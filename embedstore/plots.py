"""Pictures of what was measured, by matplotlib."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput, StorageFailed
from embedstore.names import check_file
from embedstore.optional import require

if TYPE_CHECKING:
    from embedstore.filters.parse import Where
    from embedstore.space import Space

_MOST_COLOURS = 10
_SUFFIXES = (".png", ".svg", ".pdf")

CurvePoint = tuple[float, float]
"""Microseconds of a search, and its recall."""


def plot_tuning(space: Space, file: str) -> None:
    """Draw the curve of a tuned space, recall against microseconds, one line a recipe, what was chosen marked.

    Raises InvalidInput for a space that was never tuned or a suffix that is no picture's, MissingDependency without
    matplotlib.
    """
    check_picture(file)
    curve, chosen = space.tuning_curve(), space.tuning()
    if not curve or chosen["recall"] is None:
        raise InvalidInput(
            f"the space '{space}' was not tuned with the recipe it has, so there is nothing to draw: embedstore index"
            " --tune"
        )
    lines: dict[str, list[CurvePoint]] = {}
    best = None
    for point in curve:
        place = (point["search_microseconds"], point["recall"])
        lines.setdefault(point["recipe"], []).append(place)
        if _is_chosen(point, space.describe()["recipe"], chosen):
            best = place
    title = f"{space}, {space.dim} numbers a vector, measured {chosen['measured_at'][:10]}"
    draw_curves(lines, file, title=title, recall_name=f"recall@{chosen['recall_at']}", chosen=best)


def check_picture(file: str) -> Path:
    """The path of a picture that can be drawn; else InvalidInput, or MissingDependency without matplotlib."""
    path = check_file(file, _SUFFIXES, "picture")
    require("matplotlib", "viz")
    return path


def draw_curves(
    lines: Mapping[str, Sequence[CurvePoint]],
    file: str,
    *,
    title: str,
    recall_name: str,
    chosen: CurvePoint | None = None,
) -> None:
    """Draw recall against time, one line for each name, to a PNG, SVG or PDF file."""
    path = check_picture(file)
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
    if chosen is not None:
        axes.plot(
            *chosen, linestyle="none", marker="*", markersize=18, color="black", fillstyle="none", label="chosen"
        )
    axes.set_xscale("log")
    axes.set_xlabel("microseconds a search")
    axes.set_ylabel(recall_name)
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    _save(figure, path)


def draw_map(space: Space, file: str, *, label: str | None = None, where: Where | None = None) -> None:
    """Draw the records of a space of two numbers as points, coloured by a field of numbers or of classes."""
    path = check_picture(file)
    from matplotlib.figure import Figure

    places, labels = space.places(label, where)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    size = max(1.0, min(30.0, 20_000 / max(len(places), 1)))
    numbers = [one for one in labels if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if label is None:
        axes.scatter(places[:, 0], places[:, 1], s=size, linewidths=0)
    elif len(numbers) == len(labels) and len(set(numbers)) > _MOST_COLOURS:
        drawn = axes.scatter(places[:, 0], places[:, 1], s=size, c=numbers, linewidths=0, cmap="viridis")
        figure.colorbar(drawn, ax=axes, label=label)
    else:
        counts = Counter(str(one) for one in labels if one is not None)
        shown = sorted((word for word, _ in counts.most_common(_MOST_COLOURS)), key=_in_order)
        words = np.asarray(["" if one is None else str(one) for one in labels])
        rest = ~np.isin(words, shown)
        if rest.any():
            x, y = places[rest].T
            axes.scatter(x, y, s=size, color="lightgrey", linewidths=0, label="others, or none")
        for number, word in enumerate(shown):
            x, y = places[words == word].T
            axes.scatter(x, y, s=size, linewidths=0, label=word, color=f"C{number}")
        axes.legend(title=label, fontsize="small", markerscale=2)
    axes.set_title(f"{space}, {len(places):,} records")
    axes.set_xticks([])
    axes.set_yticks([])
    _save(figure, path)


def draw_heat_map(values: Any, rows: list[str], columns: list[str], title: str, file: str) -> None:
    """Draw a matrix of numbers from 0 to 1, with the numbers where there is room."""
    path = check_picture(file)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 + 0.55 * len(columns), 2 + 0.5 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis")
    axes.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    if max(len(rows), len(columns)) <= 16:
        for i in range(len(rows)):
            for j in range(len(columns)):
                value = float(values[i][j])
                colour = "black" if value > 0.6 else "white"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize="small", color=colour)
    figure.colorbar(drawn, ax=axes)
    axes.set_title(title)
    _save(figure, path)


def draw_layers(curves: dict[str, dict[int, Any]], title: str, metric: str, file: str) -> None:
    """Draw curves by layer; a value is a number, or one with the ends of its interval."""
    path = check_picture(file)
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        layers = sorted(curve)
        values = [one[0] if isinstance(one, tuple) else one for one in (curve[layer] for layer in layers)]
        axes.plot(layers, values, marker="o", markersize=3, label=name, color=f"C{number}")
        if all(isinstance(curve[layer], tuple) for layer in layers):
            low, high = ([curve[layer][end] for layer in layers] for end in (1, 2))
            axes.fill_between(layers, low, high, alpha=0.2, color=f"C{number}", linewidth=0)
    axes.set_xlabel("layer")
    axes.set_ylabel(metric)
    axes.set_title(title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    _save(figure, path)


def _in_order(word: str) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(word), word
    except ValueError:
        return float("inf"), word


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error


def _is_chosen(point: dict[str, Any], recipe: str, chosen: dict[str, Any]) -> bool:
    return bool(point["recipe"] == recipe and point["settings"] == chosen.get("settings"))
