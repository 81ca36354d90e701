"""Answers what a user asks of a collection: texts are encoded, keys looked up, vectors checked, then it is searched."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedstore.checks import check_length, check_vector
from embedstore.errors import EmbedstoreError, InvalidInput, InvalidRecord, SpaceMismatch, SpaceNotFound
from embedstore.filters.parse import Where, parse_where
from embedstore.filters.tree import Node
from embedstore.model import FloatMatrix, FloatVector, Hits, Metric, Modality, Mode, Neighbours
from embedstore.pictures import Picture, read_picture
from embedstore.reading import as_keys, checked_where, record_ids_of, space_row, vectors_by_key
from embedstore.searching.search import Query
from embedstore.space import row_encoder
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.transforms import DerivedEncoder
from embedstore.vector import Vector

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.encoders import Encoder

_LOG = logging.getLogger("embedstore")
_MODEST = 1e-30
_NO_KEYS = ()

SearchQuery = Any
"""A text, a Vector, numbers; for a space of pictures a path, bytes or a Pillow image, for one of rows a mapping."""


class Asked(NamedTuple):
    """The arguments of ``Collection.search``, as they were given."""

    query: SearchQuery | None
    k: int
    where: Where | Node | None
    space: str | None
    mode: Mode
    offset: int
    mmr: float | None
    like: Sequence[str]
    unlike: Sequence[str]
    keywords: str | None = None

    def check(self) -> None:
        """Raise InvalidInput for arguments that do not go together."""
        _check_page(self.k, self.offset)
        words = self.words
        if words is None and self.mode is Mode.VECTOR and self.mmr is None and self.like is self.unlike is _NO_KEYS:
            return  # nearly always, and what follows takes long
        is_number = isinstance(self.mmr, (int, float)) and not isinstance(self.mmr, bool)
        if self.mmr is not None and not (is_number and 0 <= self.mmr <= 1):
            raise InvalidInput(f"mmr is {self.mmr!r}; it must be from 0 (only diverse) to 1 (only near)")
        is_blank = self.mode is not Mode.TEXT and isinstance(self.query, str) and not self.query.strip()
        if is_blank or (words is not None and not (isinstance(words, str) and words.strip())):
            raise InvalidInput("the query is empty; give a text, a vector, or keys to be like")
        if self.mode is not Mode.VECTOR and words is None:
            raise InvalidInput(f"mode {self.mode.value!r} needs a query text, or words beside a vector")
        if self.mode is Mode.VECTOR and self.keywords is not None:
            raise InvalidInput("words are for the modes 'text' and 'hybrid'; this one compares vectors alone")
        if self.mode is not Mode.VECTOR and self.mmr is not None:
            raise InvalidInput(f"mmr works on vectors; use mode 'vector' rather than {self.mode.value!r}")
        if self.mode is Mode.TEXT and (self.like or self.unlike):
            raise InvalidInput("like and unlike work on vectors; use mode 'vector' or 'hybrid'")
        for keys in (self.like, self.unlike):
            if isinstance(keys, str) or not isinstance(keys, Sequence):
                raise InvalidInput("like and unlike take lists of keys: like=['p1']")

    @property
    def is_plain(self) -> bool:
        """Whether it is only a search by a vector, perhaps under a filter, without other records."""
        return self.mode is Mode.VECTOR and not self.like and not self.unlike

    @property
    def words(self) -> str | None:
        """What is looked for as keywords: what was given as such, else the query, where it is a text."""
        if self.keywords is not None:
            return self.keywords
        return self.query if isinstance(self.query, str) else None


def is_item(query: Any) -> bool:
    """Whether a query is a thing that an encoder reads and no text: a picture or a row, rather than numbers."""
    if isinstance(query, np.ndarray):
        return query.dtype == np.uint8 and query.ndim >= 2
    if isinstance(query, (os.PathLike, bytes, bytearray, Mapping, Picture)):
        return True
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(query, pillow.Image)


def encode_item(encoder: Encoder, query: Any) -> FloatVector:
    """The vector of one thing by an encoder that may read texts, pictures or rows; InvalidInput where it cannot."""
    if isinstance(encoder, DerivedEncoder):
        made: FloatVector = encoder.transform([part[None, :] for part in _encoded_parts(encoder, query)])[0]
        return made
    read = encoder.spec.modalities
    if isinstance(query, str) and Modality.TEXT in read:
        return encoder.encode_query(query)
    prepare = getattr(encoder, "prepare", None)
    if Modality.IMAGE in read and not isinstance(query, Mapping):
        assert prepare is not None
        return encoder.encode_query(prepare(read_picture(query)))
    if Modality.ROW in read and isinstance(query, Mapping):
        partly = getattr(encoder, "prepare_query", prepare)
        assert partly is not None
        return encoder.encode_query(partly(query))
    wanted = " or ".join(sorted(one.value for one in read))
    kinds = {Mapping: "a row", str: "a text"}
    known = next((word for kind, word in kinds.items() if isinstance(query, kind)), None)
    came = known or ("a picture" if is_item(query) else f"of type {type(query).__name__}")
    raise InvalidInput(f"the encoder {encoder.spec.name!r} reads {wanted}; the query is {came}")


def _encoded_parts(encoder: DerivedEncoder, query: Any) -> list[FloatVector]:
    """The vector of a query in each of the spaces that one is made of; of several, a mapping may say what in which."""
    names = encoder.spec.parents
    if len(names) == 1 or not isinstance(query, Mapping) or not query.keys() & set(names):
        if len(names) > 1 and not all(encoder.has_parent(name) for name in names):
            raise InvalidInput(
                f"of the spaces {', '.join(names)} one holds vectors computed elsewhere; say what to look for in each,"
                f" as {{{', '.join(f'{name!r}: ...' for name in names)}}}"
            )
        return [encode_item(parent, query) for parent in encoder.parents.values()]
    lacking = [name for name in names if name not in query]
    others = [str(name) for name in query if name not in names]
    if lacking or others:
        told = f"says nothing of {' and '.join(lacking)}" if lacking else f"speaks of {' and '.join(others)}, too"
        raise InvalidInput(f"the query {told}; it must of each of {', '.join(names)}, and of nothing else")
    parts: list[FloatVector] = []
    for name in names:
        part = query[name]
        if isinstance(part, Vector):
            part = part.array
        is_numbers = not isinstance(part, str) and not is_item(part)
        vector = check_vector(part, name=name) if is_numbers else encode_item(encoder.parent(name), part)
        if len(vector) != (dim := encoder.dims[name]):
            raise InvalidInput(f"for {name!r} the query has {len(vector)} numbers; the space holds {dim}")
        parts.append(vector)
    return parts


def search(collection: Collection, asked: Asked) -> Hits:
    """The hits of one query; a point is compared in its own space where no other is named."""
    asked.check()
    if not type(asked.k) is type(asked.offset) is int:  # NumPy's are taken, but not by FAISS
        asked = asked._replace(k=int(asked.k), offset=int(asked.offset))
    if asked.space is None and isinstance(asked.query, Vector) and asked.query.space.belongs_to(collection):
        asked = asked._replace(space=asked.query.space.name)
    store = collection.store
    if not store.exists():
        return _no_hits()
    if asked.where is not None:
        asked = asked._replace(where=parse_where(asked.where))
    encoded = _encoded_query(collection, asked)
    plain = asked.is_plain
    if plain:
        hits = _at_last_look(collection, asked, encoded)
        if hits is not None:
            return hits
    with store.reading() as transaction:
        row = catalog.find_collection(transaction, collection.name)
        if row is None:
            return _no_hits()
        if plain:
            store.search.note_look(transaction, row)
        tree = None if asked.where is None else checked_where(transaction, row, asked.where)
        space = space_row(transaction, row, asked.space)
        vector, excluded = _query_vector(transaction, collection, row, space, encoded, asked)
        query = Query(asked.mode, vector, asked.words, asked.k, asked.offset, tree, asked.mmr, excluded)
        return store.search.answer(transaction, row, space, query)


def _at_last_look(collection: Collection, asked: Asked, encoded: FloatVector | Vector | None) -> Hits | None:
    """The hits of a plain query, if nothing was written since the last look; None where it is to be asked anew."""
    look = collection.store.search.last_look(collection.name)
    if look is None or encoded is None:
        return None
    space = look.spaces.get(asked.space or look.collection.default_space)
    if space is None or space.dim is None:
        return None
    if isinstance(encoded, Vector):
        if encoded.space_id != space.space_id or encoded.space.store is not collection.store:
            return None
        encoded = encoded.array
    if encoded.shape[0] != space.dim:
        return None
    assert asked.where is None or isinstance(asked.where, Node)
    query = Query(Mode.VECTOR, encoded, None, asked.k, asked.offset, asked.where, asked.mmr)
    return collection.store.search.answer_at(collection.store.database, look, space, query)


def search_batch(
    collection: Collection,
    queries: Sequence[SearchQuery] | FloatMatrix,
    k: int,
    *,
    where: Where | None,
    space: str | None,
) -> list[Hits]:
    """The hits of many queries, in their order."""
    _check_page(k, 0)
    k = int(k)
    _check_batch(queries)
    store = collection.store
    if not store.exists():
        return [_no_hits() for _ in queries]
    vectors = _encoded_batch(collection, queries, space)
    with store.reading() as transaction:
        row = catalog.find_collection(transaction, collection.name)
        if row is None or not len(queries):
            return [_no_hits() for _ in queries]
        tree = None if where is None else checked_where(transaction, row, where)
        searched = space_row(transaction, row, space)
        checked = _checked_batch(collection, searched, vectors)
        return store.search.answer_batch(transaction, row, searched, checked, k, tree, store.database.damage)


def neighbours(
    collection: Collection,
    queries: Sequence[SearchQuery] | FloatMatrix,
    k: int,
    *,
    where: Where | None,
    space: str | None,
) -> Neighbours:
    """The nearest records of many queries, by number alone."""
    _check_page(k, 0)
    k = int(k)
    _check_batch(queries)
    vectors = _encoded_batch(collection, queries, space)
    with collection.store.reading() as transaction:
        row = catalog.require_collection(transaction, collection.name)
        tree = None if where is None else checked_where(transaction, row, where)
        searched = space_row(transaction, row, space)
        checked = _checked_batch(collection, searched, vectors)
        return collection.store.search.neighbours(transaction, row, searched, checked, k, tree)


def _checked_batch(
    collection: Collection, row: SpaceRow, vectors: Sequence[FloatVector | Vector] | FloatMatrix
) -> FloatMatrix:
    """Queries as one matrix (n, dim), each checked against its space."""
    if isinstance(vectors, np.ndarray) and len(vectors):
        first = _checked_of_many(collection, row, vectors, 0)
        with np.errstate(over="ignore", invalid="ignore"):
            squared = np.einsum("ij,ij->i", vectors, vectors)
        if first.shape == vectors[0].shape and squared.min() > _MODEST and squared.max() < 1 / _MODEST:
            return vectors
    if not len(vectors):
        return np.empty((0, row.dim or 0), np.float32)
    return np.stack([_checked_of_many(collection, row, vectors, place) for place in range(len(vectors))])


def _checked_of_many(
    collection: Collection, row: SpaceRow, vectors: Sequence[FloatVector | Vector] | FloatMatrix, place: int
) -> FloatVector:
    """One of many queries, checked; the error says which one it is."""
    try:
        return _checked_query(collection, row, vectors[place])
    except EmbedstoreError as error:
        raise type(error)(f"query {place + 1} of {len(vectors)}: {error}") from None


def _encoding_space(collection: Collection, space: str | None) -> SpaceRow | None:
    """The space whose encoder encodes a query; None where there is none, which is refused in the search's snapshot."""
    layout = collection.layout()
    return None if layout is None else layout.spaces.get(space or layout.collection.default_space)


