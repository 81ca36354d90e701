"""Means and covariances of spaces that need not fit into memory, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from embedstore.errors import InvalidInput
from embedstore.latent.points import sum_of
from embedstore.model import FloatMatrix, IntVector
from embedstore.transforms import Affine

_LEAST_VARIANCE = 1e-9
"""Of the greatest: below it a dimension is taken for constant."""
_LEAST_CONTRAST = 1e-6


@dataclass(frozen=True, slots=True)
class Moments:
    """n, mean (d,) and covariance (d, d) with n - 1 below, both float64."""

    n: int
    mean: np.ndarray
    covariance: np.ndarray


def moments_of(blocks: Iterable[tuple[IntVector, FloatMatrix]], *, exact: bool = False) -> Moments:
    """Mean and covariance in one pass, around the mean of the first block, so that little is lost to rounding.

    Products are of float32, errors of 1e-7 of the greatest variance; ``exact`` ones of float64 take twice as long.
    """
    n = 0
    shift: np.ndarray | None = None
    total = squares = np.zeros(0)
    for _, vectors in blocks:
        if not len(vectors):
            continue
        if shift is None:
            d = vectors.shape[1]
            shift, total, squares = (sum_of(vectors) / len(vectors)).astype(np.float32), np.zeros(d), np.zeros((d, d))
        moved: np.ndarray = vectors.astype(np.float64) - shift if exact else vectors - shift
        total += moved.sum(axis=0) if exact else sum_of(moved)
        squares += moved.T @ moved
        n += len(vectors)
    if shift is None or n < 2:
        raise InvalidInput(f"there are {n} vectors; at least 2 are needed")
    mean = total / n
    return Moments(n, shift.astype(np.float64) + mean, (squares - n * np.outer(mean, mean)) / (n - 1))


def moments_by_label(
    blocks: Iterable[tuple[IntVector, FloatMatrix]], labels: Mapping[int, Any]
) -> tuple[Moments, dict[Any, tuple[int, np.ndarray]]]:
    """The moments of those vectors that have a label, and by type and label how many there are and their mean."""
    sums: dict[Any, list[Any]] = {}

    def labelled() -> Iterable[tuple[IntVector, FloatMatrix]]:
        for record_ids, vectors in blocks:
            places: dict[Any, list[int]] = {}
            for place, record_id in enumerate(record_ids.tolist()):
                if record_id in labels:
                    value = labels[record_id]  # True, 1 and 1.0 are equal, and not the same
                    places.setdefault((type(value).__name__, value), []).append(place)
            for label, mine in places.items():
                held = sums.setdefault(label, [0, 0.0])
                held[0] += len(mine)
                held[1] = held[1] + vectors[mine].sum(axis=0, dtype=np.float64)
            kept = sorted(place for mine in places.values() for place in mine)
            if kept:
                yield record_ids[kept], vectors[kept]

    moments = moments_of(labelled(), exact=True)
    return moments, {label: (n, total / n) for label, (n, total) in sums.items()}


def require_spread(moments: Moments) -> None:
    """InvalidInput where all vectors are the same, but for rounding."""
    deviations = np.sqrt(np.maximum(np.diag(moments.covariance), 0.0))
    if not (deviations > 1e-6 * np.abs(moments.mean)).any() or not deviations.any():
        raise InvalidInput(f"all {moments.n:,} vectors are the same, so there is nothing to fit")


def principal(moments: Moments, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``dim`` directions of greatest variance, orthonormal (dim, d), with their variances (dim,), greatest first.

    Of each, the greatest number in size is positive.
    """
    n_numbers = len(moments.mean)
    if dim > min(n_numbers, moments.n):
        raise InvalidInput(f"{dim} components cannot be had of {moments.n:,} vectors of {n_numbers} numbers")
    variances, found = scipy.linalg.eigh(moments.covariance, subset_by_index=(n_numbers - dim, n_numbers - 1))
    directions = found.T[::-1]
    largest = directions[np.arange(dim), np.abs(directions).argmax(axis=1)]
    return directions * np.where(largest < 0, -1.0, 1.0)[:, None], np.maximum(variances[::-1], 0.0)


def around(mean: np.ndarray, directions: np.ndarray, back: np.ndarray | None, *, normalize: bool) -> Affine:
    """The map ``y = directions @ (x - mean)`` with the way back ``x = back @ y + mean``."""
    return Affine(
        directions.astype(np.float32), (-directions @ mean).astype(np.float32), normalize,
        None if back is None else back.astype(np.float32), None if back is None else mean.astype(np.float32),
    )  # fmt: skip


def pca(moments: Moments, dim: int, *, normalize: bool) -> tuple[Affine, np.ndarray]:
    """Principal component analysis, and the share of the variance that each component has."""
    directions, variances = principal(moments, dim)
    total = float(np.trace(moments.covariance))
    return around(moments.mean, directions, directions.T, normalize=normalize), variances / max(total, 1e-300)


