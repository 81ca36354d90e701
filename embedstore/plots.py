"""Pictures of what was measured, by matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import InvalidInput, StorageFailed
from embedstore.optional import require

if TYPE_CHECKING:
    from embedstore.space import Space

_SUFFIXES = (".png", ".svg", ".pdf")


def plot_tuning(space: Space, file: str) -> None:
    """Draw the curve of a tuned space, recall against microseconds, one line a recipe, what was chosen marked.

    Raises InvalidInput for a space that was never tuned or a suffix that is no picture's, MissingDependency without
    matplotlib.
    """
    path = Path(file)
    if path.suffix.lower() not in _SUFFIXES:
        raise InvalidInput(f"{file!r} is no name of a picture; it must end in {', '.join(_SUFFIXES)}")
    curve, chosen = space.tuning_curve(), space.tuning()
    if not curve:
        raise InvalidInput(f"the space '{space}' was never tuned, so there is nothing to draw: embedstore index --tune")
    require("matplotlib", "viz")
    from matplotlib.figure import Figure  # without pyplot, which would choose a window system

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(point["recipe"] for point in curve):
        points = [point for point in curve if point["recipe"] == name]
        axes.plot(
            [point["search_microseconds"] for point in points], [point["recall"] for point in points], marker="o",
            markersize=4, label=name,
        )  # fmt: skip
    best = [point for point in curve if _is_chosen(point, chosen)]
    axes.plot(
        [point["search_microseconds"] for point in best], [point["recall"] for point in best], linestyle="none",
        marker="*", markersize=18, color="black", fillstyle="none", label="chosen",
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("microseconds a search")
    axes.set_ylabel(f"recall@{chosen['recall_at']}")
    axes.set_title(f"{space}, {space.dim} numbers a vector, measured {chosen['measured_at'][:10]}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be written: {error.strerror or error}") from error


def _is_chosen(point: dict[str, Any], chosen: dict[str, Any]) -> bool:
    return bool(point["recipe"] == chosen["recall_of"] and point["settings"] == chosen["settings"])