def _encoded_query(collection: Collection, asked: Asked) -> FloatVector | Vector | None:
    """What a query is as a vector, before any snapshot is opened."""
    if isinstance(asked.query, str):
        space = None if asked.mode is Mode.TEXT else _encoding_space(collection, asked.space)
        return None if space is None else encode_item(collection.store.encoder_of(space), asked.query)
    if is_item(asked.query):
        space = _encoding_space(collection, asked.space)
        if space is None:
            layout = collection.layout()
            held = "none yet" if layout is None else ", ".join(layout.spaces)
            raise SpaceNotFound(f"{collection.name!r} has no space {asked.space!r} to search in; it has: {held}")
        if space.encoder or not isinstance(asked.query, np.ndarray):
            return encode_item(collection.store.encoder_of(space), asked.query)
    if asked.query is None or isinstance(asked.query, Vector):
        return asked.query
    return check_vector(asked.query, name="query")


def _encoded_batch(
    collection: Collection, queries: Sequence[SearchQuery] | FloatMatrix, space: str | None
) -> list[FloatVector | Vector] | FloatMatrix:
    is_floats = isinstance(queries, np.ndarray) and queries.ndim == 2 and queries.dtype.kind == "f"
    if is_floats and len(queries) and np.size(queries[0]) and not np.ma.isMaskedArray(queries):
        with np.errstate(over="ignore"):  # what is too large is refused as infinite
            return np.ascontiguousarray(queries, np.float32)
    texts = [(place, query) for place, query in enumerate(queries) if isinstance(query, str)]
    items = [(place, query) for place, query in enumerate(queries) if is_item(query)]
    encoded: dict[int, FloatVector] = {}
    by = _encoding_space(collection, space) if texts or items else None
    if by is not None:
        for place, text in texts:
            if not text.strip():
                raise InvalidInput(f"query {place + 1} of {len(queries)} is empty; every query must have words")
        encoder = collection.store.encoder_of(by)
        if Modality.TEXT in encoder.spec.modalities and texts:
            done = encoder.encode([text for _, text in texts])
            made = done.vectors
            if done.n_truncated:
                what = f"{done.n_truncated:,} of {len(texts):,} queries are longer than"
                _LOG.warning("%s %r reads; their ends were left out", what, encoder.spec.name)
            encoded = {place: made[line] for line, (place, _) in enumerate(texts)}
        else:
            items = [*texts, *items]
        encoded.update((place, encode_item(encoder, item)) for place, item in items)
    vectors: list[FloatVector | Vector] = []
    for place, query in enumerate(queries):
        if isinstance(query, str) or is_item(query):
            vectors.append(encoded.get(place, np.empty(0, np.float32)))
        else:
            vectors.append(query if isinstance(query, Vector) else _vector_of_many(query, place, len(queries)))
    return vectors


