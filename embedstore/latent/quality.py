"""How much of a space's neighbourhoods another space of the same records keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, Metric
from embedstore.transforms.affine import normalized


@dataclass(frozen=True, slots=True)
class Fidelity:
    """By the ``k`` nearest records of each of ``n`` records.

    trustworthiness: whether those near each other are so by right; continuity: whether those that were near still are
    (Venna and Kaski 2001; both 1 where nothing changed). recall: share of the nearest that are the same.
    """

    n: int
    k: int
    trustworthiness: float
    continuity: float
    recall: float

    def to_dict(self) -> dict[str, float | int]:
        """The numbers by name, rounded for people."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


def fidelity(
    before: FloatMatrix, after: FloatMatrix, k: int, *, metric: Metric, metric_after: Metric | None = None
) -> Fidelity:
    """Compare the neighbourhoods of the same records in two spaces, (n, d) and (n, e); every record is compared."""
    n = len(before)
    if not 1 <= k < n / 2:
        raise InvalidInput(f"neighbourhoods of {k} need more than {2 * k} records; there are {n}")
    ranks, ranks_after = _ranks(before, metric), _ranks(after, metric_after or metric)
    near, near_after = ranks <= k, ranks_after <= k
    scale = 2.0 / (n * k * (2 * n - 3 * k - 1))
    intruded = (ranks[near_after & ~near] - k).sum()
    lost = (ranks_after[near & ~near_after] - k).sum()
    shared = (near & near_after).sum() / (n * k)
    return Fidelity(n, k, float(1 - scale * intruded), float(1 - scale * lost), float(shared))


def _ranks(vectors: FloatMatrix, metric: Metric) -> np.ndarray:
    """By pair of records, as the how manieth nearest of the first the second comes, from 1; its own is n."""
    given = (normalized(vectors) if metric is Metric.COSINE else vectors).astype(np.float64)
    far = -(given @ given.T)
    if metric is not Metric.DOT:
        lengths = np.einsum("ij,ij->i", given, given)
        far = lengths[:, None] + lengths + 2 * far
    np.fill_diagonal(far, np.inf)
    order = np.argsort(far, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(vectors) + 1), axis=1)
    return ranks
