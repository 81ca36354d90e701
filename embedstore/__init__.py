"""embedstore: a latent embedding store with semantic search.

``embedstore.open("library")`` opens a store; see ``Store``, ``Collection`` and ``Space``. The names below are imported
when they are first used, so that ``import embedstore`` and ``embedstore --help`` cost next to nothing.
"""

from __future__ import annotations

import importlib

from embedstore.version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from embedstore.collection import Collection
    from embedstore.errors import (
        CollectionNotFound,
        DeviceUnavailable,
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
        WrongDimension,
    )
    from embedstore.maintenance import (
        BackupReport,
        CompactReport,
        Problem,
        RepairReport,
        RestoreReport,
        VerifyReport,
    )
    from embedstore.model import Hit, Hits, Metric, Modality, Mode, Record, WriteReport
    from embedstore.space import Space
    from embedstore.store import Store, repair, restore
    from embedstore.store import open_store as open
    from embedstore.vector import Vector

__all__ = [
    "BackupReport",
    "Collection",
    "CollectionNotFound",
    "CompactReport",
    "DeviceUnavailable",
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
    "Problem",
    "Record",
    "RecordNotFound",
    "RepairReport",
    "RestoreReport",
    "Space",
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
    "Vector",
    "VerifyReport",
    "WriteReport",
    "WrongDimension",
    "__version__",
    "open",
    "repair",
    "restore",
]

_MODULES = {
    "Collection": "collection", "Space": "space", "Store": "store", "Vector": "vector", "open": "store",
    "Hit": "model", "Hits": "model", "Metric": "model", "Modality": "model", "Mode": "model", "Record": "model",
    "WriteReport": "model", "repair": "store", "restore": "store",
    "BackupReport": "maintenance", "CompactReport": "maintenance", "Problem": "maintenance",
    "RepairReport": "maintenance", "RestoreReport": "maintenance", "VerifyReport": "maintenance",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'embedstore' has no attribute {name!r}")
    module = importlib.import_module(f"embedstore.{_MODULES.get(name, 'errors')}")
    value = getattr(module, "open_store" if name == "open" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
