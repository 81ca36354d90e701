"""Every error that embedstore raises, in one tree.

::

    EmbedstoreError
    ├── InvalidInput (ValueError)            what was given cannot be used        exit 2
    │   ├── InvalidRecord                    one record or row of an input
    │   │   ├── DuplicateKey                 ``add`` of a key that exists, or twice in one input
    │   │   └── WrongDimension               a vector's dimension is not its space's (also SpaceMismatch)
    │   ├── SpaceMismatch                    a vector of another dimension or space
    │   ├── EncoderMismatch                  a space was made by another encoder
    │   ├── InvalidFilter                    a ``where`` that cannot be understood
    │   │   └── UnknownField                 a ``where`` that names a field no record has
    │   ├── RecordNotFound (LookupError)
    │   ├── CollectionNotFound (LookupError)
    │   ├── SpaceNotFound (LookupError)
    │   ├── StoreNotFound (FileNotFoundError)
    │   ├── NotAStore
    │   └── UnsupportedFormat                a store written by a newer release
    ├── StoreLocked (TimeoutError)           another process holds the lock       exit 3
    ├── StoreDamaged                         damage was found                     exit 4
    │   └── DamagedRow                       one row of the database
    ├── StorageFull (OSError)                no space left                        exit 1
    ├── StorageFailed (OSError)              the folder or database refused       exit 1
    ├── EncoderUnavailable                   weights that cannot be found or used exit 1
    ├── DeviceUnavailable                    a GPU that is not there or too small exit 1
    ├── TrainingFailed                       a training that came to nothing      exit 1
    └── MissingDependency (ImportError)      a package that is not installed      exit 1

A message says what came, what was expected and what to do, in one line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class EmbedstoreError(Exception):
    """The root of every error raised on purpose; ``exit_code`` is what the CLI ends with."""

    exit_code = 1

    def __str__(self) -> str:
        # OSError and LookupError would otherwise format their arguments in their own way.
        return str(self.args[0]) if self.args else self.__class__.__name__


class InvalidInput(EmbedstoreError, ValueError):
    """What was given cannot be used; nothing was changed."""

    exit_code = 2


class InvalidRecord(InvalidInput):
    """One record of an input cannot be stored.

    ``row`` is its 1-based place in the input (None where it has none), ``field`` the field at fault, ``record`` what
    is known of it where it could not even be read.
    """

    def __init__(self, message: str, *, row: int | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = message
        self.row = row
        self.field = field
        self.source: str | None = None
        self.record: Mapping[str, Any] = {}

    def __str__(self) -> str:
        place = [self.source] if self.source else []
        if self.row is not None:
            place.append(f"row {self.row}")
        if self.field is not None:
            place.append(f"field {self.field!r}")
        return f"{', '.join(place)}: {self.reason}" if place else self.reason


class DuplicateKey(InvalidRecord):
    """A key that exists was added, or one input holds a key twice."""


class SpaceMismatch(InvalidInput):
    """A vector does not belong to the space it met."""


class WrongDimension(InvalidRecord, SpaceMismatch):
    """A record brings a vector of another dimension than its space's."""


class EncoderMismatch(InvalidInput):
    """A space was made by another encoder than the one asked for."""


class InvalidFilter(InvalidInput):
    """A ``where`` that cannot be understood."""


class UnknownField(InvalidFilter):
    """A ``where`` names a field that no record of the collection has."""


class RecordNotFound(InvalidInput, LookupError):
    """No record has that key."""


class CollectionNotFound(InvalidInput, LookupError):
    """The store has no collection of that name."""


class SpaceNotFound(InvalidInput, LookupError):
    """The collection has no space of that name."""


class StoreNotFound(InvalidInput, FileNotFoundError):
    """There is no store at that place."""


class NotAStore(InvalidInput):
    """The folder or file holds something that is not a store."""


class UnsupportedFormat(InvalidInput):
    """The store was written by a newer release."""


class StoreLocked(EmbedstoreError, TimeoutError):
    """Another process holds the writer lock."""

    exit_code = 3


class StoreDamaged(EmbedstoreError):
    """The store's own data do not agree with their hashes. ``what`` is what is wrong, without place and advice."""

    exit_code = 4

    def __init__(self, message: str, what: str | None = None) -> None:
        super().__init__(message)
        self.what = message if what is None else what


class DamagedRow(StoreDamaged):
    """A row of the database is not what was written. Raised below the database, which adds where it is."""


class StorageFull(EmbedstoreError, OSError):
    """The disk is full; what was acknowledged is safe, the write in hand was not made."""


class StorageFailed(EmbedstoreError, OSError):
    """The folder or the database refused the operation."""


class EncoderUnavailable(EmbedstoreError):
    """The encoder's weights cannot be found, read or trusted."""


class DeviceUnavailable(EmbedstoreError):
    """A GPU was asked for by name and is not there, cannot be used by what is installed, or has too little memory."""


class TrainingFailed(EmbedstoreError):
    """A training came to no usable weights; none were saved."""


class MissingDependency(EmbedstoreError, ImportError):
    """A package that this call needs is not installed; the message has the pip line."""
