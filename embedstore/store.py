"""A store: the folder or database that holds collections, opened by ``embedstore.open``."""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.building import Builders
from embedstore.changing import CollectionDefaults
from embedstore.collection import Collection
from embedstore.devices import Device, choose_device
from embedstore.errors import (
    CollectionNotFound,
    EncoderMismatch,
    InvalidInput,
    NotAStore,
    SpaceMismatch,
    SpaceNotFound,
    StoreNotFound,
    UnsupportedFormat,
)
from embedstore.forking import abandon, tell_forked
from embedstore.indexing.faiss_index import require_served
from embedstore.maintenance.reports import VerifyReport
from embedstore.model import Metric, choose
from embedstore.names import check_collection_name, check_dim, check_path, check_seconds
from embedstore.searching.search import CollectionSearch
from embedstore.storage import catalog
from embedstore.storage.database import Database, Transaction
from embedstore.storage.layout import CACHE_NAME, DATABASE_NAME, SCHEMA_REVISION
from embedstore.storage.sqlite import SQLiteDatabase
from embedstore.version import __version__

if TYPE_CHECKING:
    from embedstore.encoders import Encoder, EncoderSpec
    from embedstore.maintenance.reports import BackupReport, CompactReport, RepairReport, RestoreReport
    from embedstore.storage.catalog import CollectionRow, SpaceRow

DEFAULT_LOCK_TIMEOUT = 10.0
BUILD_VARIABLE = "EMBEDSTORE_BUILD"


