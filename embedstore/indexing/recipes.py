"""Recipes: how an index is built and searched, one TOML file each in ``indexes/``."""

from __future__ import annotations

import functools
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.model import Metric, choose
from embedstore.shipped import shipped_folder

DEFAULT_RECIPE = "flat"
_ROWS_A_LIST = 39
"""FAISS wants as many training vectors for each list of an IVF, and for each centroid of a quantiser."""
FEWEST_CANDIDATES = 32
RECIPES_K = 10
"""The number of hits that the recipes' own search parameters are for."""
"""So many candidates are compared exactly, however few hits are asked for."""


class Family(Enum):
    """The kinds of FAISS indexes: which knob trades time for recall, and how an index is searched and checked."""

    EXACT = "exact"
    """no index: every vector is compared"""
    CODES = "codes"
    """every vector is compared by a short code (scalar quantiser)"""
    GRAPH = "graph"
    """HNSW; knob efSearch"""
    LISTS = "lists"
    """inverted lists, IVF; knob nprobe"""
    BINARY = "binary"
    """one bit a number, by Hamming distance"""


class Placement(Enum):
    """Where an index is built and searched, where there is a choice."""

    CPU = "cpu"
    GPU = "gpu"


_KNOBS = {Family.GRAPH: "efSearch", Family.LISTS: "nprobe"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to search a space.

    factory: a FAISS factory string; ``{nlist}`` stands for the number of lists that suits the number of vectors,
    ``{m}`` for the number of pieces that a product quantiser cuts a vector into.
    build, search: FAISS's own parameter names. useful: for a parameter of ``search``, the values worth trying.
    rescore: how many candidates for each wanted hit are compared exactly afterwards; 0 where scores are exact already.
    dims: an index over that many first numbers of each vector (of a Matryoshka model, say); None for all.
    mapped: lists stay on the disk. min_vectors: with fewer there is no index, and every vector is compared.
    """

    name: str
    summary: str
    use: str
    factory: str
    metrics: tuple[Metric, ...]
    build: Mapping[str, float] = field(default_factory=dict)
    search: Mapping[str, int] = field(default_factory=dict)
    useful: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rescore: int = 0
    dims: int | None = None
    mapped: bool = False
    min_vectors: int = 1
    placement: Placement = Placement.CPU
    family: Family = field(init=False)
    knob: str | None = field(init=False)
    """The parameter of ``search`` that trades time for recall; None where there is none but rescoring."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "family", _family_of(self.factory))
        object.__setattr__(self, "knob", _KNOBS.get(self.family))

    def n_candidates(self, k: int) -> int:
        """How many candidates an index finds for ``k`` hits."""
        return max(k * self.rescore, FEWEST_CANDIDATES) if self.rescore else k

    @property
    def exact(self) -> bool:
        """Whether every vector is compared, without an index on disk."""
        return self.family is Family.EXACT

    def index_dim(self, dim: int) -> int:
        """How many numbers of a vector the index holds: the first ones, filled up with zeros where pieces need it."""
        held = dim if self.dims is None else min(dim, self.dims)
        piece = 8 if self.family is Family.BINARY else self._numbers_per_piece
        return -(-held // piece) * piece

    @property
    def _numbers_per_piece(self) -> int:
        return int(self.build.get("numbers_per_piece", 1))

    def factory_for(self, n_vectors: int, dim: int) -> str:
        """The factory string for so many vectors, of which the index holds ``dim`` numbers each."""
        lists = int(self.build.get("lists_per_root", 4) * math.sqrt(n_vectors))
        nlist = max(1, min(lists, n_vectors // _ROWS_A_LIST))
        return self.factory.format(nlist=nlist, m=dim // self._numbers_per_piece)


def _family_of(factory: str) -> Family:
    """The kind of index that a factory string makes."""
    if factory == "Flat":
        return Family.EXACT
    if factory.startswith("HNSW"):
        return Family.GRAPH
    if factory.startswith("IVF"):
        return Family.LISTS
    return Family.BINARY if factory == "Binary" else Family.CODES


def read_recipe(fields: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from the fields of its TOML file; InvalidInput names what is wrong with it."""
    known = dict(fields)
    try:
        metrics = tuple(choose(Metric, word, "a recipe's metric") for word in known.pop("metrics"))
        placement = choose(Placement, known.pop("placement", "cpu"), "a recipe's placement")
        useful = {name: tuple(values) for name, values in known.pop("useful", {}).items()}
        recipe = Recipe(metrics=metrics, placement=placement, useful=useful, **known)
    except (KeyError, TypeError) as error:
        raise InvalidInput(f"{where} is not a recipe: {error}") from None
    if recipe.dims is not None and not (recipe.dims > 0 and recipe.rescore):
        raise InvalidInput(f"{where} has dims {recipe.dims}; it must be positive, and rescore as well")
    if recipe.knob is not None and recipe.knob not in recipe.search:
        raise InvalidInput(f"{where} lacks {recipe.knob} in [search], which {recipe.factory} is searched by")
    unknown = set(recipe.search) - {recipe.knob, "qb"}
    if unknown:
        raise InvalidInput(f"{where} has {', '.join(sorted(unknown))} in [search]; {recipe.factory} knows none such")
    return recipe


@functools.cache
def all_recipes() -> dict[str, Recipe]:
    """Every recipe by name."""
    recipes = {}
    for path in sorted(shipped_folder("indexes").glob("*.toml"), key=lambda path: path.stem):
        recipe = read_recipe(tomllib.loads(path.read_text(encoding="utf-8")), path.name)
        recipes[recipe.name] = recipe
    return recipes


def measured_curve(name: str) -> list[dict[str, Any]]:
    """What was measured of a recipe (benchmarks/recipes.py): points of settings, recall and time; empty if nothing."""
    path = shipped_folder("indexes") / f"{name}.curve.json"
    if not path.exists():
        return []
    points: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["points"]
    return points


def measured_on(name: str) -> str | None:
    """On what, and on which machine, a recipe was measured; None where it was not."""
    path = shipped_folder("indexes") / f"{name}.curve.json"
    if not path.exists():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    machine = held["machine"]
    return f"{held['measured_on']}; {machine['cpu']}, {machine['cores']} cores, {machine['date']}"


def find_recipe(name: str) -> Recipe:
    """The recipe called ``name``; InvalidInput lists those there are."""
    recipes = all_recipes()
    if name not in recipes:
        import difflib

        close = difflib.get_close_matches(str(name).lower(), recipes, n=1)
        hint = f"did you mean {close[0]!r}? There are" if close else "there are"
        raise InvalidInput(f"there is no recipe {name!r}; {hint} {', '.join(recipes)}")
    return recipes[name]
