"""Pictures of what was measured, by matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import InvalidInput, StorageFailed
from embedstore.optional import require

if TYPE_CHECKING:
    from embedstore.space import Space

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
    path = Path(file)
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(f"{file!r} is no name of a picture; it must end in {', '.join(_SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {str(path.parent)!r} for the picture {file!r}")
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
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error


def _is_chosen(point: dict[str, Any], recipe: str, chosen: dict[str, Any]) -> bool:
    return bool(point["recipe"] == recipe and point["settings"] == chosen.get("settings"))
