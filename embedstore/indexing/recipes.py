"""Recipes: how an index is built and searched, one TOML file each in ``indexes/``."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass, field

from embedstore.errors import InvalidInput
from embedstore.model import Metric, choose
from embedstore.shipped import shipped_folder

DEFAULT_RECIPE = "flat"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to search a space.

    ``factory`` is a FAISS factory string; ``build`` and ``search`` hold FAISS's own parameter names.
    """

    name: str
    summary: str
    factory: str
    metrics: tuple[Metric, ...]
    build: dict[str, int] = field(default_factory=dict)
    search: dict[str, int] = field(default_factory=dict)

    @property
    def exact(self) -> bool:
        """Whether every vector is compared."""
        return self.factory == "Flat"


@functools.cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    recipes = {}
    for path in sorted(shipped_folder("indexes").glob("*.toml")):
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        metrics = tuple(choose(Metric, word, "a recipe's metric") for word in fields.pop("metrics"))
        recipe = Recipe(metrics=metrics, **fields)
        recipes[recipe.name] = recipe
    return recipes


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``; InvalidInput lists those there are."""
    recipes = all_recipes()
    if name not in recipes:
        raise InvalidInput(f"there is no recipe {name!r}; there are {', '.join(recipes)}")
    return recipes[name]
