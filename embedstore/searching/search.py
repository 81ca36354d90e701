"""One search of a collection at one commit: allowed records, nearest vectors, keywords, fusion, records."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedstore.devices import CPU, Device
from embedstore.errors import DamagedRow, InvalidFilter, InvalidInput, StoreDamaged
from embedstore.filters import Node, check_fields
from embedstore.forking import tell_forked
from embedstore.indexing.cachefile import DamagedCache
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_cache import SpaceCache
from embedstore.indexing.space_view import SpaceView
from embedstore.metadata import FieldKinds
from embedstore.model import (
    BoolVector,
    FloatMatrix,
    FloatVector,
    Hit,
    Hits,
    IntVector,
    Metric,
    Mode,
    Neighbours,
    Record,
)
from embedstore.reading import made_record, records_by_id, unmade_records
from embedstore.searching.columns import Columns
from embedstore.searching.index_search import Found, FoundBatch
from embedstore.searching.keywords import KeywordCache, Scored, postgres_search
from embedstore.searching.plan import nearest, nearest_batch
from embedstore.searching.ranking import maximal_marginal_relevance, reciprocal_rank_fusion
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Database, Mark, Transaction
from embedstore.storage.layout import keyword_cache_path, space_cache_folder

_FUSED_POOL = 100
_MMR_POOL = 100
_MOST_NEIGHBOURS = 1 << 28
_ONE = np.float32(1)
_MOST_AT_ONCE = 1000
"""Hits for which all records may come as one value."""


class Query(NamedTuple):
    """What is asked: a vector (dim,) and words, either of which may be missing, and how to rank.

    ``exclude`` holds record ids that never come back; ``mmr`` is None or a weight from 0 to 1.
    """

    mode: Mode
    vector: FloatVector | None
    words: str | None
    k: int
    offset: int = 0
    where: Node | None = None
    mmr: float | None = None
    exclude: tuple[int, ...] = ()


class Look(NamedTuple):
    """What a collection was in one state of the database, which ``mark`` tells from every other."""

    mark: Mark
    collection: CollectionRow
    spaces: Mapping[str, SpaceRow]
    kinds: FieldKinds


class CollectionSearch:
    """What one process keeps in memory to search a collection."""

    def __init__(
        self,
        cache_folder: Path,
        on_stale: Callable[[CollectionRow, SpaceRow], None] | None = None,
        device: Device = CPU,
    ) -> None:
        """on_stale: called where the index of a space should be built anew."""
        self._folder = cache_folder
        self._on_stale = on_stale
        self._device = device
        self._guard = threading.Lock()
        self._columns: dict[int, Columns] = {}
        self._spaces: dict[int, SpaceCache] = {}
        self._keywords: dict[int, KeywordCache] = {}
        self._looks: dict[str, Look] = {}
        self._marks: dict[int, Mark] = {}
        tell_forked(self)

    def forget_parent(self) -> None:
        """Make the lock anew; another thread may have held it."""
        self._guard = threading.Lock()

    def space_cache(self, space_id: int) -> SpaceCache:
        """The cache of a space."""
        known = self._spaces.get(space_id)
        if known is not None:
            return known
        with self._guard:
            if space_id not in self._spaces:
                folder = space_cache_folder(self._folder, space_id)
                made = self._spaces[space_id] = SpaceCache(folder, self._device)
                made.on_stale = self._on_stale
            return self._spaces[space_id]

    def keyword_cache(self, collection_id: int) -> KeywordCache:
        """The keyword index of a collection in a SQLite store."""
        with self._guard:
            if collection_id not in self._keywords:
                self._keywords[collection_id] = KeywordCache(keyword_cache_path(self._folder, collection_id))
            return self._keywords[collection_id]

    def columns(self, transaction: Transaction, collection: CollectionRow) -> Columns:
        """The collection's columns at the transaction's commit."""
        with self._guard:
            held = self._columns.get(collection.collection_id)
            fresh = (
                Columns.load(transaction, collection) if held is None else held.caught_up(transaction, collection)
            )
            if held is None or fresh.change >= held.change:
                self._columns[collection.collection_id] = fresh
            return fresh

    def forget_space(self, space_id: int) -> None:
        """Drop what is kept of a deleted space, its cache files included."""
        with self._guard:
            self._spaces.pop(space_id, None)
        shutil.rmtree(space_cache_folder(self._folder, space_id), ignore_errors=True)

    def forget(self, collection_id: int, space_ids: Sequence[int]) -> None:
        """Drop what is kept of a deleted collection, its cache files included."""
        with self._guard:
            self._columns.pop(collection_id, None)
            self._marks.pop(collection_id, None)
            for name in [one for one, look in self._looks.items() if look.collection.collection_id == collection_id]:
                self._looks.pop(name, None)
            keywords = self._keywords.pop(collection_id, None)
            for space_id in space_ids:
                self._spaces.pop(space_id, None)
        if keywords is not None:
            keywords.close()
        for space_id in space_ids:
            shutil.rmtree(space_cache_folder(self._folder, space_id), ignore_errors=True)
        for path in self._folder.glob(f"keywords-{collection_id}.*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close files, and forget what was read: another store may be at this place when it is next asked."""
        with self._guard:
            closing = list(self._keywords.values())
            self._keywords, self._spaces, self._columns = {}, {}, {}
            self._looks, self._marks = {}, {}
        for keywords in closing:
            keywords.close()

    # ---- answering

    def answer(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow | None, query: Query
    ) -> Hits:
        """The hits of one query. ``space`` may be None, or empty, where the collection has no vectors yet."""
        if query.mode is Mode.TEXT:
            return self._keyword_hits(transaction, collection, query)
        if space is None or space.dim is None:
            return Hits([], exact=True, plan="the space holds no vectors", explanation={})
        assert query.vector is not None
        cache = self.space_cache(space.space_id)
        return cache.looking(
            transaction, collection, space, lambda view: self._vector_hits(transaction, collection, cache, view, query)
        )

    def _vector_hits(
        self, transaction: Transaction, collection: CollectionRow, cache: SpaceCache, view: SpaceView, query: Query
    ) -> Hits:
        assert query.vector is not None
        vector = view.prepare(query.vector)
        allowed = self._selection(transaction, collection, cache, view, query)
        if query.mode is Mode.HYBRID:
            return self._hybrid_hits(transaction, collection, view, vector, allowed, query)
        found = _page(view, vector, allowed, query)
        scores = _bounded(view, found.scores).tolist()
        pairs = list(zip(view.record_ids[found.rows].tolist(), scores, strict=True))
        return self._hits(transaction, pairs, query.offset, found.exact, found.plan, found.details)

    def answer_at(self, database: Database, look: Look, space: SpaceRow, query: Query) -> Hits | None:
        """The hits of a query by vector, if the collection is still as it was at the last look at it.

        One statement reads the records and says whether that is so.
        None where it is not, or where anything is unusual: then it is to be asked in a snapshot.
        """
        assert query.vector is not None
        cache = self.space_cache(space.space_id)
        view = cache.settled(look.collection, space)
        if view is None or query.k + query.offset > _MOST_AT_ONCE:
            return None
        vector = view.prepare_usual(query.vector)
        if vector is None:
            return None
        try:
            allowed = self._kept_selection(look, cache, view, query.where)
            found = _page(view, vector, allowed, query)
            record_ids = view.record_ids[found.rows].tolist()
            read = database.records_and_mark(look.collection.collection_id, record_ids)
            if read is None or read[1] != look.mark:
                self._looks.pop(look.collection.name, None)
                return None
            records = {row[0]: made_record(row) for row in read[0]}
            scores = _bounded(view, found.scores).tolist()
            hits = _ranked(records, zip(record_ids, scores, strict=True), query.offset)
        except (DamagedCache, DamagedRow, InvalidFilter, KeyError):
            return None  # KeyError: of a record that is gone, or a field that is still to be read
        return Hits(hits, exact=found.exact, plan=found.plan, explanation=found.details)

    def _kept_selection(
        self, look: Look, cache: SpaceCache, view: SpaceView, where: Node | None
    ) -> Selection | None:
        """The rows under a filter by the columns that are in memory; KeyError where they do not tell.

        InvalidFilter is raised for fields that the records do not have.
        """
        if where is None:
            return _alive(cache, view)

        def allowed() -> BoolVector:
            columns = self._columns.get(look.collection.collection_id)
            if columns is None or columns.change != look.collection.last_change:
                raise KeyError(look.collection.name)
            if look.collection.n_records:
                check_fields(where, look.kinds, look.collection.name)
            return _rows_where(view, columns.record_ids, columns.matching(None, look.collection, where))

        return cache.selection(view, repr(where), allowed)

    def last_look(self, name: str) -> Look | None:
        """What was seen of the collection called ``name`` when it was last searched, where that was nothing new."""
        return self._looks.get(name)

    def note_look(self, transaction: Transaction, collection: CollectionRow) -> None:
        """Note what a transaction sees of a collection. Only what two searches saw alike is worth trying again."""
        mark = transaction.mark(collection.collection_id)
        if mark is None:
            return
        owner = collection.collection_id
        known = self._looks.get(collection.name)
        if self._marks.get(owner) == mark and (known is None or known.mark != mark):
            spaces, kinds = catalog.known_spaces(transaction, owner), catalog.field_kinds(transaction, owner)
            self._looks[collection.name] = Look(mark, collection, spaces, kinds)
        self._marks[owner] = mark

    def answer_batch(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow | None,
        queries: FloatMatrix,
        k: int,
        where: Node | None,
        damage: Callable[[str], StoreDamaged],
    ) -> list[Hits]:
        """The hits of many vector queries (n, dim) under one filter. ``damage`` says what a damaged row is.

        The rows of all records are read now; each record is made of its row, and checked, when its hit is looked at.
        """
        if space is None or space.dim is None:
            empty = Hits([], exact=True, plan="the space holds no vectors", explanation={})
            return [empty] * len(queries)
        view, found = self._nearest_batch(transaction, collection, space, queries, k, where)
        unmade = unmade_records(transaction, sorted({*view.record_ids[found.rows[found.rows >= 0]].tolist()}))
        return [
            Hits(
                partial(_made_hits, view.record_ids[one.rows], _bounded(view, one.scores), unmade, damage),
                exact=one.exact, plan=one.plan, explanation=one.details,
            )
            for one in map(found.one, range(len(queries)))
        ]  # fmt: skip

    def neighbours(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow | None,
        queries: FloatMatrix,
        k: int,
        where: Node | None,
    ) -> Neighbours:
        """The nearest records of many vector queries (n, dim) under one filter, by number alone."""
        if len(queries) * k > _MOST_NEIGHBOURS:
            raise InvalidInput(
                f"{len(queries):,} queries with k {k:,} ask for {len(queries) * k:,} neighbours; ask for"
                f" {_MOST_NEIGHBOURS:,} at most at once"
            )
        numbers = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        if space is None or space.dim is None or not len(queries):
            return Neighbours(numbers, scores, True, "no queries" if not len(queries) else "the space holds no vectors")
        view, found = self._nearest_batch(transaction, collection, space, queries, k, where)
        width = found.rows.shape[1]
        if width:
            numbers[:, :width] = np.where(found.rows >= 0, view.record_ids[found.rows], -1)
            scores[:, :width] = _bounded(view, found.scores)
        return Neighbours(numbers, scores, found.exact, found.plan)

    def _nearest_batch(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow,
        queries: FloatMatrix,
        k: int,
        where: Node | None,
    ) -> tuple[SpaceView, FoundBatch]:
        cache = self.space_cache(space.space_id)
        shared = Query(Mode.VECTOR, None, None, k, where=where)

        def look(view: SpaceView) -> tuple[SpaceView, FoundBatch]:
            allowed = self._selection(transaction, collection, cache, view, shared)
            return view, nearest_batch(view, view.prepare_batch(queries), k, allowed)

        return cache.looking(transaction, collection, space, look)

    def _selection(
        self, transaction: Transaction, collection: CollectionRow, cache: SpaceCache, view: SpaceView, query: Query
    ) -> Selection | None:
        """The rows that a query may be answered with; None where that is every row."""

        def allowed() -> BoolVector | None:
            mask: BoolVector | None = None
            if query.where is not None:
                columns = self.columns(transaction, collection)
                mask = _rows_where(view, columns.record_ids, columns.matching(transaction, collection, query.where))
            if query.exclude:
                excluded = view.rows_of_records(query.exclude)
                mask = np.ones(view.n_rows, np.bool_) if mask is None else mask.copy()
                mask[excluded[excluded >= 0]] = False
            return mask

        if query.exclude:  # of records that are seldom the same again
            return view.selection(allowed(), lasting=False)
        return _alive(cache, view) if query.where is None else cache.selection(view, repr(query.where), allowed)

    def rows_where(
        self, transaction: Transaction, collection: CollectionRow, cache: SpaceCache, view: SpaceView,
        where: Node | None,
    ) -> Selection | None:  # fmt: skip
        """The live rows of a view under a filter; None where that is every row."""
        return self._selection(transaction, collection, cache, view, Query(Mode.VECTOR, None, None, 1, where=where))

    def _hybrid_hits(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        view: SpaceView,
        vector: FloatVector,
        allowed: Selection | None,
        query: Query,
    ) -> Hits:
        wanted = query.offset + query.k
        fused: dict[int, float] = {}
        n_pool = _FUSED_POOL
        while True:
            # Pools grow by fixed steps, and a larger one only adds behind the smaller, so that pages follow each other.
            found = nearest(view, vector, n_pool, allowed)
            by_vector = view.record_ids[found.rows].tolist()
            by_words = self._keyword_pairs(transaction, collection, query, n_pool)
            ranked = reciprocal_rank_fusion([by_vector, [record_id for record_id, _ in by_words]])
            fused.update((record_id, score) for record_id, score in ranked if record_id not in fused)
            if len(fused) >= wanted or max(len(by_vector), len(by_words)) < n_pool:
                break
            n_pool *= 10
        plan = f"{found.plan}; {len(by_words):,} keyword matches; fused by reciprocal rank"
        details = {**found.details, "n_keyword_matches": len(by_words), "rrf_constant": 60}
        page = list(fused.items())[query.offset : wanted]
        return self._hits(transaction, page, query.offset, found.exact, plan, details)

    def _keyword_hits(self, transaction: Transaction, collection: CollectionRow, query: Query) -> Hits:
        wanted = query.offset + query.k
        pairs = self._keyword_pairs(transaction, collection, query, wanted)
        engine = "FTS5, BM25" if transaction.dialect.name == "sqlite" else "PostgreSQL full text"
        plan = f"keyword search ({engine})"
        return self._hits(transaction, pairs[query.offset : wanted], query.offset, True, plan, {})

    def _keyword_pairs(
        self, transaction: Transaction, collection: CollectionRow, query: Query, limit: int
    ) -> Scored:
        """The best ``limit`` records by keywords among those that the filter allows."""
        if query.words is None:
            raise InvalidInput("keyword and hybrid search need a query text")
        mask = columns = None
        if query.where is not None:
            columns = self.columns(transaction, collection)
            mask = columns.matching(transaction, collection, query.where)
        narrowed = mask is not None or bool(query.exclude)
        n_asked = min(limit, collection.n_records)
        while True:
            pairs = self._keyword_search(transaction, collection, query.words, n_asked)
            complete = len(pairs) < n_asked or n_asked >= collection.n_records
            if narrowed:
                pairs = [pair for pair in pairs if pair[0] not in query.exclude]
            if mask is not None and columns is not None and pairs:
                ids = np.array([record_id for record_id, _ in pairs], np.int64)
                kept = mask[np.searchsorted(columns.record_ids, ids)]
                pairs = [pair for pair, keep in zip(pairs, kept.tolist(), strict=True) if keep]
            if len(pairs) >= limit or complete:
                return pairs[:limit]
            n_asked = min(max(n_asked * 8, 1000), collection.n_records)

    def _keyword_search(
        self, transaction: Transaction, collection: CollectionRow, words: str, limit: int
    ) -> Scored:
        if transaction.dialect.name == "sqlite":
            return self.keyword_cache(collection.collection_id).search(transaction, collection, words, limit)
        return postgres_search(transaction, collection, words, limit)

    @staticmethod
    def _hits(
        transaction: Transaction,
        pairs: Sequence[tuple[int, float]],
        offset: int,
        exact: bool,
        plan: str,
        details: dict[str, Any],
    ) -> Hits:
        records = records_by_id(transaction, [record_id for record_id, _ in pairs])
        return Hits(_ranked(records, pairs, offset), exact=exact, plan=plan, explanation=details)


