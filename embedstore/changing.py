"""Changes a collection as a user asks: makes it, writes, updates and deletes its records, drops it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedstore.errors import CollectionNotFound, InvalidInput, InvalidRecord
from embedstore.filters.parse import Where
from embedstore.model import Metric, Modality, WriteReport
from embedstore.reading import as_keys, checked_where, record_ids_of, record_ids_where, require_whole
from embedstore.records import Batch, Preparer
from embedstore.storage import catalog
from embedstore.storage.layout import id_range
from embedstore.storage.writing import CollectionWriter
from embedstore.storing.committing import commit_batch, commit_metadata
from embedstore.storing.encoding import Encoded
from embedstore.storing.layout import Layout, LayoutChanged
from embedstore.storing.vectors import refuse_given_vectors

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.encoders import Encoder

DEFAULT_ENCODER = "minilm"
NO_ENCODER = "none"
_TEXT = frozenset({Modality.TEXT})
_NOTHING: frozenset[Modality] = frozenset()
_OF_CONTENT = ("text", "image", "row", "vector", "vectors", "uri")

OnError = Callable[[InvalidRecord, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class CollectionDefaults:
    """How a collection is made when its first write creates it. None means the default: minilm, cosine, flat."""

    encoder: str | None
    metric: Metric | None
    recipe: str | None
    dim: int | None


class RecordWriter:
    """Writes the records of one collection, and keeps for the next write what was seen of its spaces."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._known: tuple[Layout, Preparer] | None = None

    def forget(self) -> None:
        """Look anew before the next write."""
        self._known = None

    def write(self, records: Iterable[Mapping[str, Any]], *, replace_existing: bool) -> WriteReport:
        """Add records, all or none, or with ``replace_existing`` overwrite those whose key exists."""
        collection = self._collection
        if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
            raise InvalidInput(f"give a list of records, not one {type(records).__name__}")
        batch_records = list(records)
        if not batch_records:
            return WriteReport()
        for known in (self._known, None):  # what was last seen is right nearly always, and costs no look
            layout: Layout | None
            if known is not None and collection.store.is_ready:
                layout, prepares = known
            else:
                known, layout = None, collection.layout()
                prepares = preparer(collection, layout)
            try:
                batch = prepares.prepare(batch_records)
            except InvalidRecord:
                if known is None:
                    raise
                self._known = None  # the collection may have been made anew by others, with other spaces
                continue
            if layout is None:
                create(collection)
                layout = collection.layout()
                assert layout is not None  # just created
                prepares = preparer(collection, layout)
            try:
                report = self._commit(batch, layout, replace_existing=replace_existing)
            except (LayoutChanged, CollectionNotFound):
                self._known = None
            else:
                layout.kinds.take(batch.kinds)  # they are stored now
                self._known = (layout, prepares)
                return report
        raise InvalidInput(f"other writers kept changing the spaces of {collection.name!r}; try again")

    def _commit(self, batch: Batch, layout: Layout, *, replace_existing: bool) -> WriteReport:
        if any(space.encoder for space in layout.spaces.values()):
            refuse_given_vectors(batch, layout.spaces)
        store = self._collection.store
        return commit_batch(
            store.database, self._collection.name, batch, store.encoder_of, replace_existing=replace_existing,
            encoded=None if layout.encoded_spaces else Encoded(), layout=layout,
        )  # fmt: skip


def preparer(
    collection: Collection,
    layout: Layout | None,
    on_error: OnError | None = None,
    *,
    embed_bytes: bool = False,
    stored: bool = False,
) -> Preparer:
    """What checks records for a collection of this layout, or for one that is still to be made."""
    encoder: Encoder | None = None
    if layout is not None:
        default = layout.collection.default_space
        required = layout.encoded_spaces.get(default, _NOTHING)
        if required and required != _TEXT:
            encoder = collection.store.encoder_of(layout.spaces[default])
    else:
        required = first_modalities(collection)
        if required and required != _TEXT:
            encoder = collection.store.load_encoder(collection.defaults.encoder or DEFAULT_ENCODER)
        default = first_space(required)
    return Preparer(
        vector_space=default, required=required, on_error=on_error, known=None if layout is None else layout.kinds,
        prepare=None if encoder is None else encoder.prepare,  # type: ignore[attr-defined]
        embed_bytes=embed_bytes, stored=stored,
    )  # fmt: skip


def first_space(modalities: frozenset[Modality]) -> str:
    """The name of a new collection's first space, by what its encoder reads; nothing where it has none."""
    if not modalities:
        return "vector"
    return "text" if modalities == _TEXT else "vae" if len(modalities) == 1 else "shared"


def first_modalities(collection: Collection) -> frozenset[Modality]:
    """What the encoder will read that a collection's first write makes it with; nothing where it will have none."""
    name = collection.defaults.encoder or DEFAULT_ENCODER
    if name in (NO_ENCODER, DEFAULT_ENCODER):
        return _NOTHING if name == NO_ENCODER else _TEXT
    encoder = collection.store.load_encoder(name)
    return _NOTHING if encoder is None else encoder.spec.modalities


