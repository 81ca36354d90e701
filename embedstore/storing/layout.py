"""The spaces for which records are prepared: who makes their vectors, of what, and whether they are still the same."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from embedstore.metadata import FieldKinds
from embedstore.model import Modality
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.writing import CollectionWriter
from embedstore.transforms import is_derived


class LayoutChanged(Exception):
    """A collection's spaces are not those for which a batch was prepared; prepare it again."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What records are prepared for: a collection, its spaces and fields, as they were when they were last looked at.

    Fields only ever come to be, so those seen once need not be noted again.
    """

    collection: CollectionRow
    spaces: dict[str, SpaceRow]
    kinds: FieldKinds
    encoded_spaces: Mapping[str, frozenset[Modality]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoded_spaces", read_by_encoders(self.spaces))

    def require(self, writer: CollectionWriter) -> None:
        """Raise LayoutChanged unless the collection still has these spaces, with these encoders."""
        now, then = writer.collection, self.collection
        if now.collection_id != then.collection_id or now.default_space != then.default_space:
            raise LayoutChanged
        spaces = writer.spaces
        if len(spaces) != len(self.spaces):
            raise LayoutChanged
        for name, known in self.spaces.items():
            space = spaces.get(name)
            if space is None or space.space_id != known.space_id or space.fingerprint != known.fingerprint:
                raise LayoutChanged


def encoder_spaces(spaces: Mapping[str, SpaceRow]) -> dict[str, SpaceRow]:
    """Those spaces whose vectors an encoder makes of records."""
    return {name: space for name, space in spaces.items() if space.encoder and not is_derived(space)}


def read_by_encoders(spaces: Mapping[str, SpaceRow]) -> dict[str, frozenset[Modality]]:
    """By name of those spaces whose vectors an encoder makes, what it reads."""
    return {name: modalities_read(space) for name, space in encoder_spaces(spaces).items()}


@functools.lru_cache(maxsize=256)
def _modalities_of(encoder: str) -> frozenset[Modality]:
    from embedstore.encoders import EncoderSpec

    return EncoderSpec.from_json(encoder).modalities


def modalities_read(space: SpaceRow) -> frozenset[Modality]:
    """What the encoder of a space reads."""
    return _modalities_of(space.encoder)
