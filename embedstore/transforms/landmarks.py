"""A map that was drawn of some records, by which others are placed between those that are nearest to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.transforms.affine import Affine

KIND = "landmarks"
_AT_ONCE = 512
_SAME = 1e-5
"""Of its length; a vector that is no farther than that from a point is taken for the same."""


@dataclass(frozen=True, slots=True)
class Landmarks:
    """Records whose places on the map are known: ``points`` float32 (m, p) by ``reducer``, ``places`` (m, k).

    A vector is placed at the mean of the places of its ``n_neighbours`` nearest points, each weighed by
    ``exp(-(distance - nearest) / scale)`` with the scale that makes the weights sum to log2(n_neighbours): the fuzzy
    neighbourhood of UMAP (McInnes, Healy and Melville 2018), by which that algorithm places new points first. One that
    is the same as a point is placed where that is.
    """

    reducer: Affine
    points: FloatMatrix
    places: FloatMatrix
    n_neighbours: int = 15

    @property
    def dim_in(self) -> int:
        """Numbers of a vector that goes in."""
        return self.reducer.dim_in

    @property
    def dim(self) -> int:
        """Numbers of a place."""
        return int(self.places.shape[1])

    def apply(self, vectors: FloatMatrix) -> FloatMatrix:
        """The places of vectors float32 (n, d), float32 (n, k)."""
        given = self.reducer.apply(vectors)
        placed: FloatMatrix = np.empty((len(given), self.dim), np.float32)
        lengths = np.einsum("ij,ij->i", self.points, self.points)
        k = min(self.n_neighbours, len(self.points))
        for start in range(0, len(given), _AT_ONCE):
            part = given[start : start + _AT_ONCE]
            squared = lengths - 2 * (part @ self.points.T) + np.einsum("ij,ij->i", part, part)[:, None]
            nearest = np.argpartition(squared, k - 1, axis=1)[:, :k]
            apart = self.points[nearest] - part[:, None, :]  # (n, k, p), since products would lose small distances
            distances = np.sqrt(np.einsum("nkp,nkp->nk", apart, apart, dtype=np.float64))
            weights = _memberships(distances)
            same = distances <= _SAME * np.sqrt(lengths[nearest])
            found = same.any(axis=1)
            weights[found] = same[found] / same[found].sum(axis=1, keepdims=True)
            placed[start : start + _AT_ONCE] = np.einsum("nk,nkd->nd", weights, self.places[nearest])
        return placed

    def invert(self, vectors: FloatMatrix) -> FloatMatrix:
        """A map forgets too much to lead back; InvalidInput."""
        raise InvalidInput("a map leads nowhere back: take the record that is nearest to the place")

    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers by name."""
        return {"points": self.points, "places": self.places, **self.reducer.arrays()}

    def settings(self) -> dict[str, Any]:
        """What else decides it, as JSON."""
        return {"kind": KIND, "n_neighbours": self.n_neighbours, "reducer": self.reducer.settings()}

    @classmethod
    def made_from(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Landmarks:
        """Of what ``settings`` and ``arrays`` gave; KeyError where something lacks, or does not fit."""
        reducer = Affine.made_from(settings["reducer"], arrays)
        made = cls(reducer, arrays["points"], arrays["places"], int(settings["n_neighbours"]))
        fits = made.points.ndim == made.places.ndim == 2 and len(made.points) == len(made.places) > 0
        if not fits or made.points.shape[1] != reducer.dim or made.n_neighbours < 1:
            raise KeyError(f"points of shape {made.points.shape} and places of shape {made.places.shape}")
        return made


def _memberships(distances: np.ndarray) -> np.ndarray:
    """Weights (n, k) that sum to one in each line."""
    beyond = distances - distances.min(axis=1, keepdims=True)
    wanted = max(np.log2(distances.shape[1]), 1.0)
    low, high = np.zeros(len(distances)), np.full(len(distances), np.inf)
    scale = np.maximum(beyond.mean(axis=1), 1e-12)
    for _ in range(64):
        total = np.exp(-beyond / scale[:, None]).sum(axis=1)
        too_wide = total > wanted
        high = np.where(too_wide, scale, high)
        low = np.where(too_wide, low, scale)
        scale = np.where(np.isinf(high), scale * 2, (low + np.where(np.isinf(high), 0.0, high)) / 2)
        scale = np.clip(scale, 1e-12, 1e12)
    weights = np.exp(-beyond / scale[:, None])
    made: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return made