def create(collection: Collection) -> None:
    """Create a collection with its first space, where it does not exist yet."""
    from embedstore.indexing.faiss_index import require_served
    from embedstore.indexing.recipes import DEFAULT_RECIPE

    store, defaults = collection.store, collection.defaults
    if store.exists():
        with store.reading() as transaction:
            if catalog.find_collection(transaction, collection.name) is not None:
                return
    name = defaults.encoder or DEFAULT_ENCODER
    encoder = None if name == NO_ENCODER else store.load_encoder(name)
    space_name = first_space(_NOTHING if encoder is None else encoder.spec.modalities)
    metric = defaults.metric or (Metric.COSINE if encoder is None else encoder.spec.metric)
    recipe = require_served(defaults.recipe or DEFAULT_RECIPE, metric)
    store.ensure()
    with store.database.write() as transaction:
        transaction.alone()
        if catalog.find_collection(transaction, collection.name) is not None:
            return
        row = catalog.create_collection(transaction, collection.name, space_name)
        catalog.create_space(
            transaction, row.collection_id, space_name,
            dim=defaults.dim if encoder is None else encoder.spec.dim, metric=metric.value,
            encoder="" if encoder is None else encoder.spec.to_json(),
            fingerprint="" if encoder is None else encoder.spec.fingerprint, recipe=recipe.name,
        )  # fmt: skip


def update(collection: Collection, records: Iterable[Mapping[str, Any]]) -> WriteReport:
    """Change metadata only, all or none; a field given as None is removed."""
    if isinstance(records, (str, bytes, Mapping)) or not isinstance(records, Iterable):
        raise InvalidInput(f"give a list of changes, not one {type(records).__name__}")
    changes: dict[str, dict[str, Any]] = {}
    for row, record in enumerate(records, start=1):
        if not isinstance(record, Mapping) or not isinstance(record.get("metadata") or {}, Mapping):
            raise InvalidRecord("a change must be a mapping of fields, as its metadata must be", row=row)
        fields = dict(record)
        key = fields.pop("key", None)
        if key is None:
            raise InvalidRecord("the key is missing; say which record to change", row=row, field="key")
        for name in _OF_CONTENT:
            if name in fields:
                raise InvalidRecord("update changes metadata only; use upsert", row=row, field=name)
        fields.update(fields.pop("metadata", None) or {})
        changes.setdefault(as_keys([key])[0], {}).update(fields)
    with collection.store.reading() as transaction:
        catalog.require_collection(transaction, collection.name)
    return commit_metadata(collection.store.database, collection.name, changes)


def delete(collection: Collection, keys: Iterable[str] | None, where: Where | None) -> int:
    """Delete records by key, or those under a filter; the number deleted."""
    if (keys is None) == (where is None):
        raise InvalidInput("delete takes either keys or a filter: delete(['p1']) or delete(where='year < 2000')")
    if isinstance(keys, str):
        raise InvalidInput(f"give a list of keys: delete([{keys!r}])")
    store, tree = collection.store, None
    with store.reading() as transaction:
        row = catalog.require_collection(transaction, collection.name)
        if where is not None:
            tree = checked_where(transaction, row, where)
    with store.database.write() as transaction:
        row = catalog.require_collection(transaction, collection.name)
        writer = CollectionWriter(transaction, collection.name)
        if tree is not None:
            ids = record_ids_where(transaction, row, tree)
            require_whole(transaction, ids)
        else:
            ids = list(record_ids_of(transaction, row, as_keys(keys or ())).values())
        n_deleted = writer.delete(ids)
        writer.finish()
    return n_deleted


def drop(collection: Collection, only_as: Layout | None) -> int:
    """Delete a collection itself; the number of its records.

    only_as: leave it unless it is the very collection of this layout, empty, with the spaces that it had then.
    """
    store = collection.store
    with store.database.write() as transaction:
        catalog.require_collection(transaction, collection.name)
        row = catalog.lock_collection(transaction, collection.name)  # waits for a writer that is at it
        if row is None:
            raise CollectionNotFound(f"there is no collection {collection.name!r}: it was deleted meanwhile")
        if only_as is not None:
            same = row.collection_id == only_as.collection.collection_id
            held = catalog.known_spaces(transaction, row.collection_id)
            if not same or row.n_records or held.keys() != only_as.spaces.keys():
                return row.n_records
        spaces = catalog.spaces_of(transaction, row.collection_id)
        catalog.forget(transaction)
        for space in spaces.values():
            for table in ("vectors", "dead_vectors", "tunings", "fitted"):
                transaction.run(f"DELETE FROM {table} WHERE space_id = :space", {"space": space.space_id})
        low, high = id_range(row.collection_id)
        transaction.run("DELETE FROM commits WHERE commit_key BETWEEN :low AND :high", {"low": low, "high": high})
        for table in ("records", "changed_records", "fields", "ingest_jobs", "spaces", "collections"):
            transaction.run(
                f"DELETE FROM {table} WHERE collection_id = :collection", {"collection": row.collection_id}
            )
    store.search.forget(row.collection_id, [space.space_id for space in spaces.values()])
    return row.n_records