def _vector_of_many(query: Any, place: int, n: int) -> FloatVector:
    try:
        return check_vector(query)
    except InvalidRecord as error:
        raise InvalidInput(f"query {place + 1} of {n}: {error.reason}") from None


def _query_vector(
    transaction: Transaction,
    collection: Collection,
    row: CollectionRow,
    space: SpaceRow,
    query: FloatVector | Vector | None,
    asked: Asked,
) -> tuple[FloatVector | None, tuple[int, ...]]:
    """The vector to search with, and the records that are not to come back."""
    if asked.mode is Mode.TEXT:
        return None, ()
    parts = [] if query is None else [_checked_query(collection, space, query)]
    if not (asked.like or asked.unlike):
        if not parts:
            raise InvalidInput("nothing to search for: give a query text, a vector, or keys in like")
        return parts[0], ()
    if space.dim is None:
        raise InvalidInput(f"the space {space.name!r} holds no vectors yet, so nothing can be like another")
    near = [*parts, *vectors_by_key(transaction, row, asked.like, space.name)]
    far = vectors_by_key(transaction, row, asked.unlike, space.name)
    vector = _between(near, far, space)
    ids = record_ids_of(transaction, row, as_keys([*asked.like, *asked.unlike]))
    return vector.astype(np.float32), tuple(ids.values())


