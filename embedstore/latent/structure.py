"""What a space is like, whatever made it: how many dimensions it uses, how it fills them, what lies close together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.points import Points, look_at
from embedstore.model import FloatMatrix
from embedstore.reading import keys_by_id
from embedstore.transforms.affine import normalized

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LEAST = 20
_NEIGHBOURS = 10
_DISCARDED = 0.1
_MOST_PAIRS = 100
_PERMUTATIONS = 200
_SAME = 1e-6


@dataclass(frozen=True, slots=True)
class Structure:
    """What was found of a space, seen through ``n`` of its ``n_records`` records.

    two_nn: intrinsic dimension by the ratio of the distances to the two nearest (Facco et al. 2017, a tenth of the
    ratios discarded); mle: by the ten nearest (Levina and Bickel 2004, averaged as MacKay and Ghahramani). anisotropy:
    mean cosine of two records (Ethayarajh 2019), 0 where directions are even; isotropy: 0 to 1, greater for variance
    that is spread over more dimensions (IsoScore, Rudman et al. 2022). components_90: how many principal components
    have 90 % of the variance. hubness: skewness of how often a record is among the ten nearest of others (Radovanović
    et al. 2010); hubs: share of records that are so for over twice ten; orphans: for none. duplicates: pairs of records
    with the same vector, near_duplicates: such as are nearer than a hundredth of the median distance to the nearest.
    """

    space: str
    n: int
    n_records: int
    dim: int
    two_nn: float
    mle: float
    anisotropy: float
    isotropy: float
    components_90: int
    hubness: float
    hubs: float
    orphans: float
    duplicates: list[tuple[str, str]]
    near_duplicates: list[tuple[str, str]]

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, rounded for people."""
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Drift:
    """Whether two sets of records are of one distribution in a space.

    mmd: squared maximum mean discrepancy (Gretton et al. 2012), unbiased, of a Gaussian kernel with the median distance
    as its width; p_value: the share of permutations of the records that give as much or more.
    """

    n_first: int
    n_second: int
    mmd: float
    p_value: float


