"""When the index of a space lags so far behind it that it should be built anew."""

from __future__ import annotations

from embedstore.indexing.recipes import Recipe, find_recipe
from embedstore.indexing.space_view import SpaceView
from embedstore.storage.catalog import SpaceRow

_STALE_ROWS = 5_000
_STALE_FRACTION = 0.2


def is_stale(view: SpaceView, space: SpaceRow) -> bool:
    """Whether so many rows came after a view's index, or died in it, that it should be built anew."""
    recipe = find_recipe(space.recipe)
    if recipe.exact:
        return False
    if view.approximate is None:
        return view.n_alive >= fewest_indexed(recipe)
    n_indexed = view.approximate.index.n_vectors
    lost = n_indexed - (view.n_alive - n_unindexed(view))
    return max(n_unindexed(view), lost) > most_unindexed(n_indexed)


def most_unindexed(n_indexed: int) -> float:
    """How many vectors may come or go before an index over so many is built anew."""
    return max(_STALE_ROWS, _STALE_FRACTION * n_indexed)


def fewest_indexed(recipe: Recipe) -> int:
    """How many vectors a space must have before it is worth an index that nobody asked for."""
    return max(_STALE_ROWS, recipe.min_vectors)


def n_unindexed(view: SpaceView) -> int:
    """The rows of a view that its index does not cover; none where it is searched without one."""
    return 0 if view.approximate is None else view.n_rows - view.approximate.first_row_after
