"""Vectors of several spaces side by side, each with its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, FloatVector
from embedstore.transforms.affine import normalized

KIND = "product"


@dataclass(frozen=True, slots=True)
class Product:
    """``y = (scales[0] * x[0], scales[1] * x[1], ...)``, each part of ``dims`` numbers, brought to length one first
    where ``normalize`` says so. scales: float32 (parts,), above 0.
    """

    dims: tuple[int, ...]
    scales: FloatVector
    normalize: tuple[bool, ...]

    @property
    def dim_in(self) -> int:
        """Numbers of the vectors that go in, side by side."""
        return sum(self.dims)

    @property
    def dim(self) -> int:
        """Numbers of a vector that comes out."""
        return sum(self.dims)

    def split(self, vectors: FloatMatrix) -> list[FloatMatrix]:
        """Vectors (n, dim) as those of each part, (n, dims[i])."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise InvalidInput(f"vectors of {self.dim} numbers are taken apart; these have shape {vectors.shape}")
        return np.split(vectors, np.cumsum(self.dims)[:-1], axis=1)

    def apply(self, vectors: FloatMatrix) -> FloatMatrix:
        """The parts side by side, float32 (n, dim_in), as vectors of the product, float32 (n, dim)."""
        parts = zip(self.split(vectors), self.scales, self.normalize, strict=True)
        return np.concatenate(
            [(normalized(part) if at_length_one else part) * scale for part, scale, at_length_one in parts], axis=1
        ).astype(np.float32, copy=False)

    def invert(self, vectors: FloatMatrix) -> FloatMatrix:
        """The parts side by side again, float32 (n, dim_in); what was brought to length one stays so."""
        return np.concatenate(
            [part / scale for part, scale in zip(self.split(vectors), self.scales, strict=True)], axis=1
        ).astype(np.float32, copy=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers by name."""
        return {"scales": self.scales}

    def settings(self) -> dict[str, Any]:
        """What else decides it, as JSON."""
        return {"kind": KIND, "dims": list(self.dims), "normalize": list(self.normalize)}

    @classmethod
    def made_from(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Product:
        """Of what ``settings`` and ``arrays`` gave; KeyError where something lacks, or does not fit."""
        dims, normalize = _whole(settings["dims"]), tuple(bool(one) for one in settings["normalize"])
        made = cls(dims, arrays["scales"], normalize)
        if made.scales.shape != (len(dims),) or len(normalize) != len(dims) or not (made.scales > 0).all():
            raise KeyError(f"a product of {len(dims)} parts with scales of shape {made.scales.shape}")
        return made


def _whole(given: Sequence[Any]) -> tuple[int, ...]:
    dims = tuple(int(one) for one in given)
    if len(dims) < 2 or min(dims) < 1:
        raise KeyError(f"parts of {dims} numbers")
    return dims
