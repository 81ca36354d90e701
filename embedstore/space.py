"""A space of a collection: where its vectors live, and where new points are made."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_text, check_vector, check_whole
from embedstore.errors import InvalidInput, SpaceNotFound
from embedstore.model import FloatMatrix, Hits, Metric
from embedstore.storage import catalog
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.fitted import fitted_of
from embedstore.transforms import is_derived, parents_of
from embedstore.vector import Vector

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.encoders import EncoderSpec
    from embedstore.filters.parse import Where
    from embedstore.latent.analogies import AnalogyReport
    from embedstore.latent.directions import Direction
    from embedstore.latent.points import Points
    from embedstore.latent.structure import Drift, Likeness, Structure
    from embedstore.store import Store


class Space:
    """The vectors of one encoder or source. Made by ``Collection.space``."""

    def __init__(self, collection: Collection, row: SpaceRow) -> None:
        self._collection = collection
        self._row = row

    def __str__(self) -> str:
        return f"{self._collection.name}/{self._row.name}"

    def __repr__(self) -> str:
        return f"Space({str(self)!r}, dim {self._row.dim}, {self._row.metric}, {self._row.recipe})"

    @property
    def name(self) -> str:
        """The space's name within its collection."""
        return self._row.name

    @property
    def space_id(self) -> int:
        """The space's identity within its store."""
        return self._row.space_id

    @property
    def dim(self) -> int | None:
        """How many numbers a vector has; None until the first vector fixes it."""
        return self._row.dim

    @property
    def metric(self) -> Metric:
        """How two vectors are compared."""
        return Metric(self._row.metric)

    @property
    def collection(self) -> Collection:
        """The collection whose space it is."""
        return self._collection

    @property
    def store(self) -> Store:
        """The store that holds the space."""
        return self._collection.store

    def belongs_to(self, collection: Collection) -> bool:
        """Whether it is a space of that collection."""
        return self.store is collection.store and self._collection.name == collection.name

    def encode(self, item: Any) -> Vector:
        """The point of a text, a picture (a path, bytes, a Pillow image) or a row, by the space's encoder.

        InvalidInput where it has none, or one that reads something else.
        """
        from embedstore.asking import encode_item

        if isinstance(item, str):
            check_text(item)
        return Vector(self, encode_item(self.store.encoder_of(self._row), item))

    def decode(self, vectors: FloatMatrix) -> list[Any]:
        """What points (n, dim) stand for: a Pillow image or a row each; InvalidInput where nothing leads back."""
        from embedstore.encoders import Decoder

        encoder = self.store.encoder_of(self._row)
        if not isinstance(encoder, Decoder):
            raise InvalidInput(
                f"the vectors of {self} cannot be decoded: {encoder.spec.name!r} only encodes; an autoencoder does both"
            )
        return encoder.decode(np.ascontiguousarray(vectors, np.float32))

    def vector(self, array: Sequence[float] | np.ndarray) -> Vector:
        """A point from numbers (dim,)."""
        checked = check_vector(array)
        if self._row.dim is not None and checked.shape[0] != self._row.dim:
            raise InvalidInput(f"a vector of {self} has {self._row.dim} numbers; this has {checked.shape[0]}")
        if not np.all(np.isfinite(checked)):
            raise InvalidInput("the vector holds NaN or infinity; every number must be finite")
        return Vector(self, checked)

    def __getitem__(self, key: str) -> Vector:
        return Vector(self, self._collection.vectors([key], space=self.name)[0], frozenset({key}))

    def mean(self, vectors: Sequence[Vector]) -> Vector:
        """The mean of points of this space."""
        if not vectors:
            raise InvalidInput("the mean of no vectors is not defined; give at least one")
        if not all(isinstance(one, Vector) for one in vectors):
            raise InvalidInput("a mean is taken of points; make them by space['key'] or space.encode(...)")
        total = vectors[0]
        for one in vectors[1:]:
            total = total + one
        return total / len(vectors)

    def places(self, label: str | None = None, where: Where | None = None) -> tuple[FloatMatrix, list[Any]]:
        """The vectors (n, 2) of a space of two numbers, and what a field says of each record (None: nothing)."""
        from embedstore.latent.points import look_at

        if self._row.dim != 2:
            raise InvalidInput(f"{self} has {self._row.dim} numbers a vector; a map has 2: latent map makes one")

        def found(points: Points) -> tuple[FloatMatrix, list[Any]]:
            says = {} if label is None else points.labels(label, where)
            parts = list(points.blocks())
            if not parts:
                raise InvalidInput("there is no record to show; the space, or the filter, leaves none")
            ids = np.concatenate([one for one, _ in parts]).tolist()
            return np.concatenate([vectors for _, vectors in parts]), [says.get(one) for one in ids]

        return look_at(self._collection, self.name, where, found)

    def structure(self, *, where: Where | None = None, sample: int = 2000, seed: int = 0) -> Structure:
        """How many dimensions the space uses, how it fills them, hubs, duplicates; by a sample of the records."""
        from embedstore.latent.structure import structure

        return structure(self._collection, self.name, where, sample, seed)

    def drift(self, first: Where, second: Where, *, sample: int = 1000, seed: int = 0) -> Drift:
        """Whether the records under two filters are of one distribution here; by a sample of each."""
        from embedstore.latent.structure import drift

        return drift(self._collection, self.name, first, second, sample, seed)

    def likeness(self, other: str, *, sample: int = 2000, seed: int = 0) -> Likeness:
        """How alike this space and another of its collection are: common neighbours, and kernel alignment."""
        from embedstore.latent.points import look_at
        from embedstore.latent.structure import likeness

        def here(points: Points) -> Likeness:
            return look_at(self._collection, other, None, lambda others: likeness(points, others, sample, seed))

        return look_at(self._collection, self.name, None, here)

    @property
    def root(self) -> Space:
        """The space that this one is made of in the end; itself where it is made of none, or of several."""
        made_of = self.made_of().get("made_of")
        return self if not isinstance(made_of, str) else self._collection.space(made_of).root

    @property
    def encoder_name(self) -> str:
        """The name of what makes the vectors; 'none' for vectors from elsewhere."""
        spec = _spec(self._row)
        return "none" if spec is None else spec.name

    @property
    def family(self) -> str:
        """The kind of encoder that makes the vectors; empty for vectors from elsewhere."""
        spec = _spec(self._row)
        return "" if spec is None else spec.family

    def interpolate(self, a: str | Vector, b: str | Vector, steps: int = 9, *, way: str = "slerp") -> list[Vector]:
        """Points from one record or point to another, both among them: 'slerp' along the great circle, or 'lerp'."""
        from embedstore.latent.walks import between

        start, end = (self[one] if isinstance(one, str) else one for one in (a, b))
        return between(start, end, steps, way)

    def traverse(self, start: str | Vector, dimension: int, values: Sequence[float] | None = None) -> list[Vector]:
        """A record or point with other values of one of its numbers; else seven from -3 to 3."""
        from embedstore.latent.walks import along

        return along(self[start] if isinstance(start, str) else start, dimension, values)

    def sample(self, n: int = 8, *, of: str = "prior", seed: int = 0) -> list[Vector]:
        """Points drawn at random, to be decoded.

        of: 'prior', the standard normal distribution of a variational autoencoder's space, or 'posterior', a Gaussian
        mixture fitted to (at most 20,000 of) the space's vectors, whose number of parts the BIC chooses.
        """
        from embedstore.latent.walks import drawn

        return drawn(self._collection, self, n, of, seed)

    def fit_direction(
        self,
        name: str,
        *,
        positive: Where | Sequence[str] | None = None,
        negative: Where | Sequence[str] | None = None,
        pairs: Sequence[Sequence[str]] | None = None,
        method: str | None = None,
        seed: int = 0,
    ) -> Direction:
        """Fit the direction from one group of records to another, and keep it with the space by its name.

        positive, negative: filters, or lists of keys; or pairs of keys, from which and to which it leads. method:
        'mean', the difference of the means (the default); 'logistic', the normal of a logistic regression; 'pairs', the
        first principal component of the differences of pairs (the default for pairs). ``about`` of what comes back
        tells what it is worth.
        """
        from embedstore.latent.directions import fit_direction

        return fit_direction(
            self._collection, self, name, positive=positive, negative=negative, pairs=pairs, method=method, seed=seed
        )

    def direction(self, name: str) -> Direction:
        """A direction that was fitted before; RecordNotFound where there is none of that name."""
        from embedstore.latent.directions import direction_of

        return direction_of(self._collection, self, name)

    def directions(self) -> list[Direction]:
        """Every direction that the space keeps, by name."""
        from embedstore.latent.directions import directions_of

        return directions_of(self._collection, self)

    def forget_direction(self, name: str) -> None:
        """Forget a direction; RecordNotFound where there is none of that name."""
        from embedstore.latent.directions import forget_direction

        forget_direction(self._collection, self, name)

    def analogy(
        self,
        a: str,
        b: str,
        c: str,
        k: int = 10,
        *,
        method: str = "3cosadd",
        include_sources: bool = False,
        where: Where | None = None,
    ) -> Hits:
        """What is to the record ``c`` as ``b`` is to ``a``, best first: "man", "king", "woman" is to find "queen".

        method: '3cosadd' (the cosine to b - a + c, of vectors of length one), '3cosmul' (of shares, multiplied: Levy
        and Goldberg 2014), 'pairdirection' (the cosine of x - c to b - a). The three records themselves are left out
        unless they are asked for. Every vector is compared.
        """
        from embedstore.latent.analogies import analogy

        return analogy(self._collection, self.name, (a, b, c), k, method, where, include_sources=include_sources)

    def analogies(
        self, questions: str | os.PathLike[str] | Sequence[Sequence[str]], *, method: str = "3cosadd"
    ) -> AnalogyReport:
        """How many analogies the space solves, by section, among the words of all questions.

        questions: a file in the form of word2vec's questions-words.txt (lines of four words, sections after a colon),
        or lists of four keys. The three given words are left out of the candidates. A word that is no key as written is
        looked for in small letters, as a title, and in capitals. Questions with a word that no record has are left out
        and counted.
        """
        from embedstore.latent.analogies import solve

        return solve(self._collection, self.name, questions, method)

    def nearest(
        self, vector: Vector, k: int = 10, *, where: Where | None = None, exclude: Sequence[str] = ()
    ) -> Hits:
        """The ``k`` records nearest to a point, leaving out the keys of ``exclude``."""
        check_whole("k", k, 1)
        hits = self._collection.search(vector, k + len(exclude), where=where, space=self.name)
        kept = [hit for hit in hits if hit.key not in exclude][:k]
        ranked = [type(hit)(hit.record, hit.score, rank) for rank, hit in enumerate(kept, start=1)]
        return Hits(ranked, exact=hits.exact, plan=hits.plan, explanation=hits.explanation)

    def index(self, recipe: str | None = None) -> Space:
        """Bring the index up to date, or build it anew by another recipe."""
        return self._collection.index(space=self.name, recipe=recipe)

    @property
    def has_encoder(self) -> bool:
        """Whether its vectors are made, by an encoder or out of another space's; else they are given."""
        return bool(self._row.encoder)

    def describe(self) -> dict[str, Any]:
        """What the space is now, as plain values."""
        cache = self.store.search.space_cache(self.space_id)
        with self.store.reading() as transaction:
            owner = catalog.require_collection(transaction, self._collection.name)
            now = {one.space_id: one for one in catalog.known_spaces(transaction, owner.collection_id).values()}
            if self.space_id not in now:
                there = ", ".join(one.name for one in now.values())
                raise SpaceNotFound(f"the space '{self}' is no more; the collection has: {there}")
            row = self._row = now[self.space_id]
            uncached, unindexed = cache.pending(transaction, owner, row)
        return {
            "name": row.name, "dim": row.dim, "metric": row.metric, "dtype": row.dtype, "recipe": row.recipe,
            "encoder": row_encoder(row), "fingerprint": row.fingerprint, "n_vectors": row.n_live,
            "digest": row.digest.hex(), "n_uncached": uncached, "n_unindexed": unindexed,
            "building": cache.is_building(), **self.tuning(), **self.made_of(),
        }  # fmt: skip

    def made_of(self) -> dict[str, Any]:
        """Of which space or spaces this one is made, by what method, and what it keeps; empty where of none."""
        if not is_derived(self._row):
            return {}
        with self.store.reading() as transaction:
            kept = fitted_of(transaction, self.space_id, "")
            parents = parents_of(self._row, catalog.known_spaces(transaction, self._row.collection_id))
        names = [parent.name for parent in parents]
        about = {} if kept is None else kept.description.get("about", {})
        return {"made_of": names[0] if len(names) == 1 else names, **about}

    def tuning(self) -> dict[str, Any]:
        """The recall that was measured last, of which recipe and settings, when, and why to measure it again."""
        from embedstore.making_spaces import tuning_state

        report, why = tuning_state(self._collection, self._row)
        if report is None:
            return {"recall": None}
        if report["recipe"] != self._row.recipe:
            what = f"it was tuned with {report['recipe']!r}; its recipe is {self._row.recipe!r} now"
            return {"recall": None, "tune_again": what}
        return {
            "recall": report["recall"], "recall_at": report["k"], "wanted_recall": report["wanted_recall"],
            "settings": dict(report["settings"]), "search_microseconds": report["search_microseconds"],
            "measured_at": report["measured_at"], "tune_again": why,
        }  # fmt: skip

    def tuning_curve(self) -> list[dict[str, Any]]:
        """Every setting that was measured when the space was last tuned; empty where it never was."""
        from embedstore.making_spaces import tuning_state

        report, _ = tuning_state(self._collection, self._row)
        return [] if report is None else copy.deepcopy(report["curve"])


def row_encoder(row: SpaceRow) -> str:
    """A space's encoder in a few words."""
    spec = _spec(row)
    return "none" if spec is None else spec.describe()


def _spec(row: SpaceRow) -> EncoderSpec | None:
    from embedstore.encoders import EncoderSpec

    return EncoderSpec.from_json(row.encoder) if row.encoder else None
