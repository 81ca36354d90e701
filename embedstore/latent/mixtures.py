"""Gaussian mixtures of vectors, with as many parts as the Bayesian information criterion prefers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.wording import first_line


@dataclass(frozen=True, slots=True)
class Mixture:
    """A fitted mixture; ``bic`` tells of every number of parts that was tried, less is better."""

    bic: dict[int, float]
    fitted: Any
    scale: float

    def shares(self, vectors: FloatMatrix) -> np.ndarray:
        """How likely each part is, float64 (n, parts)."""
        found: np.ndarray = self.fitted.predict_proba(vectors.astype(np.float64) / self.scale)
        return found

    def sample(self, n: int) -> np.ndarray:
        """``n`` vectors drawn of it, in the order of its parts."""
        drawn: np.ndarray = self.fitted.sample(n)[0] * self.scale
        return drawn


def fit_mixture(vectors: FloatMatrix, sizes: Iterable[int], seed: int, *, n_starts: int = 1) -> Mixture:
    """Fit mixtures of those numbers of parts to vectors (n, d), and keep the best.

    Covariances are full where there are ten vectors a number, else diagonal. InvalidInput where none can be fitted.
    """
    from sklearn.mixture import GaussianMixture

    kind = "full" if len(vectors) > 10 * vectors.shape[1] else "diag"
    given = vectors.astype(np.float64)
    scale = max(float(np.sqrt(given.var(axis=0).sum())), 1e-30)  # so that the least variance is one of the data's own
    given /= scale
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fewer distinct vectors than parts
            fitted = {
                size: GaussianMixture(size, covariance_type=kind, n_init=n_starts, random_state=seed).fit(given)
                for size in sizes
            }
    except ValueError as error:
        raise InvalidInput(f"no mixture can be fitted to these vectors: {first_line(error)}") from None
    bic = {size: float(one.bic(given)) for size, one in fitted.items()}
    return Mixture(bic, fitted[min(bic, key=lambda size: bic[size])], scale)
