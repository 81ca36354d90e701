"""Spaces that are made of other spaces of their collection: which they are, and how they encode and decode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import DERIVED, EncoderSpec
from embedstore.errors import DamagedRow, InvalidInput
from embedstore.model import FloatMatrix
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.fitted import fitted_of
from embedstore.transforms.stored import Transform, spec_of, transform_from

if TYPE_CHECKING:
    from embedstore.encoders import Encoder

_KEPT = 32
_known: dict[tuple[str, int], Transform] = {}
"""By fingerprint, which tells of all that decides it, and dimension."""


@lru_cache(maxsize=1024)
def _parent_name(encoder: str) -> str | None:
    spec = EncoderSpec.from_json(encoder)
    return spec.location if spec.family == DERIVED else None


def is_derived(space: SpaceRow) -> bool:
    """Whether a space is made of another one."""
    return bool(space.encoder) and _parent_name(space.encoder) is not None


def parent_of(space: SpaceRow, spaces: Mapping[str, SpaceRow]) -> SpaceRow:
    """The space that a derived one is made of, among those of its collection."""
    name = _parent_name(space.encoder)
    if name is None or name not in spaces:
        raise DamagedRow(f"the space {space.name!r} is made of {name!r}, which is not there")
    return spaces[name]


def derived_spaces(spaces: Mapping[str, SpaceRow], of: str | None = None) -> list[SpaceRow]:
    """The derived spaces, or those of one parent, each after what it is made of."""
    found = [space for space in spaces.values() if is_derived(space)]  # in the order in which they were made
    return [space for space in found if of is None or _parent_name(space.encoder) == of]


def transform_of(transaction: Transaction, space: SpaceRow) -> Transform:
    """How a derived space is made; DamagedRow where that is not what was written."""
    asked = (space.fingerprint, space.dim or 0)
    held = _known.get(asked)
    if held is None:
        held = _remembered(asked, _read(transaction, space))
    return held


def checked_transform(transaction: Transaction, space: SpaceRow, parent: SpaceRow) -> Transform:
    """As ``transform_of``, held against the space's fingerprint and its parent; DamagedRow where they do not agree."""
    made = _read(transaction, space)
    spec = EncoderSpec.from_json(space.encoder)
    found = spec_of(made, spec.name, parent.name, parent.fingerprint)
    if (found.fingerprint, made.dim, made.dim_in) != (space.fingerprint, space.dim, parent.dim):
        raise DamagedRow(f"how the space {space.name!r} is made of {parent.name!r} is not what its fingerprint says")
    return _remembered((space.fingerprint, space.dim or 0), made)


def _read(transaction: Transaction, space: SpaceRow) -> Transform:
    row = fitted_of(transaction, space.space_id, "")
    if row is None:
        raise DamagedRow(f"how the space {space.name!r} is made of another one is not there")
    return transform_from(row)


def _remembered(asked: tuple[str, int], made: Transform) -> Transform:
    """Keep a transform for the next who asks. Without a lock, which a forked child would find held."""
    if len(_known) >= _KEPT:
        _known.clear()
    _known[asked] = made
    return made


class DerivedEncoder:
    """The encoder of a derived space: that of its parent, and the transform after it."""

    def __init__(self, spec: EncoderSpec, transform: Transform, parent: Encoder | None) -> None:
        self._spec = spec
        self._transform = transform
        self._parent = parent

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def parent(self) -> Encoder:
        """What encodes things into the parent space; InvalidInput where nothing does."""
        if self._parent is None:
            raise InvalidInput(
                f"the space is made of {self._spec.location!r}, which holds vectors computed elsewhere and has no"
                " encoder: search with a vector, or by keywords (mode='text')"
            )
        return self._parent

    def transform(self, vectors: FloatMatrix) -> FloatMatrix:
        """The vectors (n, dim) that those of the parent space (n, d) become."""
        return self._transform.apply(vectors)

    def encode(self, texts: Sequence[Any]) -> Encoded:
        """Encode prepared items by the parent's encoder, and transform."""
        found = self.parent.encode(texts)
        return Encoded(self._transform.apply(found.vectors), found.n_truncated, found.n_unknown)

    def encode_query(self, text: Any) -> Any:
        """Encode one prepared item: float32 (dim,)."""
        return self._transform.apply(self.parent.encode_query(text)[None, :])[0]

    def count_tokens(self, text: str) -> int:
        """How many tokens the parent's encoder reads of a text."""
        return self.parent.count_tokens(text)

    def decode(self, vectors: FloatMatrix) -> list[Any]:
        """What vectors stand for, by the way back to the parent; InvalidInput where nothing leads back."""
        from embedstore.encoders import Decoder

        parent = self.parent
        if not isinstance(parent, Decoder):
            raise InvalidInput(
                f"vectors of a space made of {self._spec.location!r} cannot be decoded: {parent.spec.name!r} only"
                " encodes; an autoencoder does both"
            )
        return parent.decode(self._transform.invert(vectors))

    def close(self) -> None:
        """Nothing is held but what the parent's encoder holds."""
