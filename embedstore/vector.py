"""A point of a space that knows its space: it can be added, subtracted, scaled, mixed and searched from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput, SpaceMismatch
from embedstore.model import FloatVector, Hits

if TYPE_CHECKING:
    from embedstore.filters.parse import Where
    from embedstore.space import Space


class Vector:
    """A float32 vector (dim,) bound to a space. Arithmetic gives new vectors of the same space.

    Vectors of different spaces cannot be combined: SpaceMismatch names both. ``sources`` holds the keys of records
    that went into an expression; ``nearest`` leaves them out.
    """

    __array_ufunc__ = None  # so that NumPy's scalars leave arithmetic to this class

    def __init__(self, space: Space, array: FloatVector, sources: frozenset[str] = frozenset()) -> None:
        self.space = space
        self.array: FloatVector = np.ascontiguousarray(array, dtype=np.float32)
        self.sources = sources

    @property
    def space_id(self) -> int:
        """The identity of the space."""
        return self.space.space_id

    @property
    def space_name(self) -> str:
        """The space, as ``collection/space``."""
        return str(self.space)

    def __repr__(self) -> str:
        return f"Vector({self.space_name!r}, {self.array.shape[0]} numbers, length {self.norm():.4g})"

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=True if copy is None else copy)

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def norm(self) -> float:
        """The Euclidean length."""
        return float(np.linalg.norm(self.array.astype(np.float64)))

    def normalize(self) -> Vector:
        """The same direction with length one; InvalidInput for the zero vector."""
        length = self.norm()
        if length == 0:
            raise InvalidInput("the zero vector has no direction, so it cannot be normalised")
        return self._made(self.array / np.float32(length), self)

    def __add__(self, other: Vector) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._made(self.array + self._same(other, "added"), self, other)

    def __radd__(self, other: int) -> Vector:
        if isinstance(other, int) and other == 0:  # with which ``sum`` begins
            return self
        return NotImplemented

    def __sub__(self, other: Vector) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._made(self.array - self._same(other, "subtracted"), self, other)

    def __neg__(self) -> Vector:
        return self._made(-self.array, self)

    def __mul__(self, factor: float) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):
            return self._made(self.array * np.float32(_number(factor)), self)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Vector:
        if _number(divisor) == 0:
            raise InvalidInput("a vector cannot be divided by zero")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return self._made(self.array / np.float32(divisor), self)

    def lerp(self, other: Vector, t: float) -> Vector:
        """The point at share ``t`` of the straight way to ``other``: 0 is here, 1 is there."""
        there = self._same(other, "mixed")
        share = np.float32(_number(t))
        return self._made((1 - share) * self.array + share * there, self, other)

    def slerp(self, other: Vector, t: float) -> Vector:
        """The point at share ``t`` of the great-circle way to ``other`` (Shoemake 1985), lengths mixed linearly.

        Opposite directions have no one great circle between them: InvalidInput.
        """
        there = self._same(other, "mixed").astype(np.float64)
        here = self.array.astype(np.float64)
        lengths = np.linalg.norm(here), np.linalg.norm(there)
        if not all(lengths):
            raise InvalidInput("the zero vector has no direction, so there is no arc from or to it")
        start, end = here / lengths[0], there / lengths[1]
        share = _number(t)
        length = (1 - share) * lengths[0] + share * lengths[1]
        # The half-angle form keeps its digits for nearly equal and nearly opposite directions.
        angle = 2 * np.arctan2(np.linalg.norm(start - end), np.linalg.norm(start + end))
        if np.pi - angle < 1e-6:
            raise InvalidInput("the vectors point in opposite directions, so the way between them is not one arc")
        if angle < 1e-6:
            direction = (1 - share) * start + share * end
        else:
            direction = (np.sin((1 - share) * angle) * start + np.sin(share * angle) * end) / np.sin(angle)
        return self._made((length * direction).astype(np.float32), self, other)

    def distance(self, other: Vector) -> float:
        """The Euclidean distance to ``other``, whatever the space compares by."""
        return float(np.linalg.norm(self.array.astype(np.float64) - self._same(other, "compared")))

    def cosine(self, other: Vector) -> float:
        """The cosine of the angle to ``other``; InvalidInput where one is the zero vector."""
        there = self._same(other, "compared").astype(np.float64)
        lengths = self.norm() * float(np.linalg.norm(there))
        if lengths == 0:
            raise InvalidInput("the zero vector has no direction, so there is no angle to it")
        return float(self.array.astype(np.float64) @ there / lengths)

    def project(self, onto: Vector) -> Vector:
        """The part of this that lies along ``onto``; InvalidInput where that is the zero vector."""
        there = self._same(onto, "projected").astype(np.float64)
        squared = float(there @ there)
        if squared == 0:
            raise InvalidInput("the zero vector has no direction to project onto")
        share = float(self.array.astype(np.float64) @ there) / squared
        return self._made((share * there).astype(np.float32), self)

    def reject(self, from_: Vector) -> Vector:
        """What is left of this without its part along ``from_``, at right angles to it."""
        along = self.project(from_).array.astype(np.float64)
        return self._made((self.array.astype(np.float64) - along).astype(np.float32), self)

    def nearest(self, k: int = 10, *, where: Where | None = None, include_sources: bool = False) -> Hits:
        """The ``k`` nearest records; those that went into this expression are left out unless asked for."""
        exclude = () if include_sources else tuple(sorted(self.sources))
        return self.space.nearest(self, k, where=where, exclude=exclude)

    def decode(self) -> Any:
        """What this point stands for, by the space's autoencoder: a Pillow image, or a row as a mapping."""
        return self.space.decode(self.array[np.newaxis])[0]

    def _same(self, other: Vector, verb: str) -> FloatVector:
        if not isinstance(other, Vector):
            raise InvalidInput(f"only vectors of one space can be {verb}; this is {type(other).__name__}")
        if other.space_id != self.space_id or other.space.store is not self.space.store:
            raise SpaceMismatch(
                f"vectors of {self.space_name!r} and {other.space_name!r} cannot be {verb}: they are different spaces"
            )
        return other.array

    def _made(self, array: FloatVector, *parents: Vector) -> Vector:
        if not np.isfinite(array).all():
            raise InvalidInput("the result is beyond what float32 holds; take smaller factors")
        return Vector(self.space, array, frozenset().union(*(parent.sources for parent in parents)))


def _number(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidInput(f"a vector is multiplied and divided by numbers, not by {type(value).__name__}")
    if not np.isfinite(value):
        raise InvalidInput(f"a vector cannot be combined with {value}")
    return float(value)
