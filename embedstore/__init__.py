"""embedstore: a latent embedding store with semantic search.

``embedstore.open("library")`` opens a store; see ``Store``, ``Collection`` and ``Space``.
"""

from embedstore.errors import (
    CollectionNotFound,
    DuplicateKey,
    EmbedstoreError,
    EncoderMismatch,
    EncoderUnavailable,
    InvalidFilter,
    InvalidInput,
    InvalidRecord,
    MissingDependency,
    NotAStore,
    RecordNotFound,
    SpaceMismatch,
    SpaceNotFound,
    StorageFailed,
    StorageFull,
    StoreDamaged,
    StoreLocked,
    StoreNotFound,
    UnknownField,
    UnsupportedFormat,
)
from embedstore.model import Hit, Hits, Metric, Modality, Mode, Record, WriteReport
from embedstore.store import Store
from embedstore.store import open_store as open
from embedstore.version import __version__

__all__ = [
    "CollectionNotFound",
    "DuplicateKey",
    "EmbedstoreError",
    "EncoderMismatch",
    "EncoderUnavailable",
    "Hit",
    "Hits",
    "InvalidFilter",
    "InvalidInput",
    "InvalidRecord",
    "Metric",
    "MissingDependency",
    "Modality",
    "Mode",
    "NotAStore",
    "Record",
    "RecordNotFound",
    "SpaceMismatch",
    "SpaceNotFound",
    "StorageFailed",
    "StorageFull",
    "Store",
    "StoreDamaged",
    "StoreLocked",
    "StoreNotFound",
    "UnknownField",
    "UnsupportedFormat",
    "WriteReport",
    "__version__",
    "open",
]
