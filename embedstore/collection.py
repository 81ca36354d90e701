"""A collection: named records that belong together, with vectors in one or more spaces."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedstore import asking, changing
from embedstore.asking import Asked, SearchQuery
from embedstore.changing import NO_ENCODER, CollectionDefaults
from embedstore.checks import check_numbers
from embedstore.errors import (
    EmbedstoreError,
    InvalidInput,
    InvalidRecord,
)
from embedstore.filters.parse import Where
from embedstore.metadata import FieldKinds
from embedstore.model import FloatMatrix, Hits, Metric, Modality, Mode, Neighbours, Record, WriteReport, choose
from embedstore.reading import (
    as_keys,
    checked_where,
    count_records,
    keys_by_id,
    newest_picture_is_embedded,
    record_ids_of,
    records_by_id,
    sample_ids,
    space_row,
    stream_records,
    unknown_key,
    vectors_by_key,
)
from embedstore.records import Preparer
from embedstore.space import Space
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storing.layout import Layout
from embedstore.storing.vectors import VectorChecker
from embedstore.wording import counted

if TYPE_CHECKING:
    import pyarrow

    from embedstore.encoders import Encoder
    from embedstore.latent.anomaly import AnomalyReport
    from embedstore.latent.clusters import Clustering
    from embedstore.searching.tuning import TuningReport
    from embedstore.store import Store
    from embedstore.vae.diagnostics import Diagnosis
    from embedstore.vector import Vector

_LOG = logging.getLogger("embedstore")


class Collection:
    """Records with keys, content, metadata and vectors. Made by ``Store.collection``; safe to use from threads."""

    def __init__(self, store: Store, name: str, defaults: CollectionDefaults) -> None:
        self.name = name
        self._store = store
        self._defaults = defaults
        self._records = changing.RecordWriter(self)

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, {counted(len(self), 'record')})"

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, (str, int)) or not self._store.exists():
            return False
        with self._store.reading() as transaction:
            row = catalog.find_collection(transaction, self.name)
            return row is not None and bool(record_ids_of(transaction, row, as_keys([key])))

    # ---- writing

    def add(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Add new records, all or none. Raises DuplicateKey where a key exists, in the collection or twice here.

        A record is a mapping: ``key`` (a random one where it is missing), one of ``text``, ``image`` (a path, bytes, a
        Pillow image or an array) and ``row`` (a mapping of columns to values), ``vector`` (for encoder 'none'),
        ``vectors`` (by space), ``uri``, ``metadata`` (a mapping); every other field is metadata too.

        Of a picture in a file the name of its bytes is kept, and where it lies; of any other, the bytes themselves.
        """
        return self._records.write(records, replace_existing=False)

    def upsert(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Add records and overwrite those whose key exists, all or none. Unchanged texts are not encoded again."""
        return self._records.write(records, replace_existing=True)

    def update(self, records: Iterable[Mapping[str, Any]]) -> WriteReport:
        """Change metadata only, all or none: the given fields replace those of the record with that ``key``.

        A field given as None is removed. Raises RecordNotFound for a key that does not exist.
        """
        return changing.update(self, records)

    def preparer(
        self,
        on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None = None,
        *,
        embed_bytes: bool = False,
        stored: bool = False,
    ) -> Preparer:
        """What checks records for this collection; ``stored``: they come as they are stored."""
        return changing.preparer(self, self.layout(), on_error, embed_bytes=embed_bytes, stored=stored)

    def vector_checker(self) -> VectorChecker:
        """What checks the vectors that records bring."""
        return VectorChecker(self._space_rows(), self._defaults.metric or Metric.COSINE)

    def create(self) -> None:
        """Create the collection with its first space, where it does not exist yet."""
        changing.create(self)

    def delete(self, keys: Iterable[str] | None = None, *, where: Where | None = None) -> int:
        """Delete records by key, or those under a filter; the number deleted. Unknown keys are passed over."""
        return changing.delete(self, keys, where)

    def drop(self, *, only_as: Layout | None = None) -> int:
        """Delete the collection itself; the number of its records.

        only_as: leave it unless it is the very collection of this layout, empty, with the spaces that it had then.
        """
        return changing.drop(self, only_as)

    # ---- reading

    def get(self, key: str) -> Record:
        """The record with that key; RecordNotFound where there is none."""
        found = self.get_many([key])
        if not found:
            raise unknown_key(self.name, key)
        return found[0]

    def get_many(self, keys: Sequence[str]) -> list[Record]:
        """The records with those keys, in that order; unknown keys are passed over."""
        keys = as_keys(keys)
        with self._store.reading() as transaction:
            ids = record_ids_of(transaction, self._row(transaction), keys)
            held = records_by_id(transaction, list(ids.values()))
        return [held[ids[key]] for key in keys if key in ids]

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
        if not hasattr(n, "__index__") or n < 1:
            raise InvalidInput(f"n is {n!r}; it must be a whole number from 1 on")
        with self._store.reading() as transaction:
            collection = self._row(transaction)
            tree = None if where is None else checked_where(transaction, collection, where)
            ids = sample_ids(transaction, collection, int(n), tree, seed)
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
            return vectors_by_key(transaction, self._row(transaction), keys, space)

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
        words: str | None = None,
    ) -> Hits:
        """The ``k`` best records, best first; always min(k, matching records) of them.

        query: a text, a vector (dim,) or a Vector. mode: 'vector', 'text' (keywords) or 'hybrid' (both, fused).
        words: the keywords of a text or hybrid search, where the query is no text, or another one.
        where: a filter. like, unlike: keys of records to be near to and far from; they do not come back themselves.
        mmr: from 0 to 1; below 1, hits are also chosen to differ from each other. offset: how many hits to skip.
        """
        how = choose(Mode, mode, "mode")
        return asking.search(self, Asked(query, k, where, space, how, offset, mmr, like, unlike, words))

    def search_batch(
        self,
        queries: Sequence[SearchQuery] | FloatMatrix,
        k: int = 10,
        *,
        where: Where | None = None,
        space: str | None = None,
    ) -> list[Hits]:
        """The hits of many queries, in their order. All are answered together, which is quicker than one by one."""
        return asking.search_batch(self, queries, k, where=where, space=space)

    def neighbours(
        self,
        queries: Sequence[SearchQuery] | FloatMatrix,
        k: int = 10,
        *,
        where: Where | None = None,
        space: str | None = None,
    ) -> Neighbours:
        """The nearest records of many queries as two arrays, their numbers and scores; nothing else is read of them.

        For graphs of neighbours and statistics over many queries; ``keys_of`` gives the keys of numbers.
        """
        return asking.neighbours(self, queries, k, where=where, space=space)

    def keys_of(self, numbers: Iterable[int]) -> list[str | None]:
        """The keys of records by their numbers, in that order; None for a record that is no more."""
        wanted = check_numbers(numbers)
        with self._store.reading() as transaction:
            found = keys_by_id(transaction, sorted(set(wanted)))
        return [found.get(number) for number in wanted]

    # ---- spaces

    def space(self, name: str | None = None) -> Space:
        """A space by name; without a name, the collection's first one."""
        if not self._space_rows():
            self.create()
        with self._store.reading() as transaction:
            return Space(self, space_row(transaction, self._row(transaction), name))

    def spaces(self) -> list[Space]:
        """Every space, in the order of their creation."""
        return [Space(self, row) for row in self._space_rows().values()]

    def add_space(
        self,
        name: str,
        *,
        encoder: str = "none",
        metric: str | None = None,
        recipe: str = "flat",
        dim: int | None = None,
        reduce: str | None = None,
        of: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        label: str | None = None,
        where: Where | None = None,
        sample: int = 10_000,
        seed: int = 0,
    ) -> Space:
        """Add a space: of an encoder, by which every record is encoded; made of another space; or for given vectors.

        Vectors computed elsewhere (encoder 'none') are given as ``vectors={name: array}`` in a record. metric: else
        that of the encoder, 'euclidean' for autoencoders and 'cosine' for all others; of a space made of another one,
        that of the other, and 'euclidean' for maps.

        reduce: makes the space of the space ``of`` (else the collection's first one): 'pca', 'whiten' (PCA, every
        dimension with variance one), 'all-but-the-top', 'random' (a Gaussian projection), 'truncate' (the first
        numbers, for Matryoshka encoders), 'pullback' (of an autoencoder's space: distances as its decoder sees them),
        'lda' (what tells the values of the field ``label`` apart), 'erase' (LEACE: no linear model tells them apart any
        more), or a map: 'umap', 'tsne', 'pacmap'. It is fitted to the records under ``where``, maps to at most
        ``sample`` of them; all others, and those that come later, are placed by it. 'product' puts the vectors of
        several spaces side by side, ``of=['text', 'picture']``, with their ``weights``: records are near each other
        there that are so in all of them together.
        """
        self.spaces_changed()
        chosen = None if metric is None else choose(Metric, metric, "metric")
        if reduce is None:
            from embedstore.making_spaces import add_space

            if dim is not None and encoder != NO_ENCODER:
                raise InvalidInput(f"dim is {dim}, but how many numbers there are, the encoder says; leave it out")
            if any(one is not None for one in (of, weights, label, where)):
                raise InvalidInput("of, weights, label and where say what a space is of; say how, too: reduce='pca'")
            add_space(self, name, encoder=encoder, metric=chosen, recipe=recipe, dim=dim)
        else:
            from embedstore.latent.reducing import Wanted, add_reduced_space

            if encoder != NO_ENCODER:
                raise InvalidInput("a space is made by an encoder or of another space (reduce=), not by both")
            wanted = Wanted(reduce, dim, of, label, where, sample, seed, weights)
            add_reduced_space(self, name, wanted, metric=chosen, recipe=recipe)
        return self.space(name)

    def anomalies(
        self,
        *,
        method: str = "reconstruction",
        space: str | None = None,
        where: Where | None = None,
        top: int = 20,
        quantile: float = 0.99,
        neighbour: int = 5,
        store_as: str | None = None,
    ) -> AnomalyReport:
        """The strangest records of a space, the strangest first.

        method: 'reconstruction', what the space's autoencoder does not give back (the default: it told digits apart
        better than the bound); 'elbo', minus its evidence lower bound; 'knn', the distance to the ``neighbour``th
        nearest record, which needs no autoencoder. quantile: from which share on a score counts as strange: of what was
        held out when the model was trained, or with 'knn' of the records themselves. store_as: a metadata field that
        takes ``score``, ``share`` and ``strange`` of every record, to be filtered by.
        """
        from embedstore.latent.anomaly import find_anomalies

        return find_anomalies(
            self, space=space, method=method, where=where, top=top, quantile=quantile, neighbour=neighbour,
            store_as=store_as,
        )  # fmt: skip

    def keep_decoded(
        self, points: Sequence[Vector], into: str, *, about: Mapping[str, Any] | None = None
    ) -> WriteReport:
        """Decode points of one space, and upsert what they stand for as records of the collection ``into``.

        It is made with the same encoder where it does not exist. ``about`` becomes metadata and, by its values, the
        keys, beside the number of each point and the space that it is of.
        """
        from embedstore.latent.walks import keep_decoded

        return keep_decoded(self, points, into, about or {})

    def cluster(
        self,
        *,
        method: str = "kmeans",
        k: int | None = None,
        space: str | None = None,
        where: Where | None = None,
        sample: int = 20_000,
        seed: int = 0,
        store_as: str | None = None,
        least: int = 5,
    ) -> Clustering:
        """Group the records of a space into clusters, numbered by size.

        method: 'kmeans' (``k`` clusters, by FAISS; by angle under cosine, else by distance), 'gmm' (a Gaussian mixture
        of ``k`` parts, or as many, up to 12, as the BIC prefers), 'hdbscan' (dense regions of ``least`` records or
        more; the rest is in none). It is fitted to at most ``sample`` records, all are assigned. store_as: a metadata
        field that takes the ``label`` of every record, and of a mixture its ``share`` and the ``shares`` of all parts,
        to be filtered by.
        """
        from embedstore.latent.clusters import cluster

        return cluster(
            self, space=space, method=method, k=k, where=where, sample=sample, seed=seed, store_as=store_as,
            least=least,
        )  # fmt: skip

    def diagnose(
        self,
        *,
        space: str | None = None,
        label: str | None = None,
        where: Where | None = None,
        sample: int = 2000,
        seed: int = 0,
    ) -> Diagnosis:
        """What the latent space of an autoencoder is like, seen through a sample of the records.

        label: a metadata field by which reconstruction is told, and which is predicted from the vectors.
        """
        from embedstore.latent.diagnosing import diagnose_space

        return diagnose_space(self, space=space, label=label, where=where, sample=sample, seed=seed)

    def reencode(self, encoder: str, *, space: str | None = None, keep: bool = False) -> WriteReport:
        """Make a space anew with another encoder; the old one serves until the new one is whole, then they switch.

        Interrupted and called again, it goes on where it was. keep: the old one stays, as the space ``SPACE.old``.
        """
        from embedstore.making_spaces import reencode

        return reencode(self, encoder, space, keep=keep)

    def drop_space(self, name: str) -> int:
        """Delete a space with its vectors, unless it is the default one; the number of vectors that it held."""
        from embedstore.making_spaces import drop_space

        return drop_space(self, name)

    def fill_spaces(self) -> WriteReport:
        """Encode every record that lacks a vector in a space with an encoder; goes on where it was interrupted."""
        from embedstore.making_spaces import fill_spaces

        return fill_spaces(self)

    def index(self, *, space: str | None = None, recipe: str | None = None, wait: bool = True) -> Space:
        """Bring a space's index up to date with every record, or build it anew by another recipe.

        Where another process is building it, that is waited for; without ``wait`` StoreLocked is raised.
        """
        from embedstore.making_spaces import build_index

        return Space(self, build_index(self, space, recipe, wait=wait))

    def tune(
        self,
        *,
        recall: float = 0.95,
        k: int = 10,
        space: str | None = None,
        recipes: Sequence[str] | None = None,
        seed: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> TuningReport:
        """Find the fastest recipe and setting with at least this recall@k on the space's own vectors, and build it.

        recipes: the names of those to measure; all that serve the space where it is None. seed: of the vectors that are
        drawn to be asked for. progress: called with a line for each setting that was measured. The report, with the
        measured curve, is kept with the space.
        """
        from embedstore.making_spaces import tune_index

        return tune_index(
            self, space, recall=recall, k=k, recipes=recipes, seed=seed, progress=progress or (lambda line: None)
        )

    def refresh(self) -> None:
        """Write what caches lack: exact vectors of every space, and the keyword index."""
        from embedstore.making_spaces import refresh_caches

        refresh_caches(self)

    # ---- export, import, ingest

    def refresh_or_warn(self) -> None:
        """Bring the caches up to date after records were written; a failure is only warned of.

        Everything is committed by then, and the caches catch up at the next search.
        """
        try:
            self.refresh()
        except EmbedstoreError as error:
            _LOG.warning("the records are stored, but a cache was not brought up to date: %s", error)

    def export(
        self, path: str, *, where: Where | None = None, vectors: bool = True, overwrite: bool = False
    ) -> int:
        """Write records to a Parquet (``.parquet``) or JSON lines (``.jsonl``) file; the number written.

        An earlier export is replaced; InvalidInput for any other file that is there, unless ``overwrite``.
        """
        from embedstore.exporting import export_collection

        return export_collection(self, path, where=where, vectors=vectors, overwrite=overwrite)

    def import_(self, path: str) -> WriteReport:
        """Read back a file written by ``export``: records, metadata and vectors.

        Only what was exported without its vectors is encoded.
        """
        from embedstore.exporting import import_collection

        return import_collection(self, path)

    def ingest(self, *sources: Any, **options: Any) -> WriteReport:
        """Upsert everything that files, folders, tables or iterables hold; see ``embedstore.ingesting.ingest``."""
        from embedstore.ingesting import ingest
        from embedstore.making_spaces import begin_lagging_builds

        report = ingest(self, *sources, **options)
        begin_lagging_builds(self)
        return report

    # ---- inside

    @property
    def store(self) -> Store:
        """The store that holds this collection."""
        return self._store

    @property
    def defaults(self) -> CollectionDefaults:
        """How the collection is made when its first write creates it."""
        return self._defaults

    def modalities_read(self) -> frozenset[Modality]:
        """What the encoders of the collection's spaces read, or will read where it does not exist yet."""
        layout = self.layout()
        if layout is not None:
            return frozenset().union(*layout.encoded_spaces.values())
        return changing.first_modalities(self)

    def embeds_bytes(self) -> bool:
        """Whether the newest picture is kept with its bytes; False where there is none."""
        if not self._store.exists():
            return False
        with self._store.reading() as transaction:
            row = catalog.find_collection(transaction, self.name)
            return row is not None and newest_picture_is_embedded(transaction, row)

    def encoder(self, space: str | None = None) -> Encoder:
        """The encoder of a space; InvalidInput where it has none."""
        with self._store.reading() as transaction:
            row = space_row(transaction, self._row(transaction), space)
        return self._store.encoder_of(row)

    def _row(self, transaction: Transaction) -> CollectionRow:
        return catalog.require_collection(transaction, self.name)

    def spaces_changed(self) -> None:
        """Forget what is known of the spaces; else the next write would encode once for those that there were."""
        self._records.forget()

    def layout(self) -> Layout | None:
        """The collection's row and its spaces, at one commit; None where it does not exist yet."""
        if not self._store.exists():
            return None
        with self._store.reading() as transaction:
            row = catalog.find_collection(transaction, self.name)
            if row is None:
                return None
            spaces = catalog.spaces_of(transaction, row.collection_id)
            return Layout(row, spaces, FieldKinds(catalog.field_kinds(transaction, row.collection_id)))

    def _space_rows(self) -> dict[str, SpaceRow]:
        """The spaces as they are stored; empty where the collection does not exist yet."""
        layout = self.layout()
        return {} if layout is None else layout.spaces