def _bounded(view: SpaceView, scores: np.ndarray) -> np.ndarray:
    """Scores as they are given away: a cosine that was rounded beyond 1 is 1. -inf, for no row, stays."""
    if view.metric is Metric.COSINE:
        np.minimum(scores, _ONE, out=scores)
        if scores.size and scores.min() < -1:
            np.maximum(scores, -_ONE, out=scores, where=np.isfinite(scores))
    return scores


def _page(view: SpaceView, vector: FloatVector, allowed: Selection | None, query: Query) -> Found:
    """The rows that a query asks for, by a prepared vector: those of its page, diversified where that is asked for."""
    if query.mmr is None and not query.offset:
        return nearest(view, vector, query.k, allowed)
    wanted = query.offset + query.k
    if query.mmr is None:
        found = _list_of(view, vector, allowed, query.k, wanted)
        rows, scores, plan = found.rows, found.scores, found.plan
    else:
        # The pool is the same for every page, so that pages follow each other; what lies beyond keeps its rank.
        found = _list_of(view, vector, allowed, _MMR_POOL, max(_MMR_POOL, wanted))
        pool = found.rows[:_MMR_POOL]
        scores = found.scores[:_MMR_POOL]
        order = maximal_marginal_relevance(view.gather(pool), scores, len(pool), query.mmr, view.metric)
        order += range(len(pool), len(found.rows))
        rows, scores, plan = found.rows[order], found.scores[order], f"{found.plan}; diversified"
    return Found(rows[query.offset : wanted], scores[query.offset : wanted], found.exact, plan, found.details)


