"""How the vectors of a space become those of an index: cut, filled up, scaled, turned to bits; which ones train it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.indexing.exact import prepared
from embedstore.indexing.recipes import Family, Recipe
from embedstore.model import FloatMatrix, FloatVector, Metric

_ADDED_AT_ONCE = 65_536
_TRAINED_PER_LIST = 128
"""Vectors that the lists of an IVF are made from, for each list: more make the training longer, and no better."""
_FEWEST_TRAINED = 20_000
_SAMPLED = 2_000
_FAR = 8.0
"""How many times as far out as the median a vector lies that is left out of the training, where such ones are few."""
_FEW = 0.001
_LARGEST_HALF = 2.0**15
_SMALLEST_HALF = 2.0**-10
"""Between them, half precision tells eleven bits of a number, and of ones that are some times smaller."""
_MODEST = {Metric.DOT: (2.0**-2, 2.0**2), Metric.EUCLIDEAN: (2.0**-8, 2.0**8)}
"""Lengths, and distances from the middle, that lists of codes are made for."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a space's prepared vectors become those of an index: cut or filled up, scaled, and for bits held to a mean.

    ``exponent``: of the power of two by which all are multiplied, 0 nearly always.
    """

    recipe: Recipe
    metric: Metric
    dim: int
    centre: FloatVector | None = None
    exponent: int = 0

    @property
    def index_dim(self) -> int:
        """How many numbers the index holds of each."""
        return self.recipe.index_dim(self.dim)

    @property
    def is_whole(self) -> bool:
        """Whether the index takes vectors with all their numbers, and no others."""
        return self.index_dim == self.dim and self.centre is None

    def fitted(self, matrix: FloatMatrix) -> Any:
        """Rows (n, dim) as the index takes them: float32 (n, index_dim), or bits, uint8 (n, index_dim / 8)."""
        kept = self.dim if self.recipe.dims is None else min(self.dim, self.recipe.dims)
        if kept < self.dim:
            matrix = prepared(matrix[:, :kept], self.metric)
        if self.exponent:
            with np.errstate(over="ignore", under="ignore"):  # of a query that is far from all that is stored
                matrix = np.ldexp(matrix, self.exponent)
        filled: np.ndarray = matrix if self.centre is None else matrix > self.centre
        if kept < self.index_dim:
            filled = np.pad(filled, ((0, 0), (0, self.index_dim - kept)))
        if self.centre is not None:
            return np.packbits(filled, axis=1, bitorder="little")
        return np.ascontiguousarray(filled, np.float32)


def shape_for(matrix: FloatMatrix, recipe: Recipe, metric: Metric) -> Shape:
    """How the prepared rows of ``matrix`` (n, dim) are to become those of an index by a recipe."""
    dim = matrix.shape[1]
    if recipe.family is Family.BINARY:
        return Shape(recipe, metric, dim, _centre(matrix))
    return Shape(recipe, metric, dim, exponent=_exponent(matrix, recipe, metric))


def is_too_wide(matrix: FloatMatrix, shape: Shape) -> bool:
    """Whether the vectors differ in size by more than the index's numbers can tell, as half precision may not."""
    if shape.recipe.family is not Family.CODES or shape.metric is Metric.COSINE or not len(matrix):
        return False
    scale = math.ldexp(1.0, shape.exponent)
    return _largest(matrix) * scale > 2 * _LARGEST_HALF or _least_typical(matrix) * scale < _SMALLEST_HALF


def _exponent(matrix: FloatMatrix, recipe: Recipe, metric: Metric) -> int:
    """The power of two that brings stored vectors to a size that the index's codes are made for.

    Codes of half precision have a largest number. Lists by inner product have centres of length one, and hold what a
    vector lacks of its centre, in which a short vector is lost; by distance the codes of one bit lose short ones.
    """
    if metric is Metric.COSINE or not recipe.rescore or not len(matrix):
        return 0
    if recipe.family is Family.CODES:
        largest, typical = _largest(matrix), _least_typical(matrix)
        if largest <= _LARGEST_HALF and typical >= _SMALLEST_HALF or largest == 0:
            return 0
        return math.floor(math.log2(_LARGEST_HALF / largest))
    if recipe.family is Family.LISTS:
        some = _sample(matrix).astype(np.float64)
        if metric is Metric.EUCLIDEAN:  # which is the same wherever zero is
            some -= np.median(some, axis=0)
        length = float(np.median(np.linalg.norm(some, axis=1)))
        shortest, longest = _MODEST[metric]
        return 0 if length == 0 or shortest <= length <= longest else -round(math.log2(length))
    return 0


def _largest(matrix: FloatMatrix) -> float:
    return max(float(np.abs(part).max(initial=0)) for part in parts_of(matrix))


def _least_typical(matrix: FloatMatrix) -> float:
    """What a number of the shortest vectors is like, but for one in a hundred: their length, spread evenly."""
    lengths = np.concatenate([np.linalg.norm(part, axis=1) for part in parts_of(matrix)])
    lengths = lengths[lengths > 0]
    return float(np.quantile(lengths, 0.01)) / math.sqrt(matrix.shape[1]) if lengths.size else np.inf


def parts_of(matrix: FloatMatrix) -> Iterator[FloatMatrix]:
    """The rows in parts of which some may be copied."""
    for start in range(0, matrix.shape[0], _ADDED_AT_ONCE):
        yield matrix[start : start + _ADDED_AT_ONCE]


def _centre(matrix: FloatMatrix) -> FloatVector:
    """The mean of the rows, float32 (dim,)."""
    total = np.zeros(matrix.shape[1], np.float64)
    for part in parts_of(matrix):
        total += part.sum(axis=0, dtype=np.float64)
    centre: FloatVector = (total / max(matrix.shape[0], 1)).astype(np.float32)
    return centre


def _sample(matrix: FloatMatrix) -> FloatMatrix:
    """Some rows, spread over all."""
    return matrix[:: max(1, len(matrix) // _SAMPLED)]


def training_rows(matrix: FloatMatrix, metric: Metric, n_lists: int) -> FloatMatrix:
    """Rows spread over the whole matrix, as many as training for so many lists can use (0: for codes alone).

    Without those few that lie far out: one such vector stretches the range of a code until all others are the same.
    """
    n = matrix.shape[0]
    wanted = max(_TRAINED_PER_LIST * n_lists if n_lists else _ADDED_AT_ONCE, _FEWEST_TRAINED)
    rows = matrix
    if n > wanted:
        random = np.random.default_rng(0)
        rows = matrix[np.sort(random.choice(n, wanted, replace=False))]
    if metric is Metric.COSINE:
        return rows
    middle = np.median(_sample(rows), axis=0) if metric is Metric.EUCLIDEAN else np.zeros(rows.shape[1], np.float32)
    with np.errstate(over="ignore"):
        distances = np.concatenate([np.linalg.norm(part - middle, axis=1) for part in parts_of(rows)])
    far = distances > _FAR * np.median(distances)
    if not far.any() or np.count_nonzero(far) > max(1, _FEW * len(rows)):
        return rows
    kept: FloatMatrix = rows[~far]
    return kept
