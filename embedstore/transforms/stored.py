"""Transforms as a store keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import orjson

from embedstore.encoders.spec import DERIVED, EncoderSpec, derived_location
from embedstore.errors import DamagedRow
from embedstore.model import FloatMatrix
from embedstore.storage.fitted import TRANSFORM, Fitted
from embedstore.transforms import affine, landmarks, product


class Transform(Protocol):
    """Makes the vectors of one space of those of another, or of several side by side."""

    @property
    def dim_in(self) -> int:
        """Numbers of a vector that goes in."""
        ...

    @property
    def dim(self) -> int:
        """Numbers of a vector that comes out."""
        ...

    def apply(self, vectors: FloatMatrix) -> FloatMatrix:
        """Vectors float32 (n, dim_in) as float32 (n, dim)."""
        ...

    def invert(self, vectors: FloatMatrix) -> FloatMatrix:
        """The way back, as near as it leads; InvalidInput where there is none."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers by name."""
        ...

    def settings(self) -> dict[str, Any]:
        """What else decides it, as JSON."""
        ...


def stored(transform: Transform, about: Mapping[str, Any]) -> Fitted:
    """A transform as a row; ``about`` says how it was fitted, and what it is worth."""
    return Fitted("", TRANSFORM, {"settings": transform.settings(), "about": dict(about)}, transform.arrays())


def transform_from(row: Fitted) -> Transform:
    """The transform of a row; DamagedRow where it holds none that this release knows."""
    try:
        settings = row.description["settings"]
        if settings["kind"] == landmarks.KIND:
            return landmarks.Landmarks.made_from(settings, row.arrays)
        if settings["kind"] == affine.KIND:
            return affine.Affine.made_from(settings, row.arrays)
        if settings["kind"] == product.KIND:
            return product.Product.made_from(settings, row.arrays)
        raise KeyError(settings["kind"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedRow(f"how a space is made of another one cannot be read: {error}") from None


def spec_of(transform: Transform, method: str, parents: Mapping[str, str]) -> EncoderSpec:
    """The spec of a space that a transform makes of others, which are given with their fingerprints."""
    fingerprints = list(parents.values())
    made_of = fingerprints[0] if len(fingerprints) == 1 else fingerprints
    hashed = hashlib.sha256(orjson.dumps([made_of, transform.settings()], option=orjson.OPT_SORT_KEYS))
    for name, array in sorted(transform.arrays().items()):
        hashed.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        hashed.update(np.ascontiguousarray(array).data)
    return EncoderSpec(method, DERIVED, transform.dim, pipeline=hashed.hexdigest(), location=derived_location(parents))
