"""How alike two sets of states of the same items are, by several measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix

_KEPT_VARIANCE = 0.99
_NEIGHBOURS = 10


def linear_cka(first: FloatMatrix, second: FloatMatrix) -> float:
    """Linear centred kernel alignment of (n, d) and (n, e) (Kornblith et al. 2019): 1 but for rotation and scale."""
    x, y = _centred(first), _centred(second)
    here, there = float(np.linalg.norm(x.T @ x)), float(np.linalg.norm(y.T @ y))
    return float(np.linalg.norm(x.T @ y)) ** 2 / max(here * there, 1e-300)


def unbiased_cka(first: FloatMatrix, second: FloatMatrix) -> float:
    """Linear CKA by the unbiased estimator of the independence criterion, for few items of many numbers."""
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return _unbiased(x @ x.T, y @ y.T)


def rbf_cka(first: FloatMatrix, second: FloatMatrix) -> float:
    """CKA of Gaussian kernels, each as wide as its median distance."""
    kernels = [_gaussian(np.asarray(one, np.float64)) for one in (first, second)]
    n = len(kernels[0])
    centre = np.eye(n) - 1.0 / n
    x, y = (centre @ kernel @ centre for kernel in kernels)
    return float((x * y).sum()) / max(float(np.linalg.norm(x)) * float(np.linalg.norm(y)), 1e-300)


def minibatch_cka(batches: Iterable[tuple[FloatMatrix, FloatMatrix]]) -> float:
    """Linear CKA of items that come in batches of four or more, (Nguyen, Raghu and Kornblith 2021): the unbiased
    criterion of each batch, summed before it is divided.
    """
    between = here = there = 0.0
    for first, second in batches:
        k, m = (np.asarray(one, np.float64) @ np.asarray(one, np.float64).T for one in (first, second))
        between, here, there = between + hsic(k, m), here + hsic(k, k), there + hsic(m, m)
    return float(between / max(np.sqrt(max(here, 0.0) * max(there, 0.0)), 1e-300))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased Hilbert-Schmidt independence criterion of two kernels (n, n) (Song et al. 2012); n of 4 or more."""
    n = len(k)
    if n < 4:
        raise InvalidInput(f"there are {n} items; the unbiased criterion needs 4 or more")
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    told = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return float(told / (n * (n - 3)))


def _unbiased(k: np.ndarray, m: np.ndarray) -> float:
    return float(hsic(k, m) / max(np.sqrt(max(hsic(k, k), 0.0) * max(hsic(m, m), 0.0)), 1e-300))


def svcca(first: FloatMatrix, second: FloatMatrix) -> float:
    """Mean canonical correlation of the principal components that hold 99 % of the variance (Raghu et al. 2017)."""
    bases = []
    for one in (first, second):
        left, sizes, _ = np.linalg.svd(_centred(one), full_matrices=False)
        shares = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-300)
        bases.append(left[:, : int(np.searchsorted(shares, _KEPT_VARIANCE)) + 1])
    if sum(base.shape[1] for base in bases) >= len(first):
        kept = " and ".join(str(base.shape[1]) for base in bases)
        raise InvalidInput(f"{kept} components of {len(first)} items correlate by chance alone; take a larger sample")
    correlations = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return float(np.clip(correlations, 0.0, 1.0).mean())


def rsa(first: FloatMatrix, second: FloatMatrix) -> float:
    """Spearman correlation of the cosine distances of all pairs (Kriegeskorte, Mur and Bandettini 2008)."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return float(spearmanr(pdist(first, "cosine"), pdist(second, "cosine")).statistic)


def procrustes(first: FloatMatrix, second: FloatMatrix) -> float:
    """1 minus half the squared distance that is left after the best rotation of centred states of norm one.

    That is the nuclear norm of their product: 1 for the same but for rotation and scale (as Williams et al. 2021).
    """
    x, y = (one / max(float(np.linalg.norm(one)), 1e-300) for one in (_centred(first), _centred(second)))
    return float(np.linalg.svd(x.T @ y, compute_uv=False).sum())


def mutual_knn(first: FloatMatrix, second: FloatMatrix) -> float:
    """Mean share of an item's ten nearest by cosine that both have in common (Huh et al. 2024).

    Of fewer than 21 items, half of the others are looked at.
    """
    near = []
    k = max(1, min(_NEIGHBOURS, (len(first) - 1) // 2))
    for one in (first, second):
        unit = one / np.maximum(np.linalg.norm(one, axis=1, keepdims=True), 1e-12)
        alike = unit @ unit.T
        np.fill_diagonal(alike, -np.inf)
        near.append(np.argpartition(-alike, k - 1, axis=1)[:, :k])
    shared = [len(set(a) & set(b)) for a, b in zip(near[0].tolist(), near[1].tolist(), strict=True)]
    return float(np.mean(shared) / near[0].shape[1])


def _centred(one: FloatMatrix) -> np.ndarray:
    given = np.asarray(one, np.float64)
    made: np.ndarray = given - given.mean(axis=0)
    return made


def _gaussian(one: np.ndarray) -> np.ndarray:
    lengths = (one**2).sum(axis=1)
    squared = np.maximum(lengths[:, None] + lengths - 2 * one @ one.T, 0.0)
    width = float(np.median(squared[np.triu_indices(len(one), 1)]))
    made: np.ndarray = np.exp(-squared / max(2 * width, 1e-300))
    return made


MEASURES: Mapping[str, Callable[[FloatMatrix, FloatMatrix], float]] = {
    "cka": linear_cka, "cka-unbiased": unbiased_cka, "cka-rbf": rbf_cka, "svcca": svcca, "rsa": rsa,
    "procrustes": procrustes, "mutual-knn": mutual_knn,
}  # fmt: skip
"""By name, what compares states (n, d) and (n, e) of the same items; 1 is the same."""
