"""How alike the layers of one model are, or those of two."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.probing.alikeness import MEASURES
from embedstore.probing.cores import side_by_side
from embedstore.probing.examples import layer_spaces, records_in, states_of
from embedstore.states.taps import HIDDEN

if TYPE_CHECKING:
    from embedstore.collection import Collection


@dataclass(frozen=True, slots=True)
class LayerSimilarity:
    """values: float64 (len(rows), len(columns)), how alike a layer of the first set is to one of the second."""

    measure: str
    n: int
    rows: list[str]
    columns: list[str]
    values: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return {
            "measure": self.measure, "n": self.n, "rows": self.rows, "columns": self.columns,
            "values": [[round(float(one), 6) for one in row] for row in self.values],
        }  # fmt: skip

    def plot(self, file: str | os.PathLike[str]) -> None:
        """Draw it as a heat map: PNG, SVG or PDF."""
        from embedstore.plots import draw_heat_map

        draw_heat_map(self.values, self.rows, self.columns, self.measure, os.fspath(file))


def similarity(
    collection: Collection,
    *,
    measure: str = "cka",
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    other_prefix: str | None = None,
    site: str = HIDDEN,
    where: Where | None = None,
    sample: int = 1000,
    seed: int = 0,
) -> LayerSimilarity:
    """Compare every captured layer with every other, or with those under ``other_prefix``, on a sample of the records.

    measure: 'cka' (linear), 'cka-unbiased', 'cka-rbf', 'svcca', 'rsa', 'procrustes', 'mutual-knn'.
    """
    if measure not in MEASURES:
        raise InvalidInput(f"measure is {measure!r}; it must be one of {', '.join(MEASURES)}")
    check_whole("sample", sample, 5)
    check_seed(seed)
    rows = layer_spaces(collection, layers, prefix=prefix, site=site)
    columns = rows if other_prefix is None else layer_spaces(collection, layers, prefix=other_prefix, site=site)
    ids = records_in(collection, [*rows, *columns], where)
    if len(ids) < 5:
        raise InvalidInput(f"{len(ids)} records have vectors in all of these layers; 5 or more are needed")
    if len(ids) > sample:
        ids = [ids[place] for place in np.sort(np.random.default_rng(seed).choice(len(ids), sample, replace=False))]
    states = {name: states_of(collection, name, ids) for name in {one.name for one in (*rows, *columns)}}
    compare = MEASURES[measure]
    pairs = [
        (i, j) for i in range(len(rows)) for j in range(len(columns)) if columns is not rows or i <= j
    ]  # fmt: skip
    found = side_by_side(lambda pair: compare(states[rows[pair[0]].name], states[columns[pair[1]].name]), pairs)
    values = np.zeros((len(rows), len(columns)))
    for (i, j), value in zip(pairs, found, strict=True):
        values[i, j] = value
        if columns is rows:
            values[j, i] = value
    return LayerSimilarity(measure, len(ids), [one.name for one in rows], [one.name for one in columns], values)
