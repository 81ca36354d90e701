"""Ways through a space: between two points, along a dimension, and points drawn at random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed
from embedstore.encoders.spec import IMAGE_VAE, TABLE_VAE
from embedstore.errors import InvalidInput
from embedstore.latent.mixtures import fit_mixture
from embedstore.latent.points import Points, look_at
from embedstore.model import FloatMatrix, WriteReport
from embedstore.vector import Vector

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.space import Space

WAYS = ("slerp", "lerp")
_FITTED = 20_000
_MOST_COMPONENTS = 32
_SPREAD = 3.0


def between(start: Vector, end: Vector, steps: int, way: str) -> list[Vector]:
    """``steps`` points from one to the other, both among them, evenly along the great circle or the straight line."""
    if way not in WAYS:
        raise InvalidInput(f"way is {way!r}; it must be slerp or lerp")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 10_000:
        raise InvalidInput(f"steps is {steps!r}; it must be a whole number from 2 to 10,000")
    shares = np.linspace(0.0, 1.0, steps).tolist()
    return [start.slerp(end, share) if way == "slerp" else start.lerp(end, share) for share in shares]


def along(start: Vector, dimension: int, values: Sequence[float] | None) -> list[Vector]:
    """The point with other values of one of its numbers; None: seven from -3 to 3."""
    if isinstance(dimension, bool) or not isinstance(dimension, int) or not 0 <= dimension < len(start):
        raise InvalidInput(f"dimension is {dimension!r}; it must be from 0 to {len(start) - 1}")
    made = []
    for value in np.linspace(-_SPREAD, _SPREAD, 7).tolist() if values is None else values:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise InvalidInput(f"a value of the dimension is {value!r}; it must be a finite number")
        array = start.array.copy()
        array[dimension] = value
        made.append(Vector(start.space, array, start.sources))
    return made


def drawn(collection: Collection, space: Space, n: int, of: str, seed: int) -> list[Vector]:
    """``n`` points of the prior or of the aggregated posterior; see ``Space.sample``."""
    if of not in ("prior", "posterior"):
        raise InvalidInput(f"of is {of!r}; it must be prior or posterior")
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 100_000:
        raise InvalidInput(f"n is {n!r}; it must be a whole number from 1 to 100,000")
    check_seed(seed)
    if of == "prior":
        family = space.family
        if family not in (IMAGE_VAE, TABLE_VAE) or space.dim is None:
            raise InvalidInput(
                f"{space} is no space of a variational autoencoder, so it has no prior; take of='posterior'"
                " (--of posterior)"
            )
        found: FloatMatrix = np.random.default_rng(seed).standard_normal((n, space.dim), np.float32)
    else:
        found = look_at(collection, space.name, None, lambda points: _of_mixture(points, n, seed))
    return [Vector(space, line) for line in found]


def _of_mixture(points: Points, n: int, seed: int) -> FloatMatrix:
    """Points of a Gaussian mixture that is fitted to a space, with as many parts as the BIC prefers."""
    _, vectors = points.sample(_FITTED, seed)
    if len(vectors) < 2:
        raise InvalidInput(f"the space holds {len(vectors)} vectors; a distribution is fitted to 2 or more")
    most = min(_MOST_COMPONENTS, max(1, len(vectors) // (4 * points.dim)))
    made = fit_mixture(vectors, [size for size in (1, 2, 4, 8, 16, 32) if size <= most], seed).sample(n)
    return np.asarray(np.random.default_rng(seed).permutation(made), np.float32)


def keep_decoded(
    collection: Collection, points: Sequence[Vector], into: str, about: Mapping[str, Any]
) -> WriteReport:
    """See ``Collection.keep_decoded``."""
    if not points:
        raise InvalidInput("there are no points to keep")
    space = points[0].space
    kind = "row" if space.root.family == TABLE_VAE else "image"
    decoded = space.decode(np.stack([one.array for one in points]))
    mark = "-".join(str(value) for value in about.values()) or "point"
    records = [
        {
            "key": f"{mark}-{number}", kind: item,
            "metadata": {**about, "number": number, "decoded_from": f"{collection.name}/{space.name}"},
        }
        for number, item in enumerate(decoded)
    ]  # fmt: skip
    return collection.store.collection(into, encoder=space.root.encoder_name).upsert(records)
