"""The supervised models that probes are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.special

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, IntVector
from embedstore.probing.softmax import Softmax, fit_softmax

STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
"""Of which the inverse L2 penalty is chosen, per example in the sum of cross-entropies."""
_FEW = 3000
_TINY = 1e-7


class Fitted(Protocol):
    """A model that was fitted to rows of some numbers, for classes 0 to k - 1."""

    def log_probabilities(self, rows: FloatMatrix) -> np.ndarray:
        """Natural logarithms, float64 (n, k)."""
        ...


@dataclass(frozen=True, slots=True)
class Standard:
    """Brings every number to mean nought and deviation one; those that do not vary to nought."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, rows: FloatMatrix) -> Standard:
        """Of the rows, float32 (n, d), that are learned from."""
        mean, deviation = rows.mean(axis=0, dtype=np.float64), rows.std(axis=0, dtype=np.float64)
        varies = deviation > _TINY * max(float(deviation.max()), 1e-300)
        return cls(mean, np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0))

    def apply(self, rows: FloatMatrix) -> FloatMatrix:
        """Rows, standardised, float32 (n, d)."""
        return ((rows - self.mean.astype(np.float32)) * self.scale.astype(np.float32)).astype(np.float32, copy=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """A fitted model behind the standardisation of its rows."""

    standard: Standard
    model: Any

    def log_probabilities(self, rows: FloatMatrix) -> np.ndarray:
        """Of rows as they were captured, float64 (n, k)."""
        found: np.ndarray = self.model.log_probabilities(self.standard.apply(rows))
        return found

    def predict(self, rows: FloatMatrix) -> IntVector:
        """The likeliest class of each row."""
        return np.asarray(self.log_probabilities(rows).argmax(axis=1))


def choose_strength(rows: FloatMatrix, classes: IntVector, k: int, inner: IntVector) -> float:
    """The inverse L2 penalty of the greatest likelihood for what was held out.

    inner: int64 (n,), by example its fold of the choice. Few examples are judged by all folds, many by the first.
    """
    losses = np.zeros(len(STRENGTHS))
    for fold in range(int(inner.max()) + 1 if len(rows) <= _FEW else 1):
        out = inner == fold
        standard = Standard.of(rows[~out])
        learned, judged = standard.apply(rows[~out]), standard.apply(rows[out])
        model: Softmax | None = None
        for number, strength in enumerate(STRENGTHS):  # from the strongest penalty on, each beginning at the last
            model = fit_softmax(learned, classes[~out], k, strength, model)
            told = model.log_probabilities(judged)[np.arange(int(out.sum())), classes[out]]
            losses[number] -= told.sum()
            if number and losses[number] > losses[number - 1]:
                losses[number + 1 :] = np.inf
                break
    return STRENGTHS[int(np.argmin(losses))]


def fit_linear(rows: FloatMatrix, classes: IntVector, k: int, strength: float, seed: int) -> Probe:
    """Multinomial logistic regression."""
    standard = Standard.of(rows)
    return Probe(standard, fit_softmax(standard.apply(rows), classes, k, strength))


def fit_mlp(rows: FloatMatrix, classes: IntVector, k: int, strength: float, seed: int) -> Probe:
    """One hidden layer of rectified units, stopped by a tenth that is held out."""
    standard = Standard.of(rows)
    return Probe(standard, _Mlp.fitted(standard.apply(rows), classes, k, seed))


def fit_mass_mean(rows: FloatMatrix, classes: IntVector, k: int, strength: float, seed: int) -> Probe:
    """The difference of two classes' means, tilted by the inverse covariance within them (Marks and Tegmark 2023).

    That is the variant for held-out data of the same kind, which is Fisher's linear discriminant.
    """
    if k != 2:
        raise InvalidInput(f"a mass-mean probe tells two classes apart; the label has {k}")
    if len(np.unique(classes)) < 2:
        raise InvalidInput("what is learned from holds one class only; give more records, or other groups")
    standard = Standard.of(rows)
    given = standard.apply(rows).astype(np.float64)
    means = np.stack([given[classes == one].mean(axis=0) for one in range(2)])
    within = given - means[classes]
    covariance = within.T @ within / max(len(given) - 2, 1)
    covariance += 1e-3 * max(float(np.trace(covariance)) / len(covariance), _TINY) * np.eye(len(covariance))
    direction = scipy.linalg.solve(covariance, means[1] - means[0], assume_a="pos")
    middle = float(direction @ (means[0] + means[1]) / 2)
    return Probe(standard, Softmax(np.stack([np.zeros_like(direction), direction]), np.array([0.0, -middle])))


LEARNERS: Mapping[str, Callable[[FloatMatrix, IntVector, int, float, int], Probe]] = {
    "linear": fit_linear, "mlp": fit_mlp, "mass-mean": fit_mass_mean,
}  # fmt: skip
"""By name, what fits a probe to rows, classes, their number, the inverse penalty and a seed."""


@dataclass(frozen=True, slots=True)
class _Mlp:
    model: Any
    known: IntVector
    k: int

    @classmethod
    def fitted(cls, rows: FloatMatrix, classes: IntVector, k: int, seed: int) -> _Mlp:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        counts = np.bincount(classes, minlength=k)
        if (counts > 0).sum() < 2:
            return cls(None, np.flatnonzero(counts), k)
        early = len(rows) >= 200 and counts[counts > 0].min() >= 10
        model = MLPClassifier(
            (256,), alpha=1e-4, batch_size=min(256, len(rows)), max_iter=200, early_stopping=early,
            n_iter_no_change=8, random_state=seed,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows, classes)
        return cls(model, np.asarray(model.classes_), k)

    def log_probabilities(self, rows: FloatMatrix) -> np.ndarray:
        found = np.full((len(rows), self.k), np.log(1e-12))
        if self.model is None:
            found[:, self.known] = 0.0
            return found
        found[:, self.known] = np.log(np.maximum(self.model.predict_proba(rows), 1e-12))
        return found
