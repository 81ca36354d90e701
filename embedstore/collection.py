"""A collection: named records that belong together, with vectors in one or more spaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from embedstore.errors import (
    CollectionNotFound,
    InvalidInput,
    InvalidRecord,
    RecordNotFound,
    SpaceMismatch,
    SpaceNotFound,
)
from embedstore.filters.parse import Where
from embedstore.model import FloatMatrix, FloatVector, Hits, Metric, Mode, Record, WriteReport, choose
from embedstore.reading import (
    checked_where,
    count_records,
    record_ids_of,
    record_ids_where,
    records_by_id,
    sample_ids,
    stream_records,
    vectors_of,
)
from embedstore.records import Batch, Preparer, check_length, check_vector, encode_text, shown
from embedstore.searching.search import Query
from embedstore.space import Space
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.writing import CollectionWriter
from embedstore.storing import (
    Encoded,
    Layout,
    LayoutChanged,
    VectorChecker,
    commit_batch,
    commit_metadata,
    commit_missing_vectors,
    encoder_spaces,
    refuse_given_vectors,
)
from embedstore.vector import Vector

if TYPE_CHECKING:
    import pyarrow

    from embedstore.encoders import Encoder
    from embedstore.store import Store

DEFAULT_ENCODER = "minilm"
_PAGE = 2000
_MODEST = 1e-30

SearchQuery = str | Vector | np.ndarray | Sequence[float]


@dataclass(frozen=True, slots=True)
class CollectionDefaults:
    """How a collection is made when its first write creates it. None means the default: minilm, cosine, flat."""

    encoder: str | None
    metric: Metric | None
    recipe: str | None
    dim: int | None


class Collection:
    """Records with keys, content, metadata and vectors. Made by ``Store.collection``; safe to use from threads."""

    def __init__(self, store: Store, name: str, defaults: CollectionDefaults) -> None:
        self.name = name
        self._store = store
        self._defaults = defaults
        self._known_layout: Layout | None = None

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {len(self):,} records)"

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, (str, int)) or not self._store.exists():
            return False
        with self._store.reading() as transaction:
            row = catalog.find_collection(transaction, self.name)
            return row is not None and bool(record_ids_of(transaction, row, _as_keys([key])))

    # ---- writing

    def add(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Add new records, all or none. Raises DuplicateKey where a key exists, in the collection or twice here.

        A record is a mapping: ``key`` (a random one where it is missing), ``text``, ``vector`` (for encoder 'none'),
        ``vectors`` (by space), ``uri``, ``metadata`` (a mapping); every other field is metadata too.
        """
        return self._write(records, replace_existing=False)

    def upsert(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Add records and overwrite those whose key exists, all or none. Unchanged texts are not encoded again."""
        return self._write(records, replace_existing=True)

    def update(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Change metadata only, all or none: the given fields replace those of the record with that ``key``.

        A field given as None is removed. Raises RecordNotFound for a key that does not exist.
        """
        changes: dict[str, dict[str, Any]] = {}
        for row, record in enumerate(records, start=1):
            if not isinstance(record, Mapping) or not isinstance(record.get("metadata") or {}, Mapping):
                raise InvalidRecord("a change must be a mapping of fields, as its metadata must be", row=row)
            fields = dict(record)
            key = fields.pop("key", None)
            if key is None:
                raise InvalidRecord("the key is missing; say which record to change", row=row, field="key")
            for name in ("text", "vector", "vectors", "uri"):
                if name in fields:
                    raise InvalidRecord("update changes metadata only; use upsert", row=row, field=name)
            fields.update(fields.pop("metadata", None) or {})
            changes.setdefault(_as_keys([key])[0], {}).update(fields)
        with self._store.reading() as transaction:
            self._row(transaction)
        return commit_metadata(self._store.database, self.name, changes)

    def _write(self, records: Iterable[Mapping[str, Any]], *, replace_existing: bool) -> WriteReport:
        if isinstance(records, (str, bytes, Mapping)):
            raise InvalidInput(f"give a list of records, not one {type(records).__name__}")
        batch_records = list(records)
        if not batch_records:
            return WriteReport()
        for known in (self._known_layout, None):  # what was last seen is right nearly always, and costs no look
            if known is None or not self._store.is_ready:
                known = self._layout()
            batch = self._preparer(known, None).prepare(batch_records)
            if known is None:
                self.create()
                known = self._layout()
                assert known is not None  # just created
            try:
                report = self._commit(batch, known, replace_existing=replace_existing)
            except (LayoutChanged, CollectionNotFound):
                self._known_layout = None
            else:
                self._known_layout = known
                return report
        raise InvalidInput(f"other writers kept changing the spaces of {self.name!r}; try again")

    def _commit(self, batch: Batch, layout: Layout, *, replace_existing: bool) -> WriteReport:
        refuse_given_vectors(batch, layout.spaces)
        return commit_batch(
            self._store.database, self.name, batch, self._store.encoder_of, replace_existing=replace_existing,
            encoded=None if encoder_spaces(layout.spaces) else Encoded(), layout=layout,
        )  # fmt: skip

    def preparer(
        self, on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None = None
    ) -> Preparer:
        """What checks records for this collection."""
        return self._preparer(self._layout(), on_error)

    def _preparer(
        self,
        layout: Layout | None,
        on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None,
    ) -> Preparer:
        if layout is not None:
            default = layout.collection.default_space
            required = bool(layout.spaces[default].encoder)
        else:
            encoder = self._defaults.encoder or DEFAULT_ENCODER
            default = "vector" if encoder == "none" else "text"
            required = encoder != "none"
        return Preparer(vector_space=default, text_required=required, on_error=on_error)

    def vector_checker(self) -> VectorChecker:
        """What checks the vectors that records bring."""
        return VectorChecker(self._space_rows(), self._defaults.metric or Metric.COSINE)

    def create(self) -> None:
        """Create the collection with its first space, where it does not exist yet."""
        store = self._store
        if store.exists():
            with store.reading() as transaction:
                if catalog.find_collection(transaction, self.name) is not None:
                    return
        from embedstore.indexing.recipes import DEFAULT_RECIPE, find_recipe

        recipe = find_recipe(self._defaults.recipe or DEFAULT_RECIPE)
        name = self._defaults.encoder or DEFAULT_ENCODER
        encoder = None if name == "none" else store.load_encoder(name)
        space_name = "vector" if encoder is None else "text"
        store.ensure()
        with store.database.write() as transaction:
            transaction.alone()
            if catalog.find_collection(transaction, self.name) is not None:
                return
            row = catalog.create_collection(transaction, self.name, space_name)
            catalog.create_space(
                transaction, row.collection_id, space_name,
                dim=self._defaults.dim if encoder is None else encoder.spec.dim, 
                metric=(self._defaults.metric or Metric.COSINE).value,
                encoder="" if encoder is None else encoder.spec.to_json(),
                fingerprint="" if encoder is None else encoder.spec.fingerprint, recipe=recipe.name,
            )  # fmt: skip

    def delete(self, keys: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Delete records by key, or those under a filter; the number deleted. Unknown keys are passed over."""
        if (keys is None) == (where is None):
            raise InvalidInput("delete takes either keys or a filter: delete(['p1']) or delete(where='year < 2000')")
        if isinstance(keys, str):
            raise InvalidInput(f"give a list of keys: delete([{keys!r}])")
        with self._store.reading() as transaction:
            tree = None if where is None else checked_where(transaction, self._row(transaction), where)
        with self._store.database.write() as transaction:
            collection = self._row(transaction)
            writer = CollectionWriter(transaction, self.name)
            if tree is not None:
                ids = record_ids_where(transaction, collection, tree)
            else:
                ids = list(record_ids_of(transaction, collection, _as_keys(keys or ())).values())
            n_deleted = writer.delete(ids)
            writer.finish()
        return n_deleted

    def drop(self) -> int:
        """Delete the collection itself; the number of records that it held."""
        with self._store.database.write() as transaction:
            collection = self._row(transaction)
            catalog.lock_collection(transaction, self.name)  # waits for a writer that is at it
            mine = {"collection": collection.collection_id}
            spaces = catalog.spaces_of(transaction, collection.collection_id)
            for space in spaces.values():
                of_space = {"space": space.space_id}
                transaction.run("DELETE FROM vectors WHERE space_id = :space", of_space)
                transaction.run("DELETE FROM dead_vectors WHERE space_id = :space", of_space)
            for table in ("records", "changed_records", "commits", "fields", "ingest_jobs", "spaces", "collections"):
                transaction.run(f"DELETE FROM {table} WHERE collection_id = :collection", mine)
        self._store.search.forget(collection.collection_id, [space.space_id for space in spaces.values()])
        return collection.n_records

    # ---- reading

    def get(self, key: str) -> Record:
        """The record with that key; RecordNotFound where there is none."""
        found = self.get_many([key])
        if not found:
            self._refuse_key(key)
        return found[0]

    def get_many(self, keys: Sequence[str]) -> list[Record]:
        """The records with those keys, in that order; unknown keys are passed over."""
        keys = _as_keys(keys)
        with self._store.reading() as transaction:
            ids = record_ids_of(transaction, self._row(transaction), keys)
            held = records_by_id(transaction, list(ids.values()))
        return [held[ids[key]] for key in dict.fromkeys(keys) if key in ids]

    def count(self, where: Where | None = None) -> int:
        """How many records there are, all or under a filter."""
        if not self._store.exists():
            return 0
        with self._store.reading() as transaction:
            collection = catalog.find_collection(transaction, self.name)
            if collection is None:
                return 0
            tree = None if where is None else checked_where(transaction, collection, where)
            return count_records(transaction, collection, tree)

    def records(self, where: Where | None = None, *, limit: int | None = None) -> Iterator[Record]:
        """The records, all or under a filter, in the order in which they were first added; one snapshot."""
        if limit is not None and limit < 1:
            raise InvalidInput(f"limit is {limit}; it must be at least 1")
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            tree = None if where is None else checked_where(transaction, collection, where)
            for _, record in stream_records(transaction, collection, tree, limit):
                yield record

    def sample(self, n: int = 10, *, where: Where | None = None, seed: int | None = None) -> list[Record]:
        """``n`` records drawn at random without replacement."""
        if n < 1:
            raise InvalidInput(f"n is {n}; it must be at least 1")
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            tree = None if where is None else checked_where(transaction, collection, where)
            ids = sample_ids(transaction, collection, n, tree, seed)
            held = records_by_id(transaction, ids)
        return [held[one] for one in ids]

    def scan(
        self, *, where: Where | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Arrow batches of records. ``columns`` names ``key``, ``text``, ``uri``, metadata fields and spaces.

        Without ``columns``: key, text, and metadata as JSON text. A field of mixed kinds comes as JSON text.
        """
        from embedstore.tables import scan_batches

        with self._store.reading() as transaction:
            collection = self._row(transaction)
            tree = None if where is None else checked_where(transaction, collection, where)
            yield from scan_batches(transaction, collection, tree, columns)

    def vectors(self, keys: Sequence[str], *, space: str | None = None) -> FloatMatrix:
        """The stored vectors of records, float32 (len(keys), dim); RecordNotFound where a key has none."""
        with self._store.reading() as transaction:
            return self._vectors(transaction, self._row(transaction), keys, space)

    def stats(self) -> dict[str, Any]:
        """What the collection holds, as plain values: counts, fields, spaces, digest and what caches lack."""
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            spaces = catalog.spaces_of(transaction, collection.collection_id)
            kinds = catalog.field_kinds(transaction, collection.collection_id)
        fields: dict[str, list[str]] = {}
        for path, kind in sorted(kinds):
            fields.setdefault(".".join(path), []).append(kind)
        return {
            "name": self.name, "n_records": collection.n_records, "commits": collection.last_change,
            "digest": collection.digest.hex(), "fields": fields,
            "spaces": [Space(self, space).describe() for space in spaces.values()],
        }  # fmt: skip

    # ---- searching

    def search(
        self,
        query: SearchQuery | None = None,
        k: int = 10,
        *,
        where: Where | None = None,
        space: str | None = None,
        mode: str | Mode = Mode.VECTOR,
        offset: int = 0,
        mmr: float | None = None,
        like: Sequence[str] = (),
        unlike: Sequence[str] = (),
    ) -> Hits:
        """The ``k`` best records, best first; always min(k, matching records) of them.

        query: a text, a vector (dim,) or a Vector. mode: 'vector', 'text' (keywords) or 'hybrid' (both, fused).
        where: a filter. like, unlike: keys of records to be near to and far from; they do not come back themselves.
        mmr: from 0 to 1; below 1, hits are also chosen to differ from each other. offset: how many hits to skip.
        """
        chosen = choose(Mode, mode, "mode")
        _check_page(k, offset)
        if mmr is not None and not 0 <= mmr <= 1:
            raise InvalidInput(f"mmr is {mmr}; it must be from 0 (only diverse) to 1 (only near)")
        words = query if isinstance(query, str) else None
        if words is not None and not words.strip():
            raise InvalidInput("the query is empty; give a text, a vector, or keys to be like")
        if chosen is not Mode.VECTOR and words is None:
            raise InvalidInput(f"mode {chosen.value!r} needs a query text")
        if chosen is not Mode.VECTOR and mmr is not None:
            raise InvalidInput(f"mmr works on vectors; use mode 'vector' rather than {chosen.value!r}")
        if chosen is Mode.TEXT and (like or unlike):
            raise InvalidInput("like and unlike work on vectors; use mode 'vector' or 'hybrid'")
        if not self._store.exists():
            return _no_hits()
        encoded = self._encode_query(query, chosen, space)
        with self._store.reading() as transaction:
            collection = catalog.find_collection(transaction, self.name)
            if collection is None:
                return _no_hits()
            tree = None if where is None else checked_where(transaction, collection, where)
            row = self._space_row(transaction, collection, space)
            vector, excluded = self._query_vector(transaction, collection, row, encoded, like, unlike, chosen)
            asked = Query(chosen, vector, words, k, offset, tree, mmr, excluded)
            return self._store.search.answer(transaction, collection, row, asked)

    def search_batch(
        self,
        queries: Sequence[SearchQuery] | FloatMatrix,
        k: int = 10,
        *,
        where: Where | None = None,
        space: str | None = None,
    ) -> list[Hits]:
        """The hits of many queries, in their order; vectors are compared in one matrix product."""
        _check_page(k, 0)
        if not self._store.exists():
            return [_no_hits() for _ in queries]
        vectors = self._encode_batch(queries, space)
        with self._store.reading() as transaction:
            collection = catalog.find_collection(transaction, self.name)
            if collection is None or not len(queries):
                return [_no_hits() for _ in queries]
            tree = None if where is None else checked_where(transaction, collection, where)
            row = self._space_row(transaction, collection, space)
            checked = np.stack([self._checked_query(row, vector) for vector in vectors])
            return self._store.search.answer_batch(transaction, collection, row, checked, k, tree)

    def _encode_query(self, query: SearchQuery | None, mode: Mode, space: str | None) -> FloatVector | Vector | None:
        """What a query is as a vector, before any snapshot is opened."""
        if isinstance(query, str):
            if mode is Mode.TEXT:
                return None
            rows = self._space_rows()
            if not rows:
                return None
            row = rows.get(space or self._default_space_name())
            if row is None:
                return None  # refused, with the names there are, once the snapshot is open
            return self._store.encoder_of(row).encode_query(query)
        if query is None or isinstance(query, Vector):
            return query
        return check_vector(query, name="query")

    def _encode_batch(
        self, queries: Sequence[SearchQuery] | FloatMatrix, space: str | None
    ) -> list[FloatVector | Vector]:
        texts = [(place, query) for place, query in enumerate(queries) if isinstance(query, str)]
        encoded: dict[int, FloatVector] = {}
        rows = self._space_rows()
        name = space or (self._default_space_name() if rows else "")
        if texts and name in rows:
            for _, text in texts:
                if not text.strip():
                    raise InvalidInput("a query is empty; every query must have words")
            made = self._store.encoder_of(rows[name]).encode([text for _, text in texts]).vectors
            encoded = {place: made[line] for line, (place, _) in enumerate(texts)}
        vectors: list[FloatVector | Vector] = []
        for place, query in enumerate(queries):
            if isinstance(query, str):
                vectors.append(encoded.get(place, np.empty(0, np.float32)))
            else:
                vectors.append(query if isinstance(query, Vector) else check_vector(query, place + 1, "query"))
        return vectors

    def _query_vector(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        row: SpaceRow,
        query: FloatVector | Vector | None,
        like: Sequence[str],
        unlike: Sequence[str],
        mode: Mode,
    ) -> tuple[FloatVector | None, tuple[int, ...]]:
        """The vector to search with, and the records that are not to come back."""
        if mode is Mode.TEXT:
            return None, ()
        if isinstance(like, str) or isinstance(unlike, str):
            raise InvalidInput("like and unlike take lists of keys: like=['p1']")
        parts = [] if query is None else [self._checked_query(row, query)]
        if not (like or unlike):
            if not parts:
                raise InvalidInput("nothing to search for: give a query text, a vector, or keys in like")
            return parts[0], ()
        if row.dim is None:
            raise InvalidInput(f"the space {row.name!r} holds no vectors yet, so nothing can be like another")
        near = [*parts, *self._vectors(transaction, collection, like, row.name)]
        far = self._vectors(transaction, collection, unlike, row.name)
        cosine = Metric(row.metric) is Metric.COSINE
        vector = _mean_direction(near, row.dim, cosine) - _mean_direction(far, row.dim, cosine)
        if cosine and not np.any(vector):
            raise InvalidInput("like and unlike cancel each other out; there is no direction left to search in")
        ids = record_ids_of(transaction, collection, _as_keys([*like, *unlike]))
        return vector.astype(np.float32), tuple(ids.values())

    def _checked_query(self, row: SpaceRow, query: FloatVector | Vector) -> FloatVector:
        if isinstance(query, Vector):
            if query.space_id != row.space_id or query.space.store is not self._store:
                raise SpaceMismatch(
                    f"the vector belongs to the space {query.space_name!r}; it cannot be compared with"
                    f" '{self.name}/{row.name}'"
                )
            vector = query.array
        else:
            vector = query
        if row.dim is not None and vector.shape[0] != row.dim:
            made_by = f", made by {row_encoder(row)}" if row.encoder else ""
            raise SpaceMismatch(
                f"the query has {vector.shape[0]} numbers; the space '{self.name}/{row.name}' holds {row.dim}{made_by}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            squared = float(np.dot(vector, vector))
        if _MODEST < squared < 1 / _MODEST:
            return vector  # finite, not zero, and of a length that can be compared: nothing more to ask
        if not np.all(np.isfinite(vector)):
            raise InvalidInput("the query vector holds NaN or infinity; every number must be finite")
        if Metric(row.metric) is Metric.COSINE and not np.any(vector):
            raise InvalidInput("the query vector is all zeros, which has no direction to compare by cosine")
        check_length(float(np.linalg.norm(vector.astype(np.float64))), None, "query")
        return vector

    # ---- spaces

    def space(self, name: str | None = None) -> Space:
        """A space by name; without a name, the collection's first one."""
        if not self._space_rows():
            self.create()
        with self._store.reading() as transaction:
            return Space(self, self._space_row(transaction, self._row(transaction), name))

    def spaces(self) -> list[Space]:
        """Every space, in the order of their creation."""
        return [Space(self, row) for row in self._space_rows().values()]

    def add_space(
        self, name: str, *, encoder: str = "none", metric: str = "cosine", recipe: str = "flat", dim: int | None = None
    ) -> Space:
        """Add a space: with an encoder, every record's text is encoded into it; with 'none', ``upsert`` fills it.

        Vectors computed elsewhere are given as ``vectors={name: array}`` in a record.
        """
        from embedstore.indexing.recipes import find_recipe
        from embedstore.names import check_collection_name, check_dim

        check_collection_name(name)
        check_dim(dim)
        self.create()
        made = self._store.load_encoder(encoder)
        chosen = choose(Metric, metric, "metric")
        recipe_name = find_recipe(recipe).name
        with self._store.database.write() as transaction:
            transaction.alone()
            collection = self._row(transaction)
            if name in catalog.spaces_of(transaction, collection.collection_id):
                raise InvalidInput(f"the collection {self.name!r} has a space {name!r} already")
            catalog.create_space(
                transaction, collection.collection_id, name, dim=dim if made is None else made.spec.dim,
                metric=chosen.value, encoder="" if made is None else made.spec.to_json(),
                fingerprint="" if made is None else made.spec.fingerprint, recipe=recipe_name,
            )  # fmt: skip
        if made is not None:
            self.fill_spaces()
        return self.space(name)

    def fill_spaces(self) -> WriteReport:
        """Encode every record that lacks a vector in a space with an encoder; goes on where it was interrupted."""
        report = WriteReport()
        preparer = Preparer(vector_space=self._default_space_name(), text_required=False)
        page: list[dict[str, Any]] = []
        for record in self.records():
            if record.content is None:
                continue
            page.append({"key": record.key, "text": record.content, "uri": record.uri, "metadata": record.metadata})
            if len(page) == _PAGE:
                report += self._fill(preparer, page)
                page = []
        if page:
            report += self._fill(preparer, page)
        return report

    def _fill(self, preparer: Preparer, page: list[dict[str, Any]]) -> WriteReport:
        return commit_missing_vectors(
            self._store.database, self.name, preparer.prepare(page), self._store.encoder_of
        )

    def index(self, *, space: str | None = None, recipe: str | None = None) -> Space:
        """Bring a space's index up to date with every record, or build it anew by another recipe."""
        from embedstore.indexing.recipes import find_recipe

        with self._store.reading() as transaction:
            row = self._space_row(transaction, self._row(transaction), space)
        wanted = find_recipe(recipe or row.recipe)
        if Metric(row.metric) not in wanted.metrics:
            raise InvalidInput(f"the recipe {wanted.name!r} does not serve the metric {row.metric!r}")
        if not wanted.exact:
            from embedstore.optional import load_faiss

            load_faiss()
        if wanted.name != row.recipe:
            with self._store.database.write() as transaction:
                writer = CollectionWriter(transaction, self.name)
                writer.set_recipe(row.name, wanted.name)
                writer.finish()
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            row = self._space_row(transaction, collection, row.name)
            if row.dim is not None:
                self._store.search.space_cache(row.space_id).build(transaction, collection, row, wanted)
            return Space(self, row)

    def refresh(self) -> None:
        """Write what caches lack: exact vectors of every space, and the keyword index."""
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            for row in catalog.spaces_of(transaction, collection.collection_id).values():
                if row.dim is not None and row.n_live:
                    self._store.search.space_cache(row.space_id).refresh(transaction, collection, row)
            if transaction.dialect.name == "sqlite":
                cache = self._store.search.keyword_cache(collection.collection_id)
                cache.catch_up(transaction, collection)

    # ---- export, import, ingest

    def export(self, path: str, *, where: Where | None = None, vectors: bool = True) -> int:
        """Write records to a Parquet (``.parquet``) or JSON lines (``.jsonl``) file; the number written."""
        from embedstore.exporting import export_collection

        return export_collection(self, path, where=where, vectors=vectors)

    def import_(self, path: str) -> WriteReport:
        """Read back a file written by ``export``: records, metadata and vectors, without encoding anything."""
        from embedstore.exporting import import_collection

        return import_collection(self, path)

    def ingest(self, *sources: Any, **options: Any) -> WriteReport:
        """Upsert everything that files, folders, tables or iterables hold; see ``embedstore.ingesting.ingest``."""
        from embedstore.ingesting import ingest

        return ingest(self, *sources, **options)

    # ---- inside

    @property
    def store(self) -> Store:
        """The store that holds this collection."""
        return self._store

    @property
    def defaults(self) -> CollectionDefaults:
        """How the collection is made when its first write creates it."""
        return self._defaults

    def encoded_space_names(self) -> list[str]:
        """The spaces that an encoder fills; what they will be, where the collection does not exist yet."""
        rows = self._space_rows()
        if rows:
            return [name for name, row in rows.items() if row.encoder]
        return [] if self._defaults.encoder == "none" else ["text"]

    def encoder(self, space: str | None = None) -> Encoder:
        """The encoder of a space; InvalidInput where it has none."""
        with self._store.reading() as transaction:
            row = self._space_row(transaction, self._row(transaction), space)
        return self._store.encoder_of(row)

    def _row(self, transaction: Transaction) -> CollectionRow:
        row = catalog.find_collection(transaction, self.name)
        if row is None:
            from embedstore.errors import CollectionNotFound

            raise CollectionNotFound(f"the collection {self.name!r} does not exist yet; its first write creates it")
        return row

    def _layout(self) -> Layout | None:
        """The collection's row and its spaces, at one commit; None where it does not exist yet."""
        if not self._store.exists():
            return None
        with self._store.reading() as transaction:
            row = catalog.find_collection(transaction, self.name)
            return None if row is None else Layout(row, catalog.spaces_of(transaction, row.collection_id))

    def _space_rows(self) -> dict[str, SpaceRow]:
        """The spaces as they are stored; empty where the collection does not exist yet."""
        layout = self._layout()
        return {} if layout is None else layout.spaces

    def _default_space_name(self) -> str:
        with self._store.reading() as transaction:
            return self._row(transaction).default_space

    def _space_row(self, transaction: Transaction, collection: CollectionRow, name: str | None) -> SpaceRow:
        spaces = catalog.spaces_of(transaction, collection.collection_id)
        wanted = name or collection.default_space
        if wanted not in spaces:
            raise SpaceNotFound(f"{self.name!r} has no space {wanted!r}; it has: {', '.join(spaces)}")
        return spaces[wanted]

    def _vectors(
        self, transaction: Transaction, collection: CollectionRow, keys: Sequence[str], space: str | None
    ) -> FloatMatrix:
        row = self._space_row(transaction, collection, space)
        keys = _as_keys(keys)
        ids = record_ids_of(transaction, collection, keys)
        held = vectors_of(transaction, row.space_id, list(ids.values()))
        for key in keys:
            if key not in ids:
                self._refuse_key(key)
            if ids[key] not in held:
                raise RecordNotFound(f"the record {shown(key)} of {self.name!r} has no vector in space {row.name!r}")
        if not keys:
            return np.empty((0, row.dim or 0), np.float32)
        return np.frombuffer(b"".join(held[ids[key]] for key in keys), "<f4").reshape(len(keys), -1).copy()

    def _refuse_key(self, key: str) -> NoReturn:
        raise RecordNotFound(f"no record of {self.name!r} has the key {shown(str(key))}")


def _as_keys(keys: Iterable[Any]) -> list[str]:
    """Keys as they are stored: integers are written as decimals."""
    found = []
    for key in keys:
        if isinstance(key, str):
            encode_text(key, None, "key")
            found.append(key)
        elif isinstance(key, int) and not isinstance(key, bool):
            found.append(str(key))
        else:
            raise InvalidInput(f"a key is a string or an integer, not {type(key).__name__}")
    return found


def _no_hits() -> Hits:
    return Hits([], exact=True, plan="the collection is empty", explanation={})


def row_encoder(row: SpaceRow) -> str:
    """A space's encoder in a few words."""
    from embedstore.encoders import EncoderSpec

    return EncoderSpec.from_json(row.encoder).describe() if row.encoder else "none"


def _mean_direction(vectors: Sequence[FloatVector] | FloatMatrix, dim: int, cosine: bool) -> FloatVector:
    """The mean of vectors, each of length one under cosine; zeros where there is none."""
    if not len(vectors):
        return np.zeros(dim, np.float32)
    matrix = np.asarray(vectors, np.float32)
    if cosine:
        matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix.mean(axis=0)  # type: ignore[no-any-return]


def _check_page(k: int, offset: int) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InvalidInput(f"k is {k!r}; it must be a whole number from 1 on")
    if isinstance(offset, bool) or not isinstance(offset, (int, np.integer)) or offset < 0:
        raise InvalidInput(f"offset is {offset!r}; it must be a whole number from 0 on")


