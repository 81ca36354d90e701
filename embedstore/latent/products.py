"""Products of spaces: the vectors that records have in several spaces side by side, compared as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed
from embedstore.deriving import add_derived_space
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.moments import moments_of
from embedstore.latent.points import Points, look_at
from embedstore.latent.quality import fidelity
from embedstore.model import FloatMatrix, IntVector, Metric
from embedstore.storage.catalog import SpaceRow, now
from embedstore.transforms import Product

if TYPE_CHECKING:
    from embedstore.collection import Collection

METHOD = "product"
_COMPARED = 2000
_NEIGHBOURS = 10


@dataclass(frozen=True, slots=True)
class Part:
    """What is known of one of the spaces: its row, mean squared distance (1 where it is not asked), and vectors of
    some records (n, dim).
    """

    space: SpaceRow
    spread: float
    vectors: FloatMatrix

    @property
    def metric(self) -> Metric:
        """How its vectors are compared."""
        return Metric(self.space.metric)


def add_product_space(
    collection: Collection, name: str, of: Sequence[str], weights: Sequence[float] | None, *,
    where: Where | None, metric: Metric | None, recipe: str, seed: int,
) -> int:  # fmt: skip
    """Add a space that holds, of every record with a vector in each of several spaces, all of them; how many.

    Where all are compared by cosine, so is the product: its similarity is the mean of theirs by ``weights`` (all the
    same by default). Else squared distances are added, each divided by its mean over pairs of records under ``where``,
    so that a weight means the same in a space of small numbers and in one of large ones.
    """
    shares = _checked(of, weights)
    check_seed(seed)
    all_cosine = all(collection.space(one).metric is Metric.COSINE for one in of)
    parts, n = _looked_at(collection, of, where, seed, in_units=not all_cosine)
    usual = Metric.COSINE if all_cosine else Metric.EUCLIDEAN
    scales = np.sqrt(shares if all_cosine else shares / np.array([part.spread for part in parts]))
    product = Product(
        tuple(part.vectors.shape[1] for part in parts), scales.astype(np.float32),
        tuple(part.metric is Metric.COSINE for part in parts),
    )  # fmt: skip
    kind = metric or usual
    about = {
        "method": METHOD, "fitted_at": now(), "n_fitted": n, "seed": seed,
        "parts": _told(parts, shares, product, kind),
    }  # fmt: skip
    return add_derived_space(
        collection, name, product, about, method=METHOD, parents=[part.space for part in parts], metric=kind,
        recipe=recipe, placed={},
    )  # fmt: skip


def _checked(of: Sequence[str], weights: Sequence[float] | None) -> np.ndarray:
    """The weights, which sum to one; InvalidInput for spaces and weights that make no product."""
    if isinstance(of, str) or len(of) < 2 or len(set(of)) < len(of) or not all(isinstance(one, str) for one in of):
        raise InvalidInput(
            "a product is of two different spaces at least; give of=['text', 'picture'] (--space and --with)"
        )
    given = [1.0] * len(of) if weights is None else list(weights)
    right = all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and 1e-6 <= one <= 1e6 for one in given
    )  # fmt: skip
    if len(given) != len(of) or not right:
        raise InvalidInput(
            f"weights are {given!r}; give each of the {len(of)} spaces one, from a millionth to a million"
        )
    found = np.array(given, np.float64)
    shares: np.ndarray = found / found.sum()
    return shares


def _looked_at(
    collection: Collection, of: Sequence[str], where: Where | None, seed: int, *, in_units: bool
) -> tuple[list[Part], int]:
    """The spaces, with vectors of the same records in each; and how many records the first has."""
    record_ids: IntVector | None = None

    def look(points: Points) -> tuple[Part, IntVector, int]:
        spread = 2.0 * float(np.trace(moments_of(points.blocks()).covariance)) if in_units else 1.0
        if record_ids is None:
            drawn, vectors = points.sample(_COMPARED, seed)
        else:
            drawn, vectors = record_ids, points.of_records(record_ids)
        return Part(points.space, spread, vectors), drawn, points.n

    parts: list[Part] = []
    n = 0
    for one in of:
        part, record_ids, n_here = look_at(collection, one, where, look)
        n = n or n_here
        if not part.spread > 0:
            raise InvalidInput(f"all vectors of {part.space.name!r} are the same, so they tell nothing apart")
        parts.append(part)
    whole = np.logical_and.reduce([np.isfinite(part.vectors[:, 0]) for part in parts])
    return [Part(part.space, part.spread, part.vectors[whole]) for part in parts], n


def _told(parts: Sequence[Part], shares: np.ndarray, product: Product, metric: Metric) -> list[dict[str, Any]]:
    """Of each part its weight, and what of its neighbourhoods the product keeps."""
    after = product.apply(np.concatenate([part.vectors for part in parts], axis=1))
    told = []
    for part, share in zip(parts, shares.tolist(), strict=True):
        one: dict[str, Any] = {"space": part.space.name, "weight": round(share, 6)}
        if len(after) >= 2 * _NEIGHBOURS + 2:
            kept = fidelity(part.vectors, after, _NEIGHBOURS, metric=part.metric, metric_after=metric)
            one["fidelity"] = kept.to_dict()
        told.append(one)
    return told