class Store:
    """Holds collections. Thread-safe; usable as a context manager, which closes it.

    ``path`` is the store's folder; with ``database``, the folder of its caches on this machine.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        database: str | None = None,
        lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
        allow_network: bool = False,
        device: str | Device = "auto",
        build_in_background: bool | None = None,
    ) -> None:
        check_path(path)
        check_seconds(lock_timeout, "lock_timeout")
        self.path = Path(os.path.abspath(path))  # a change of the working folder must not change the store
        self.device = choose_device(device)
        if self.device.must_be_gpu:
            from embedstore.indexing.gpus import require_some_gpu

            require_some_gpu(self.device)
        self._allow_network = allow_network
        if build_in_background is None:
            build_in_background = os.environ.get(BUILD_VARIABLE, "1") != "0"
        self._builders = Builders(self.path, database) if build_in_background else None
        self._guard = threading.RLock()
        self._encoders: dict[str, Encoder] = {}
        self._checked = False
        if database is None:
            self.database: Database = SQLiteDatabase(self.path, lock_timeout=lock_timeout)
        else:
            from embedstore.storage.postgres import PostgresDatabase

            self.database = PostgresDatabase(database, lock_timeout=lock_timeout)
        on_stale = self.begin_build if build_in_background else None
        self.search = CollectionSearch(self.path / CACHE_NAME, on_stale, self.device)
        tell_forked(self)

    def forget_parent(self) -> None:
        """Give up encoders, whose threads stayed with the parent; the child loads its own."""
        abandon(self._encoders)
        self._encoders = {}
        self._guard = threading.RLock()

    def __repr__(self) -> str:
        return f"Store({self.database.address!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back files and connections. A closed store opens itself again when it is next used."""
        if self._builders is not None:
            self._builders.close()
        self.search.close()
        self.database.close()
        for encoder in self._encoders.values():
            encoder.close()
        self._encoders.clear()
        self._checked = False

    # ---- indexes in the background

    @property
    def builds_in_background(self) -> bool:
        """Whether this process begins to build indexes that lag behind their spaces."""
        return self._builders is not None

    def begin_build(self, collection: CollectionRow, space: SpaceRow) -> None:
        """Begin to build the index of a space in a process of its own, where that was not done just now."""
        if self._builders is None or not _can_write(self.path):
            return
        if not self.search.space_cache(space.space_id).is_building():
            self._builders.begin(space.space_id, collection.name, space.name)

    def wait_for_builds(self, timeout: float | None = None) -> bool:
        """Wait until no index is being built that this process began; whether that came about in time (seconds)."""
        return self._builders is None or self._builders.wait(timeout)

    # ---- collections

    def collection(
        self,
        name: str,
        *,
        encoder: str | None = None,
        metric: str | None = None,
        recipe: str | None = None,
        dim: int | None = None,
    ) -> Collection:
        """The collection called ``name``; it is created by its first write.

        encoder: what makes its vectors: 'minilm' (the default), 'none' for vectors computed elsewhere, 'st:NAME',
        'hf:NAME@layer=-2,pool=mean' or a model folder. Raises EncoderMismatch for a collection made by another.
        metric: 'cosine' (the default), 'dot' or 'euclidean'; recipe: the name of an index recipe ('flat'); dim: the
        dimension of vectors computed elsewhere (else the first vector fixes it). Another metric or dimension than an
        existing collection has is an error; a recipe is changed by ``index``.
        """
        check_collection_name(name)
        check_dim(dim)
        chosen = None if metric is None else choose(Metric, metric, "metric")
        if recipe is not None:
            require_served(recipe, chosen or Metric.COSINE)
        collection = Collection(self, name, CollectionDefaults(encoder, chosen, recipe, dim))
        if (encoder, metric, dim) != (None, None, None) and self.exists():
            self._check_existing(name, encoder, chosen, dim)
        return collection

    def existing_collection(self, name: str) -> Collection:
        """The collection called ``name``; CollectionNotFound, with those there are, where it does not exist."""
        names = self.collections()
        if name not in names:
            listed = ", ".join(names) if names else "none"
            raise CollectionNotFound(f"{self.database.address} has no collection {name!r}; it has: {listed}")
        return self.collection(name)

    def collections(self) -> list[str]:
        """The names of the collections, sorted. Raises StoreNotFound where there is no store."""
        with self.reading() as transaction:
            return [row.name for row in catalog.all_collections(transaction)]

    def delete_collection(self, name: str) -> int:
        """Delete a collection with its records, vectors and caches; the number of records deleted."""
        collection = self.existing_collection(name)
        return collection.drop()

    def stats(self) -> dict[str, Any]:
        """What the store is and holds, as plain values."""
        with self.reading() as transaction:
            rows = catalog.all_collections(transaction)
            identity = catalog.store_uuid(transaction)
        return {
            "store": self.database.address, "uuid": identity, "schema": SCHEMA_REVISION,
            "collections": {row.name: row.n_records for row in rows},
        }  # fmt: skip

    # ---- keeping it sound

    def verify(self) -> VerifyReport:
        """Check every row, count, digest and cache file; a report of all that is not as it was written.

        Nothing is changed. Damage is reported, not raised; StoreNotFound where there is no store, UnsupportedFormat
        where its tables are of another revision.
        """
        from embedstore.maintenance.verifying import noting, verify
        from embedstore.storage.revision import stored_revision

        report = VerifyReport()
        with noting(report, "database", self.database.address):
            self.require()
            found = stored_revision(self.database)
            if found != SCHEMA_REVISION:
                raise UnsupportedFormat(
                    f"{self.database.address} has tables of revision {found!r}; 'embedstore db upgrade' brings them to"
                    f" {SCHEMA_REVISION!r}, and keeps the old ones, then they can be verified"
                )
        return report if report.problems else verify(self.database, self.path / CACHE_NAME)

    def compact(self) -> CompactReport:
        """Give back room: what the logs no longer need, dead rows in caches, free pages, files left behind."""
        from embedstore.maintenance.compacting import compact

        self._ready()
        return compact(self.database, self.search, self.path / CACHE_NAME)

    def backup(self, file: str | os.PathLike[str], *, overwrite: bool = False) -> BackupReport:
        """Write the store, as it is at its newest commit, to one verified file; ``restore`` makes a store of it.

        Others may go on reading and writing. Raises StoreDamaged, and writes nothing, where the store is not whole.
        """
        from embedstore.maintenance.archive import backup

        self._ready()
        return backup(self.database, Path(file), overwrite=overwrite)

    # ---- the database

    @property
    def is_ready(self) -> bool:
        """Whether the store was found, and its tables found to be of this release, since it was opened."""
        return self._checked

    def exists(self) -> bool:
        """Whether the store has been created."""
        return self._checked or self.database.exists()

    def reading(self) -> AbstractContextManager[Transaction]:
        """A snapshot of the store. Raises StoreNotFound or NotAStore where there is none."""
        if not self._checked:
            self._ready()
        return self.database.read()

    def ensure(self) -> None:
        """Create the store where it does not exist yet, and bring its tables up to date."""
        with self._guard:
            if not self.database.exists():
                self.database.create(lambda transaction: catalog.note_store(transaction, __version__))
            self._ready()

    def require(self) -> None:
        """Raise StoreNotFound or NotAStore where there is no store."""
        if not self.database.exists():
            self._refuse_missing()

    def _ready(self) -> None:
        with self._guard:
            if self._checked:
                return
            self.require()
            from embedstore.storage.revision import bring_up_to_date

            bring_up_to_date(self.database, self.path)
            self.database.refuse_writes_after_loss()
            self._checked = True

    def _refuse_missing(self) -> None:
        if isinstance(self.database, SQLiteDatabase) and self.path.exists():
            if not self.path.is_dir():
                raise NotAStore(f"{self.path} is a file; a store is a folder")
            if any(self.path.iterdir()) and not (self.path / DATABASE_NAME).exists():
                raise NotAStore(f"{self.path} is a folder but no store: it has no {DATABASE_NAME}")
        raise StoreNotFound(
            f"there is no store at {self.database.address}; the first write creates one, or give --store another path"
        )

    # ---- encoders

    def encoder_of(self, space: SpaceRow) -> Encoder:
        """The encoder that made a space; EncoderMismatch where what is found makes other vectors."""
        from embedstore.encoders import EncoderSpec, load_encoder
        from embedstore.encoders.spec import DERIVED
        from embedstore.transforms import DerivedEncoder, checked_transform, parents_of

        if not space.encoder:
            raise InvalidInput(
                f"the space {space.name!r} holds vectors computed elsewhere and has no encoder: search with a vector,"
                " or by keywords (mode='text')"
            )
        with self._guard:
            pinned = EncoderSpec.from_json(space.encoder)
            held = self._encoders.get(_known_by(pinned))
            if held is None and pinned.family != DERIVED:
                held = load_encoder(
                    pinned.name, pinned=pinned, allow_network=self._allow_network, device=self.device
                )
                assert held is not None
                self._encoders[space.fingerprint] = held
            if held is not None:
                return held
        with self.reading() as transaction:  # outside of the guard: a fork waits for snapshots
            spaces = catalog.known_spaces(transaction, space.collection_id)
            current = next((one for one in spaces.values() if one.space_id == space.space_id), None)
            if current is None:
                raise SpaceNotFound(f"the space {space.name!r} was deleted meanwhile")
            parents = parents_of(current, spaces)  # by their names of now, which are others where they were renamed
            transform = checked_transform(transaction, current, parents)
            spec = EncoderSpec.from_json(current.encoder)
        encoders = [self.encoder_of(parent) if parent.encoder else None for parent in parents]
        derived = DerivedEncoder(spec, transform, encoders)
        with self._guard:
            return self._encoders.setdefault(_known_by(spec), derived)

    @property
    def allows_network(self) -> bool:
        """Whether models may be downloaded."""
        return self._allow_network

    def load_encoder(self, name: str) -> Encoder | None:
        """A new encoder by name; None for 'none'."""
        from embedstore.encoders import load_encoder

        if not isinstance(name, str):
            raise InvalidInput(f"an encoder is named by a string, not by {type(name).__name__}")
        encoder = load_encoder(name, allow_network=self._allow_network, device=self.device)
        if encoder is not None:
            with self._guard:
                encoder = self._encoders.setdefault(encoder.spec.fingerprint, encoder)
        return encoder

    def _check_existing(self, name: str, encoder: str | None, metric: Metric | None, dim: int | None) -> None:
        with self.reading() as transaction:
            row = catalog.find_collection(transaction, name)
            if row is None:
                return
            space = catalog.spaces_of(transaction, row.collection_id)[row.default_space]
        if metric is not None and metric.value != space.metric:
            raise InvalidInput(f"the collection {name!r} compares by {space.metric!r}, not by {metric.value!r}")
        if dim is not None and space.dim not in (None, dim):
            raise SpaceMismatch(f"the space {space.name!r} of {name!r} holds vectors of {space.dim} numbers, not {dim}")
        if encoder is not None:
            self._check_encoder(name, space, encoder)

    def _check_encoder(self, name: str, space: SpaceRow, asked: str) -> None:
        if not space.encoder:
            if asked != "none":
                raise EncoderMismatch(
                    f"the collection {name!r} holds vectors computed elsewhere (encoder 'none'), not made by {asked!r};"
                    " leave the encoder out, or take another collection"
                )
            return
        from embedstore.encoders import EncoderSpec

        pinned = EncoderSpec.from_json(space.encoder)
        if asked == pinned.name:
            return
        found = None if asked == "none" else self.load_encoder(asked)
        if found is None or found.spec.fingerprint != space.fingerprint:
            described = "vectors computed elsewhere" if found is None else found.spec.describe()
            raise EncoderMismatch(
                f"the space {space.name!r} of {name!r} was made by {pinned.describe()}, not by {described};"
                " leave the encoder out, or take another collection"
            )