def structure(collection: Collection, space: str, where: Where | None, sample: int, seed: int) -> Structure:
    """See ``Space.structure``."""
    _check(sample, seed)

    def found(points: Points) -> Structure:
        record_ids, vectors = points.sample(sample, seed)
        if len(vectors) < _LEAST:
            raise InvalidInput(f"there are {len(vectors)} vectors; a space is looked at through {_LEAST} or more")
        names = keys_by_id(points.transaction, record_ids.tolist())
        keys = [names[one] for one in record_ids.tolist()]
        squared = _squared_distances(vectors)
        nearest = np.argpartition(squared, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
        sorted_near = np.sqrt(np.sort(np.take_along_axis(squared, nearest, axis=1), axis=1))
        duplicates, near = _close(vectors, squared, sorted_near[:, 0], keys)
        counts = np.bincount(nearest.ravel(), minlength=len(vectors))
        variances = np.maximum(np.linalg.eigvalsh(np.cov(vectors.T.astype(np.float64)).reshape(points.dim, -1)), 0.0)
        return Structure(
            space, len(vectors), points.n, points.dim, two_nn(sorted_near), mle(sorted_near), _anisotropy(vectors),
            isotropy(variances), _components(variances, 0.9), _skewness(counts),
            float((counts > 2 * _NEIGHBOURS).mean()), float((counts == 0).mean()), duplicates, near,
        )  # fmt: skip

    return look_at(collection, space, where, found)


def drift(
    collection: Collection, space: str, first: Where, second: Where, sample: int, seed: int
) -> Drift:
    """See ``Space.drift``."""
    _check(sample, seed)
    parts = []
    for where in (first, second):
        vectors = look_at(collection, space, where, lambda points: points.sample(sample, seed)[1])
        if len(vectors) < 2:
            raise InvalidInput(f"only {len(vectors)} records fit {where!r}; each set needs 2 or more")
        parts.append(vectors)
    return mmd_test(parts[0], parts[1], seed)


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two spaces are, by ``n`` records that both hold.

    overlap: mean share of a record's ten nearest that they have in common; cka: linear centred kernel alignment
    (Kornblith et al. 2019), 1 for the same but for rotation and scale.
    """

    n: int
    overlap: float
    cka: float


def likeness(first: Points, second: Points, sample: int, seed: int, k: int = _NEIGHBOURS) -> Likeness:
    """Compare two spaces by a sample of the records."""
    record_ids, vectors = first.sample(sample, seed)
    others = second.of_records(record_ids)
    both = ~np.isnan(others).any(axis=1)
    if both.sum() <= k:
        raise InvalidInput(f"only {int(both.sum())} records have a vector in both spaces; over {k} are needed")
    parts = vectors[both], others[both]
    near: list[np.ndarray] = [np.argpartition(_squared_distances(part), k, axis=1)[:, :k] for part in parts]
    shared = [len(np.intersect1d(one, other)) for one, other in zip(*near, strict=True)]
    return Likeness(int(both.sum()), float(np.mean(shared) / k), cka(*parts))


def cka(first: FloatMatrix, second: FloatMatrix) -> float:
    """Linear centred kernel alignment of the same records in two spaces, (n, d) and (n, e): Kornblith et al. 2019."""
    x, y = (given.astype(np.float64) - given.mean(axis=0, dtype=np.float64) for given in (first, second))
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.square(x.T @ y).sum() / scale) if scale else 0.0


def two_nn(near: np.ndarray) -> float:
    """Intrinsic dimension by sorted distances to the nearest (n, 2 or more): TwoNN, Facco et al. 2017."""
    there = near[:, 0] > 0
    ratios = np.sort(near[there, 1] / near[there, 0])
    n = len(ratios)
    kept = int(n * (1 - _DISCARDED))
    if kept < 2:
        return float("nan")
    x = np.log(ratios[:kept])
    y = -np.log(1 - np.arange(1, kept + 1) / n)
    return float((x @ y) / max(x @ x, 1e-300))


def mle(near: np.ndarray) -> float:
    """Intrinsic dimension by sorted distances to the k nearest (n, k): the mean of inverses, turned round."""
    there = near[:, 0] > 0
    logs = np.log(near[there, -1:] / near[there, :-1])
    inverse = logs.sum(axis=1) / (near.shape[1] - 2)
    return float(1 / max(inverse.mean(), 1e-300)) if len(logs) else float("nan")


def isotropy(variances: np.ndarray) -> float:
    """IsoScore of principal variances (Rudman et al. 2022): 1 for equal ones, 0 where only one is not zero."""
    d = len(variances)
    length = float(np.linalg.norm(variances))
    if d < 2 or length == 0:
        return 0.0
    scaled = np.sqrt(d) * variances / length
    defect = float(np.linalg.norm(scaled - 1)) / np.sqrt(2 * (d - np.sqrt(d)))
    used = (d - defect**2 * (d - np.sqrt(d))) ** 2 / d**2
    return float((d * used - 1) / (d - 1))


def mmd_test(first: FloatMatrix, second: FloatMatrix, seed: int) -> Drift:
    """Maximum mean discrepancy of two sets of vectors, (n, d) and (m, d), with a permutation test."""
    both = np.concatenate([first, second]).astype(np.float64)
    squared = _squared_distances(both)
    np.fill_diagonal(squared, 0.0)
    width = float(np.median(squared[np.triu_indices(len(both), 1)]))
    kernel = np.exp(-squared / max(width, 1e-300))
    np.fill_diagonal(kernel, 0.0)
    n, m = len(first), len(second)

    def discrepancy(signs: np.ndarray) -> float:
        """``signs`` is 1 for the first set."""
        of_first = signs @ kernel
        of_second = (1 - signs) @ kernel
        within = of_first @ signs / (n * (n - 1)) + of_second @ (1 - signs) / (m * (m - 1))
        return float(within - 2 * (of_first @ (1 - signs)) / (n * m))

    signs = np.repeat([1.0, 0.0], [n, m])
    seen = discrepancy(signs)
    drawn = np.random.default_rng(seed)
    as_much = sum(discrepancy(drawn.permutation(signs)) >= seen for _ in range(_PERMUTATIONS))
    return Drift(n, m, seen, (as_much + 1) / (_PERMUTATIONS + 1))


def _check(sample: int, seed: int) -> None:
    check_whole("sample", sample, _LEAST)
    check_seed(seed)


def _squared_distances(vectors: np.ndarray) -> np.ndarray:
    """Between all records, float64 (n, n); infinite to itself."""
    given = vectors.astype(np.float64)
    given = given - given.mean(axis=0)  # so that little is lost to rounding
    lengths = np.einsum("ij,ij->i", given, given)
    squared = np.maximum(lengths[:, None] + lengths - 2 * (given @ given.T), 0.0)
    squared[squared < _SAME**2 * np.minimum(lengths[:, None], lengths)] = 0.0
    np.fill_diagonal(squared, np.inf)
    return np.asarray(squared)


def _close(
    vectors: FloatMatrix, squared: np.ndarray, nearest: np.ndarray, keys: list[str]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of the same vector, and pairs that are nearly so; of each the first hundred."""
    typical = float(np.median(nearest[nearest > 0])) if (nearest > 0).any() else 0.0
    equal: list[tuple[str, str]] = []
    nearly: list[tuple[str, str]] = []
    for one in range(len(vectors)):
        for other in np.flatnonzero(squared[one, one + 1 :] <= (typical / 100) ** 2).tolist():
            pair = (keys[one], keys[one + 1 + other])
            (equal if (vectors[one] == vectors[one + 1 + other]).all() else nearly).append(pair)
            if len(equal) >= _MOST_PAIRS and len(nearly) >= _MOST_PAIRS:
                return equal[:_MOST_PAIRS], nearly[:_MOST_PAIRS]
        del equal[_MOST_PAIRS:], nearly[_MOST_PAIRS:]
    return equal, nearly


def _anisotropy(vectors: FloatMatrix) -> float:
    """The mean cosine of two different records."""
    unit = normalized(vectors).astype(np.float64)
    n = len(unit)
    total = unit.sum(axis=0)
    return float((total @ total - np.einsum("ij,ij->", unit, unit)) / (n * (n - 1)))


def _components(variances: np.ndarray, share: float) -> int:
    falling = np.sort(variances)[::-1]
    return int(np.searchsorted(np.cumsum(falling), share * falling.sum()) + 1)


def _skewness(counts: np.ndarray) -> float:
    centred = counts - counts.mean()
    deviation = float(centred.std())
    return float((centred**3).mean() / deviation**3) if deviation else 0.0
