"""Spaces that are made of other spaces of their collection: which they are, and how they encode and decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import EncoderSpec
from embedstore.errors import DamagedRow, InvalidInput
from embedstore.model import FloatMatrix
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.fitted import fitted_of
from embedstore.transforms.product import Product
from embedstore.transforms.stored import Transform, spec_of, transform_from

if TYPE_CHECKING:
    from embedstore.encoders import Encoder

_KEPT = 32
_known: dict[tuple[str, int], Transform] = {}
"""By fingerprint, which tells of all that decides it, and dimension."""


@lru_cache(maxsize=1024)
def _parent_names(encoder: str) -> tuple[str, ...]:
    return EncoderSpec.from_json(encoder).parents


def is_derived(space: SpaceRow) -> bool:
    """Whether a space is made of others."""
    return bool(space.encoder) and bool(_parent_names(space.encoder))


def parents_of(space: SpaceRow, spaces: Mapping[str, SpaceRow]) -> list[SpaceRow]:
    """The spaces that a derived one is made of, among those of its collection, in the order of its parts."""
    names = _parent_names(space.encoder)
    lost = [name for name in names if name not in spaces]
    if lost or not names:
        raise DamagedRow(f"the space {space.name!r} is made of {', '.join(map(repr, lost))}, which is not there")
    return [spaces[name] for name in names]


def derived_spaces(spaces: Mapping[str, SpaceRow], of: str | None = None) -> list[SpaceRow]:
    """The derived spaces, or those of one parent, each after what it is made of."""
    found = [space for space in spaces.values() if is_derived(space)]  # in the order in which they were made
    return [space for space in found if of is None or of in _parent_names(space.encoder)]


def transform_of(transaction: Transaction, space: SpaceRow) -> Transform:
    """How a derived space is made; DamagedRow where that is not what was written."""
    asked = (space.fingerprint, space.dim or 0)
    held = _known.get(asked)
    if held is None:
        held = _remembered(asked, _read(transaction, space))
    return held


def checked_transform(transaction: Transaction, space: SpaceRow, parents: Sequence[SpaceRow]) -> Transform:
    """As ``transform_of``, held against the space's fingerprint and its parents; DamagedRow where they disagree."""
    made = _read(transaction, space)
    spec = EncoderSpec.from_json(space.encoder)
    found = spec_of(made, spec.name, {parent.name: parent.fingerprint for parent in parents})
    dim_in = sum(parent.dim or 0 for parent in parents)
    if (found.fingerprint, made.dim, made.dim_in) != (space.fingerprint, space.dim, dim_in):
        names = " and ".join(repr(parent.name) for parent in parents)
        raise DamagedRow(f"how the space {space.name!r} is made of {names} is not what its fingerprint says")
    return _remembered((space.fingerprint, space.dim or 0), made)


def _read(transaction: Transaction, space: SpaceRow) -> Transform:
    row = fitted_of(transaction, space.space_id, "")
    if row is None:
        raise DamagedRow(f"how the space {space.name!r} is made of others is not there")
    return transform_from(row)


def _remembered(asked: tuple[str, int], made: Transform) -> Transform:
    """Keep a transform for the next who asks. Without a lock, which a forked child would find held."""
    if len(_known) >= _KEPT:
        _known.clear()
    _known[asked] = made
    return made


class DerivedEncoder:
    """The encoder of a derived space: those of its parents, and the transform after them."""

    def __init__(self, spec: EncoderSpec, transform: Transform, parents: Sequence[Encoder | None]) -> None:
        self._spec = spec
        self._transform = transform
        self._parents = parents

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def parents(self) -> dict[str, Encoder]:
        """What encodes things into each parent space; InvalidInput where nothing does."""
        return {name: self.parent(name) for name in self._spec.parents}

    @property
    def dims(self) -> dict[str, int]:
        """The numbers of a vector in each parent space."""
        transform = self._transform
        dims = transform.dims if isinstance(transform, Product) else (transform.dim_in,)
        return dict(zip(self._spec.parents, dims, strict=True))

    def has_parent(self, name: str) -> bool:
        """Whether something encodes things into a parent space."""
        return self._parents[self._spec.parents.index(name)] is not None

    def parent(self, name: str) -> Encoder:
        """What encodes things into one parent space; InvalidInput where nothing does."""
        found = self._parents[self._spec.parents.index(name)]
        if found is None:
            raise InvalidInput(
                f"the space is made of {name!r}, which holds vectors computed elsewhere and has no encoder: search"
                " with a vector, or by keywords (mode='text')"
            )
        return found

    def transform(self, parts: Sequence[FloatMatrix]) -> FloatMatrix:
        """The vectors (n, dim) that those of the parent spaces, (n, d) each, become."""
        return self._transform.apply(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))

    def encode(self, texts: Sequence[Any]) -> Encoded:
        """Encode prepared items by the parents' encoders, and transform."""
        found = [parent.encode(texts) for parent in self.parents.values()]
        vectors = self.transform([one.vectors for one in found])
        return Encoded(vectors, max(one.n_truncated for one in found), max(one.n_unknown for one in found))

    def encode_query(self, text: Any) -> Any:
        """Encode one prepared item: float32 (dim,)."""
        return self.transform([parent.encode_query(text)[None, :] for parent in self.parents.values()])[0]

    def count_tokens(self, text: str) -> int:
        """How many tokens the parents' encoders read of a text, at most."""
        return max(parent.count_tokens(text) for parent in self.parents.values())

    def decode(self, vectors: FloatMatrix) -> list[Any]:
        """What vectors stand for, by the way back to the parent; of a product of spaces, a mapping by their names.

        InvalidInput where nothing leads back.
        """
        from embedstore.encoders import Decoder

        parents = self.parents
        decoders = {name: parent for name, parent in parents.items() if isinstance(parent, Decoder)}
        if not decoders:
            names = " and ".join(repr(name) for name in parents)
            only = " and ".join(repr(parent.spec.name) for parent in parents.values())
            raise InvalidInput(
                f"vectors of a space made of {names} cannot be decoded: {only} only encodes; an autoencoder does both"
            )
        back = self._transform.invert(vectors)
        if not isinstance(self._transform, Product):
            return next(iter(decoders.values())).decode(back)
        parts = dict(zip(parents, self._transform.split(back), strict=True))
        decoded = {name: decoder.decode(np.ascontiguousarray(parts[name])) for name, decoder in decoders.items()}
        return [{name: found[line] for name, found in decoded.items()} for line in range(len(vectors))]

    def close(self) -> None:
        """Nothing is held but what the parents' encoders hold."""