def restore(file: str | os.PathLike[str], path: str | os.PathLike[str]) -> RestoreReport:
    """Make a store in the folder ``path`` from a backup; the folder must not hold one already.

    Raises InvalidInput for a file that is no backup, or one that was cut off or changed; then nothing is left behind.
    """
    from embedstore.maintenance.archive import restore as restore_archive

    return restore_archive(Path(file), Path(path))


def repair(path: str | os.PathLike[str], into: str | os.PathLike[str] | None = None) -> RepairReport:
    """Salvage what is whole in the damaged store at ``path`` into a new store at ``into``, which must not exist.

    Without ``into`` that is the store's folder with ``.repaired`` behind its name.
    The damaged store is not changed. The report lists what could not be brought over.
    """
    from embedstore.maintenance.salvage import repair as salvage

    source = Path(os.path.abspath(path))
    return salvage(source, source.with_name(f"{source.name}.repaired") if into is None else Path(into))


def open_store(
    path: str | os.PathLike[str],
    *,
    database: str | None = None,
    lock_timeout: float = DEFAULT_LOCK_TIMEOUT,
    allow_network: bool = False,
    device: str = "auto",
    build_in_background: bool | None = None,
) -> Store:
    """Open the store in the folder ``path``; it is created by its first write.

    database: a SQLAlchemy URL (``postgresql+psycopg://user@host/name``); the folder then holds only caches.
    lock_timeout: seconds to wait for another writer. allow_network: whether encoder weights may be downloaded.
    device: what encodes and searches: 'auto' (a GPU where there is one, for recipes and encoders that use it), 'cpu',
    'cuda', 'cuda:1' or 'all'; DeviceUnavailable where a GPU is named and there is none.
    build_in_background: whether indexes that lag behind are built anew by processes of their own; None: unless the
    variable EMBEDSTORE_BUILD is 0.
    """
    return Store(
        path, database=database, lock_timeout=lock_timeout, allow_network=allow_network, device=device,
        build_in_background=build_in_background,
    )  # fmt: skip


def _can_write(folder: Path) -> bool:
    return not folder.exists() or os.access(folder, os.W_OK)


def _known_by(spec: EncoderSpec) -> str:
    """By what an encoder is kept: one that is made of other spaces knows their names, too."""
    return "\n".join((spec.fingerprint, *spec.parents))
