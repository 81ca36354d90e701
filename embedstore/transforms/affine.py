"""A linear map with an offset: principal components, whitening, random projections, truncation, erasure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, FloatVector

KIND = "affine"
_TINY = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class Affine:
    """``y = matrix @ x + offset``, where ``x`` is first brought to length one if ``normalize``.

    matrix: float32 (k, d); offset: float32 (k,). back: float32 (d, k) and back_offset: float32 (d,), the way back, of
    least squared error where something is lost; None where there is none.
    """

    matrix: FloatMatrix
    offset: FloatVector
    normalize: bool = False
    back: FloatMatrix | None = field(default=None)
    back_offset: FloatVector | None = field(default=None)

    @property
    def dim_in(self) -> int:
        """Numbers of a vector that goes in."""
        return int(self.matrix.shape[1])

    @property
    def dim(self) -> int:
        """Numbers of a vector that comes out."""
        return int(self.matrix.shape[0])

    def apply(self, vectors: FloatMatrix) -> FloatMatrix:
        """Vectors float32 (n, d) as float32 (n, k)."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim_in:
            raise InvalidInput(f"vectors of {self.dim_in} numbers are transformed; these have shape {vectors.shape}")
        given = normalized(vectors) if self.normalize else np.asarray(vectors, np.float32)
        made: FloatMatrix = given @ self.matrix.T
        made += self.offset
        return made

    def invert(self, vectors: FloatMatrix) -> FloatMatrix:
        """Vectors float32 (n, k) as float32 (n, d); InvalidInput where there is no way back."""
        if self.back is None or self.back_offset is None:
            raise InvalidInput("nothing leads back from this space to the one that it was made of")
        return vectors @ self.back.T + self.back_offset

    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers by name."""
        made: dict[str, np.ndarray] = {"matrix": self.matrix, "offset": self.offset}
        if self.back is not None and self.back_offset is not None:
            made |= {"back": self.back, "back_offset": self.back_offset}
        return made

    def settings(self) -> dict[str, Any]:
        """What else decides it, as JSON."""
        return {"kind": KIND, "normalize": self.normalize}

    @classmethod
    def made_from(cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Affine:
        """Of what ``settings`` and ``arrays`` gave; KeyError where something lacks, or does not fit."""
        made = cls(
            arrays["matrix"], arrays["offset"], bool(settings["normalize"]), arrays.get("back"),
            arrays.get("back_offset"),
        )  # fmt: skip
        shapes = {name: array.shape for name, array in made.arrays().items()}
        k, d = made.matrix.shape if made.matrix.ndim == 2 else (-1, -1)
        wanted = {"matrix": (k, d), "offset": (k,), "back": (d, k), "back_offset": (d,)}
        if k < 1 or d < 1 or any(shape != wanted[name] for name, shape in shapes.items()):
            raise KeyError(f"arrays of shapes {shapes}")
        return made


def normalized(vectors: FloatMatrix) -> FloatMatrix:
    """Vectors (n, d) at length one; zero vectors stay as they are."""
    given = np.asarray(vectors, np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", given, given, dtype=np.float64)).astype(np.float32)
    made: FloatMatrix = given / np.maximum(lengths, _TINY)[:, None]
    return made
