"""What an autoencoder's latent space is like: what its dimensions tell, how it is filled, whether one can walk it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix

ACTIVE_VARIANCE = 0.01
_PAIRS, _STEPS, _SAMPLES = 200, 8, 500
_LOOKED_AT, _SAME = 20, 1e-6
_ACCEPTED = 0.95
_NEIGHBOURS = 5
_FOLDS = 5


class Flat(Protocol):
    """A model whose items and what they decode to are rows of numbers that can be compared, float32 (n, width)."""

    def encode(self, items: Any) -> tuple[FloatMatrix, FloatMatrix]:
        """Mean and log variance of q(z | x), both (n, latent_dim)."""
        ...

    def flat(self, items: Any) -> FloatMatrix:
        """Items as rows."""
        ...

    def decode_flat(self, latents: FloatMatrix) -> FloatMatrix:
        """What latent vectors decode to, as rows."""
        ...


@dataclass(slots=True)
class Diagnosis:
    """What was found of a latent space, on ``n_items`` items.

    kl_by_dimension: nats that each dimension tells, mean over items. active_units: dimensions whose mean varies by more
    than 0.01. posterior_mean, posterior_deviation: of the aggregated posterior, by dimension; from_prior: KL in nats of
    the normal distribution with its mean and covariance from the prior; total_correlation: nats by which its dimensions
    depend on each other, as far as covariance tells. reconstruction: mean squared error of what comes back, in all and
    by the values of a label. continuity: in eight steps from an item to the nearest that differs, the greatest change
    of what is decoded over the mean one; 1 is a walk of equal steps. completeness: the share of samples of the prior
    whose decoding is as near to an item as 95 in 100 items, or what comes back of them, are to another. probes:
    accuracy of a linear probe and of the five nearest neighbours in five folds, on the means and on a PCA of the same
    size; empty without a label, or where a value of it has fewer than five items. unreadable: records that could not be
    read, with the reason.
    """

    n_items: int
    kl_by_dimension: list[float]
    active_units: int
    posterior_mean: list[float]
    posterior_deviation: list[float]
    from_prior: float
    total_correlation: float
    reconstruction: float
    reconstruction_by_label: dict[str, float] = field(default_factory=dict)
    continuity: float = 0.0
    completeness: float = 0.0
    probes: dict[str, dict[str, float]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""
        return asdict(self)


def diagnose(model: Flat, items: Any, labels: Sequence[Any] | None = None, seed: int = 0) -> Diagnosis:
    """Look at a model's latent space through some items (at least 20), and their labels (None: it has none)."""
    n = len(items)
    if n < 20:
        raise InvalidInput(f"there are {n} items; a space is looked at through 20 or more")
    drawn = np.random.default_rng(seed)
    means, log_variances = model.encode(items)
    rows = model.flat(items)
    back = model.decode_flat(means)
    missed = np.square(back - rows).mean(axis=1, dtype=np.float64)
    kl = 0.5 * (means**2 + np.exp(log_variances) - 1.0 - log_variances).mean(axis=0, dtype=np.float64)
    samples = means + np.exp(0.5 * log_variances) * drawn.standard_normal(means.shape)
    from_prior, total_correlation = gaussian_gap(samples)
    found = Diagnosis(
        n_items=n, kl_by_dimension=kl.tolist(), active_units=int((means.var(axis=0) > ACTIVE_VARIANCE).sum()),
        posterior_mean=samples.mean(axis=0).tolist(), posterior_deviation=samples.std(axis=0).tolist(),
        from_prior=from_prior, total_correlation=total_correlation, reconstruction=float(missed.mean()),
    )  # fmt: skip
    found.continuity = _continuity(model.decode_flat, means, drawn)
    found.completeness = _completeness(model.decode_flat, rows, back, means.shape[1], drawn)
    if labels is not None:
        told = np.asarray([label is not None for label in labels])
        words = np.asarray([str(label) for label in labels if label is not None])
        for word in np.unique(words).tolist():
            found.reconstruction_by_label[word] = float(missed[told][words == word].mean())
        found.probes = _probes(means[told], rows[told], words, seed)
    return found


def gaussian_gap(samples: np.ndarray) -> tuple[float, float]:
    """Of samples (n, d): the KL of their normal distribution from the standard one, and their total correlation, nats.

    KL(N(m, S) || N(0, 1)) = (tr S + m m - d - ln det S) / 2; total correlation = (sum ln S_ii - ln det S) / 2.
    """
    mean, covariance = samples.mean(axis=0), np.atleast_2d(np.cov(samples.T))
    covariance = covariance + 1e-9 * np.eye(len(covariance))
    _, log_determinant = np.linalg.slogdet(covariance)
    gap = 0.5 * float(np.trace(covariance) + mean @ mean - len(mean) - log_determinant)
    return gap, 0.5 * float(np.log(np.diag(covariance)).sum() - log_determinant)


def _nearest(rows: FloatMatrix, queries: FloatMatrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared distances and places of the ``k`` nearest rows of each query."""
    from embedstore.optional import load_faiss

    index = load_faiss().IndexFlatL2(rows.shape[1])
    index.add(np.ascontiguousarray(rows, np.float32))
    distances, places = index.search(np.ascontiguousarray(queries, np.float32), k)
    return distances, places


def _continuity(decode: Callable[[FloatMatrix], FloatMatrix], means: FloatMatrix, drawn: np.random.Generator) -> float:
    chosen = drawn.choice(len(means), min(_PAIRS, len(means)), replace=False)
    distances, places = _nearest(means, means[chosen], min(_LOOKED_AT, len(means)))
    shares = np.linspace(0.0, 1.0, _STEPS + 1, dtype=np.float32)
    ratios = []
    for start, far, near in zip(chosen.tolist(), distances > _SAME, places, strict=True):
        if not far.any():
            continue  # as many copies of one item
        end = near[far.argmax()]
        way = means[start] + shares[:, None] * (means[end] - means[start])  # (steps + 1, latent_dim)
        changes = np.linalg.norm(np.diff(decode(way.astype(np.float32)), axis=0), axis=1)
        if changes.mean() > 0:
            ratios.append(float(changes.max() / changes.mean()))
    return float(np.mean(ratios)) if ratios else 1.0


def _completeness(
    decode: Callable[[FloatMatrix], FloatMatrix], rows: FloatMatrix, back: FloatMatrix, latent_dim: int,
    drawn: np.random.Generator,
) -> float:  # fmt: skip
    sampled = decode(drawn.standard_normal((_SAMPLES, latent_dim)).astype(np.float32))
    among, _ = _nearest(rows, rows, 2)
    returned, _ = _nearest(rows, back, 1)
    limit = max(float(np.quantile(distances, _ACCEPTED)) for distances in (among[:, 1], returned[:, 0]))
    distances, _ = _nearest(rows, sampled, 1)
    return float((distances[:, 0] <= limit).mean())


def _probes(means: FloatMatrix, rows: FloatMatrix, words: np.ndarray, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of predicting the label from the means, and from a PCA of the same size; nothing for lone labels."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds, counts = np.unique(words, return_counts=True)
    if len(kinds) < 2 or counts.min() < _FOLDS:
        return {}
    n = min(means.shape[1], *rows.shape)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    found: dict[str, dict[str, float]] = {}
    for name, vectors in (("means", means), ("pca", PCA(n, random_state=seed).fit_transform(rows))):
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        near = KNeighborsClassifier(_NEIGHBOURS)
        found[name] = {
            "linear": float(cross_val_score(linear, vectors, words, cv=folds).mean()),
            "neighbours": float(cross_val_score(near, vectors, words, cv=folds).mean()),
        }
    return found