def whitening(moments: Moments, dim: int | None, *, normalize: bool, usual: int) -> tuple[Affine, np.ndarray]:
    """Principal components brought to variance one, and the shares of the variance that they had.

    dim: None for ``usual`` ones, or as many as vary.
    """
    directions, variances = principal(moments, usual if dim is None else dim)
    n_usable = min(int((variances > _LEAST_VARIANCE * variances[0]).sum()), moments.n - 1)
    if dim is None:
        dim = min(usual, max(n_usable, 1))
        directions, variances = directions[:dim], variances[:dim]
    if n_usable < dim:
        raise InvalidInput(f"only {n_usable} components vary, so {dim} cannot be brought to variance one; ask for less")
    deviations = np.sqrt(variances)
    made = around(moments.mean, directions / deviations[:, None], directions.T * deviations, normalize=normalize)
    return made, variances / max(float(np.trace(moments.covariance)), 1e-300)


def all_but_the_top(moments: Moments, n_removed: int, *, normalize: bool) -> tuple[Affine, np.ndarray]:
    """The mean and the ``n_removed`` greatest components taken away (Mu and Viswanath 2018), and their shares."""
    directions, variances = principal(moments, n_removed)
    kept = np.eye(len(moments.mean)) - directions.T @ directions
    made = around(moments.mean, kept, kept, normalize=normalize)
    return made, variances / max(float(np.trace(moments.covariance)), 1e-300)


def discriminants(
    moments: Moments, classes: Mapping[Any, tuple[int, np.ndarray]], dim: int, *, normalize: bool
) -> Affine:
    """Linear discriminant analysis (Fisher 1936): the directions that tell classes apart, within-class variance one."""
    if dim > min(len(classes) - 1, len(moments.mean)):
        raise InvalidInput(f"{len(classes)} classes are told apart by {len(classes) - 1} directions at most, not {dim}")
    scale = _scales(moments)
    between = np.zeros_like(moments.covariance)
    for n, mean in classes.values():
        between += n * np.outer((mean - moments.mean) / scale, (mean - moments.mean) / scale)
    within = moments.covariance * (moments.n - 1) / np.outer(scale, scale) - between
    within /= max(moments.n - len(classes), 1)
    within += np.eye(len(within)) * _LEAST_VARIANCE
    n_numbers = len(within)
    _, found = scipy.linalg.eigh(between, within, subset_by_index=(n_numbers - dim, n_numbers - 1))
    directions = found.T[::-1] / scale
    largest = directions[np.arange(dim), np.abs(directions).argmax(axis=1)]
    directions = directions * np.where(largest < 0, -1.0, 1.0)[:, None]
    return around(moments.mean, directions, None, normalize=normalize)


def _scales(moments: Moments) -> np.ndarray:
    """The deviation of every number, so that what is small beside others is not lost; the greatest for constant ones.

    What varies by less than float32 can tell beside the greatest, or by less than a millionth of itself, is rounding.
    """
    deviations = np.sqrt(np.maximum(np.diag(moments.covariance), 0.0))
    greatest = max(float(deviations.max()), 1e-300)
    varies = (deviations > 1e-6 * np.abs(moments.mean)) & (deviations > 1e-7 * greatest)
    return np.where(varies, deviations, greatest)


def erasure(moments: Moments, classes: Mapping[Any, tuple[int, np.ndarray]], *, normalize: bool) -> Affine:
    """Least-squares concept erasure (LEACE; Belrose et al. 2023, theorem 4.3): no linear model tells the classes then.

    ``r(x) = x - W⁺ P W (x - mean)`` with ``W`` the whitening of x and ``P`` the orthogonal projection onto the span of
    ``W cov(x, z)``, ``z`` being the classes one-hot.
    """
    scale = _scales(moments)  # the map is the same whatever the units of the numbers, and the arithmetic is better
    cross = np.stack([n / moments.n * (mean - moments.mean) / scale for n, mean in classes.values()], axis=1)
    values, vectors = scipy.linalg.eigh(moments.covariance / np.outer(scale, scale))
    usable = values > _LEAST_VARIANCE * values.max()
    values, vectors = values[usable], vectors[:, usable]
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    unwhiten = (vectors * np.sqrt(values)) @ vectors.T
    left, sizes, _ = np.linalg.svd(whiten @ cross, full_matrices=False)  # cross is (d, classes)
    told = sizes > _LEAST_CONTRAST * max(float(sizes.max()), 1e-300)
    told[len(classes) - 1 :] = False  # the classes' contrasts sum to nothing, so that one less tells all
    span = left[:, told]
    removed = (unwhiten @ span @ span.T @ whiten) * np.outer(scale, 1 / scale)
    kept = np.eye(len(moments.mean)) - removed
    return Affine(kept.astype(np.float32), (removed @ moments.mean).astype(np.float32), normalize)
