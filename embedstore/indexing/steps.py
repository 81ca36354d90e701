"""What a manifest tells of a space's copy in bytes (see ``byte_copy``): its steps, their errors, its size."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

_WIDTH = 32
"""FAISS's loops over bytes take so many at once; a rest takes them half as long again."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What a manifest tells of a copy.

    scale: the size of a step. error: the length of what a vector lacks of its steps, at most. longest: that of a vector
    less the mean, at most. Both leave out ``n_far`` vectors, which are always compared in full.
    """

    scale: float
    error: float
    longest: float
    n_far: int

    @staticmethod
    def from_json(fields: Any) -> Steps:
        """What ``to_json`` wrote; ValueError for anything else."""
        if not isinstance(fields, dict) or fields.keys() != {"scale", "error", "longest", "n_far"}:
            raise ValueError("not what is told of a copy")
        sizes = [fields[name] for name in ("scale", "error", "longest")]
        if not all(type(size) is float and math.isfinite(size) and size > 0 for size in sizes):
            raise ValueError("sizes are greater than zero")
        if type(fields["n_far"]) is not int or fields["n_far"] < 0:
            raise ValueError("a number of vectors is not negative")
        return Steps(**fields)

    def to_json(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return asdict(self)

    def n_bytes(self, n_vectors: int, dim: int) -> int:
        """How large the file is: the bytes of all vectors, the mean, the numbers of those that lie far out."""
        return n_vectors * width_of(dim) + 4 * dim + 8 * self.n_far


def width_of(dim: int) -> int:
    """How many bytes a vector takes in the file; those beyond its numbers stand for zero."""
    return -(-dim // _WIDTH) * _WIDTH