def _checked_query(collection: Collection, row: SpaceRow, query: FloatVector | Vector) -> FloatVector:
    if isinstance(query, Vector):
        if query.space_id != row.space_id or query.space.store is not collection.store:
            raise SpaceMismatch(
                f"the vector belongs to the space {query.space_name!r}; it cannot be compared with"
                f" '{collection.name}/{row.name}'"
            )
        vector = query.array
    else:
        vector = query
    if row.dim is not None and vector.shape[0] != row.dim:
        made_by = f", made by {row_encoder(row)}" if row.encoder else ""
        raise SpaceMismatch(
            f"the query has {vector.shape[0]} numbers; the space '{collection.name}/{row.name}' holds"
            f" {row.dim}{made_by}"
        )
    if _MODEST < float(np.vdot(vector, vector)) < 1 / _MODEST:  # which, unlike ``dot``, does not warn of an overflow
        return vector  # finite, not zero, and of a length that can be compared: nothing more to ask
    if not np.all(np.isfinite(vector)):
        raise InvalidInput("the query vector holds NaN or infinity; every number must be finite")
    if Metric(row.metric) is Metric.COSINE and not np.any(vector):
        raise InvalidInput("the query vector is all zeros, which has no direction to compare by cosine")
    check_length(float(np.linalg.norm(vector.astype(np.float64))), None, "query")
    return vector


