"""How the vectors of one space are made of those of others: fitted once, kept in the store, applied to what comes."""

from embedstore.transforms.affine import Affine
from embedstore.transforms.derived import (
    DerivedEncoder,
    checked_transform,
    derived_spaces,
    is_derived,
    parents_of,
    transform_of,
)
from embedstore.transforms.landmarks import Landmarks
from embedstore.transforms.product import Product
from embedstore.transforms.stored import Transform, spec_of, stored, transform_from

__all__ = [
    "Affine", "DerivedEncoder", "Landmarks", "Product", "Transform", "checked_transform", "derived_spaces",
    "is_derived", "parents_of", "spec_of", "stored", "transform_from", "transform_of",
]  # fmt: skip
