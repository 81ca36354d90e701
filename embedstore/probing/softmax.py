"""Multinomial logistic regression over a given number of classes, of which some may not have been seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special

from embedstore.model import FloatMatrix, IntVector

_MOST_STEPS = 300
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Softmax:
    """``p(class | x) = softmax(weights @ x + bias)``: weights float64 (k, d), bias float64 (k,)."""

    weights: np.ndarray
    bias: np.ndarray

    def logits(self, rows: FloatMatrix) -> np.ndarray:
        """Float64 (n, k)."""
        found: np.ndarray = rows @ self.weights.T.astype(np.float32) + self.bias
        return found

    def log_probabilities(self, rows: FloatMatrix) -> np.ndarray:
        """Natural logarithms, float64 (n, k)."""
        found: np.ndarray = scipy.special.log_softmax(self.logits(rows).astype(np.float64), axis=1)
        return found

    def predict(self, rows: FloatMatrix) -> IntVector:
        """The likeliest class of each row."""
        return np.asarray(self.logits(rows).argmax(axis=1))


def fit_softmax(rows: FloatMatrix, classes: IntVector, k: int, c: float, start: Softmax | None = None) -> Softmax:
    """Minimise ``c * sum of cross-entropies + |weights|² / 2`` by L-BFGS, as scikit-learn's LogisticRegression does.

    rows: float32 (n, d); classes: int64 (n,), from 0 to k - 1; start: where to begin. Biases are not shrunk, but for as
    little as keeps those of classes that never come finite.
    """
    n, d = rows.shape
    scale = 1.0 / (c * n)
    lines = np.arange(n)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        given = flat.reshape(k, d + 1)
        logits = rows @ given[:, :d].T.astype(np.float32) + given[:, d].astype(np.float32)
        shifted = logits - logits.max(axis=1, keepdims=True)
        shares = np.exp(shifted)
        total = shares.sum(axis=1)
        value = float(np.log(total).sum(dtype=np.float64) - shifted[lines, classes].sum(dtype=np.float64)) / n
        shares /= total[:, None]
        shares[lines, classes] -= 1.0
        gradient = np.empty_like(given)
        gradient[:, :d] = (shares.T @ rows) / n + scale * given[:, :d]
        gradient[:, d] = shares.sum(axis=0, dtype=np.float64) / n + 1e-6 * given[:, d]
        value += 0.5 * scale * float((given[:, :d] ** 2).sum()) + 0.5e-6 * float((given[:, d] ** 2).sum())
        return value, gradient.ravel()

    first = np.zeros((k, d + 1))
    if start is not None:
        first[:, :d], first[:, d] = start.weights, start.bias
    found = scipy.optimize.minimize(
        loss, first.ravel(), jac=True, method="L-BFGS-B",
        options={"maxiter": _MOST_STEPS, "gtol": _TOLERANCE, "ftol": 1e-9},
    ).x.reshape(k, d + 1)  # fmt: skip
    return Softmax(found[:, :d], found[:, d])