def _no_hits() -> Hits:
    return Hits([], exact=True, plan="the collection is empty", explanation={})


def _between(near: Sequence[FloatVector], far: FloatMatrix, space: SpaceRow) -> FloatVector:
    """What is like some vectors and unlike others: the mean of those less the mean of these.

    By distance, where a difference is no place, it is the mean of those, as far again from the mean of these.
    """
    assert space.dim is not None
    metric = Metric(space.metric)
    cosine = metric is Metric.COSINE
    liked, unliked = _mean_direction(near, space.dim, cosine), _mean_direction(far, space.dim, cosine)
    if metric is Metric.EUCLIDEAN:
        if not len(near):
            raise InvalidInput("by distance, unlike leads away from something: give a query, or keys in like, as well")
        return 2 * liked - unliked if len(far) else liked
    if cosine and np.array_equal(liked, unliked):
        raise InvalidInput("like and unlike cancel each other out; there is no direction left to search in")
    return liked - unliked


def _mean_direction(vectors: Sequence[FloatVector] | FloatMatrix, dim: int, cosine: bool) -> FloatVector:
    """The mean of vectors, each of length one under cosine; zeros where there is none."""
    if not len(vectors):
        return np.zeros(dim, np.float32)
    matrix = np.asarray(vectors, np.float32)
    if cosine:
        matrix = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return matrix.mean(axis=0)  # type: ignore[no-any-return]


def _check_batch(queries: Any) -> None:
    is_one = isinstance(queries, np.ndarray) and queries.ndim == 0
    if is_one or isinstance(queries, (str, bytes)) or not isinstance(queries, (Sequence, np.ndarray)):
        raise InvalidInput(f"queries are given as a list or a matrix; this is {type(queries).__name__}")
    if isinstance(queries, np.ndarray) and queries.ndim == 1 and queries.size and queries.dtype.kind in "iuf":
        raise InvalidInput(
            f"queries are a matrix, (n, dim); this is one vector of {queries.size} numbers: search takes one"
        )


def _check_page(k: int, offset: int) -> None:
    if type(k) is type(offset) is int and k > 0 <= offset:
        return
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InvalidInput(f"k is {k!r}; it must be a whole number from 1 on")
    if isinstance(offset, bool) or not isinstance(offset, (int, np.integer)) or offset < 0:
        raise InvalidInput(f"offset is {offset!r}; it must be a whole number from 0 on")