def _list_of(view: SpaceView, vector: FloatVector, allowed: Selection | None, first: int, wanted: int) -> Found:
    """At least the ``wanted`` best rows, where there are as many, so that a longer list only adds to a shorter one.

    An index that looks for more finds other rows as well. Those come behind what a page of ``first`` rows showed, and
    what each list of ten times as many did. Of exact lists the longer one begins with the shorter, so one is enough.
    """
    found = nearest(view, vector, first, allowed)
    n_asked, rows, scores, exact = first, found.rows, found.scores, found.exact
    while rows.size < wanted and found.rows.size == n_asked:
        n_asked = max(wanted, n_asked + 1) if found.exact else 10 * n_asked
        found = nearest(view, vector, n_asked, allowed)
        new = np.isin(found.rows, rows, invert=True)
        rows, scores = np.concatenate([rows, found.rows[new]]), np.concatenate([scores, found.scores[new]])
        exact = exact and found.exact
    return Found(rows, scores, exact, found.plan, found.details)


def _made_hits(
    record_ids: IntVector,
    scores: FloatVector,
    unmade: dict[int, Callable[[], Record]],
    damage: Callable[[str], StoreDamaged],
) -> list[Hit]:
    """Hits of the rows that were read of their records; StoreDamaged where one is not what was written."""
    ids = record_ids.tolist()
    try:
        records = {record_id: unmade[record_id]() for record_id in ids}
    except DamagedRow as error:
        raise damage(str(error)) from error
    return _ranked(records, zip(ids, scores.tolist(), strict=True), 0)


def _ranked(records: Mapping[int, Record], scored: Iterable[tuple[int, float]], offset: int) -> list[Hit]:
    """Hits of record ids with their scores, best first, of which ``offset`` come before."""
    return [
        Hit(records[record_id], score, rank) for rank, (record_id, score) in enumerate(scored, start=offset + 1)
    ]


def _alive(cache: SpaceCache, view: SpaceView) -> Selection | None:
    """Every row that is alive; None where all are."""
    return None if view.alive is None else cache.selection(view, "alive", lambda: None)


def _rows_where(view: SpaceView, record_ids: IntVector, mask: BoolVector) -> BoolVector:
    """A mask over records (sorted by id) as a mask over a view's rows."""
    if record_ids.size == 0:
        return np.zeros(view.n_rows, np.bool_)
    if record_ids.size == view.record_ids.size and np.array_equal(record_ids, view.record_ids):
        return mask
    places = np.minimum(np.searchsorted(record_ids, view.record_ids), record_ids.size - 1)
    rows: BoolVector = mask[places] & (record_ids[places] == view.record_ids)
    return rows

