"""Distances as a decoder sees them: how far what is decoded changes on the way between two points of a latent space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.transforms import Affine

_STEP = 0.05
_LEAST = 1e-4
"""Of the greatest: less far nothing is told apart in a direction, and the way back would magnify it too much."""


def pullback(decode: Callable[[FloatMatrix], FloatMatrix], points: FloatMatrix) -> Affine:
    """The linear map after which the Euclidean distance is that of the decoder's mean pullback metric.

    decode: latent vectors (n, d) to rows of numbers (n, width). The metric at a point is J'J, J being the decoder's
    Jacobian there (Arvanitidis, Hansen and Hauberg 2018), here by central differences and its mean over points; the map
    is its square root.
    """
    if not len(points):
        raise InvalidInput("there are no vectors to look at the decoder from")
    d = points.shape[1]
    metric = np.zeros((d, d))
    for point in points:
        there = np.repeat(point[None, :], 2 * d, axis=0)
        there[np.arange(d), np.arange(d)] += _STEP
        there[d + np.arange(d), np.arange(d)] -= _STEP
        decoded = decode(np.ascontiguousarray(there, np.float32)).astype(np.float64)
        jacobian = (decoded[:d] - decoded[d:]) / (2 * _STEP)  # (d, width), a row a latent dimension
        metric += jacobian @ jacobian.T / len(points)
    values, vectors = np.linalg.eigh(metric)
    if not values[-1] > 0:
        raise InvalidInput("the decoder gives the same for every point, so there are no distances to take over")
    sizes = np.sqrt(np.maximum(values, _LEAST**2 * values[-1]))
    matrix, back = (vectors * sizes) @ vectors.T, (vectors / sizes) @ vectors.T
    nothing = np.zeros(d, np.float32)
    return Affine(matrix.astype(np.float32), nothing, False, back.astype(np.float32), nothing)
