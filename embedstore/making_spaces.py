"""Adds spaces to a collection, fills them with vectors, and keeps their indexes and caches up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from embedstore.checks import check_whole
from embedstore.deriving import fill_derived, named_newly, refuse_where_derived
from embedstore.encoders.ahead import one_ahead
from embedstore.errors import EncoderUnavailable, InvalidInput, InvalidRecord, SpaceNotFound
from embedstore.filters.parse import Where
from embedstore.indexing.faiss_index import require_served
from embedstore.indexing.recipes import Placement, Recipe, find_recipe
from embedstore.model import Metric, Record, WriteReport
from embedstore.names import check_collection_name, check_dim
from embedstore.reading import checked_where, space_row, stream_records
from embedstore.records import Batch, Preparer
from embedstore.storage import catalog
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.writing import CollectionWriter
from embedstore.storing.committing import commit_missing_vectors
from embedstore.storing.encoding import Encoded, encode_batch
from embedstore.storing.layout import modalities_read
from embedstore.transforms import derived_spaces

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.encoders import Encoder, EncoderSpec
    from embedstore.searching.tuning import TuningReport

_PAGE = 2000
_LEAST_PAGE, _PAGE_BYTES = 32, 32 << 20


def add_space(
    collection: Collection, name: str, *, encoder: str, metric: Metric | None, recipe: str, dim: int | None
) -> WriteReport:
    """Add a space, and encode every record into it where it has an encoder."""
    check_collection_name(name)
    check_dim(dim)
    collection.create()
    made = collection.store.load_encoder(encoder)
    if metric is None:
        metric = Metric.COSINE if made is None else made.spec.metric
    recipe_name = require_served(recipe, metric).name
    with collection.store.database.write() as transaction:
        transaction.alone()
        row = catalog.require_collection(transaction, collection.name)
        if name in catalog.spaces_of(transaction, row.collection_id):
            raise InvalidInput(f"the collection {collection.name!r} has a space {name!r} already")
        catalog.create_space(
            transaction, row.collection_id, name, dim=dim if made is None else made.spec.dim, metric=metric.value,
            encoder="" if made is None else made.spec.to_json(),
            fingerprint="" if made is None else made.spec.fingerprint, recipe=recipe_name,
        )  # fmt: skip
    return WriteReport() if made is None else fill_spaces(collection)


def add_encoder_spaces(
    collection: Collection, specs: Mapping[str, EncoderSpec], *, metric: Metric, recipe: str
) -> WriteReport:
    """Add a space for each of several encoders, at once, and encode every record that lacks a vector in any.

    Those that are there already go on; InvalidInput for one of another encoder.
    """
    collection.create()
    recipe_name = require_served(recipe, metric).name
    new: list[str] = []
    with collection.store.database.write() as transaction:
        transaction.alone()
        owner = catalog.require_collection(transaction, collection.name)
        spaces = catalog.spaces_of(transaction, owner.collection_id)
        for name, spec in specs.items():
            check_collection_name(name)
            if name not in spaces:
                catalog.create_space(
                    transaction, owner.collection_id, name, dim=spec.dim, metric=metric.value, encoder=spec.to_json(),
                    fingerprint=spec.fingerprint, recipe=recipe_name,
                )  # fmt: skip
                new.append(name)
            elif spaces[name].fingerprint != spec.fingerprint:
                raise InvalidInput(
                    f"the collection {collection.name!r} has a space {name!r} of another encoder; give the new ones a"
                    " prefix, or drop it"
                )
            elif spaces[name].metric != metric.value:
                raise InvalidInput(f"the space {name!r} compares by {spaces[name].metric!r}, not by {metric.value!r}")
    try:
        return fill_spaces(collection)
    except (InvalidRecord, EncoderUnavailable):
        # A record that this model cannot read, or no model: no write would succeed while the spaces are there.
        for name in new:
            drop_space(collection, name)
        raise


def add_vector_spaces(
    collection: Collection, dims: Mapping[str, int], *, metric: Metric, default: str, recipe: str = "flat"
) -> None:
    """Make the collection, where it is not there, with ``default`` as its default space, and spaces for given vectors.

    InvalidInput for a space that is there and is another.
    """
    recipe_name = require_served(recipe, metric).name
    collection.store.ensure()
    with collection.store.database.write() as transaction:
        transaction.alone()
        owner = catalog.find_collection(transaction, collection.name)
        names = list(dims)
        if owner is None:
            owner = catalog.create_collection(transaction, collection.name, default)
            names = [default, *(one for one in dims if one != default)]
        spaces = catalog.spaces_of(transaction, owner.collection_id)
        for name in names:
            check_collection_name(name)
            if name not in spaces:
                catalog.create_space(
                    transaction, owner.collection_id, name, dim=dims[name], metric=metric.value, encoder="",
                    fingerprint="", recipe=recipe_name,
                )  # fmt: skip
            elif (spaces[name].dim, spaces[name].encoder, spaces[name].metric) != (dims[name], "", metric.value):
                raise InvalidInput(
                    f"the collection {collection.name!r} has a space {name!r} that holds something else; give the new"
                    " ones a prefix, or another collection"
                )
    collection.spaces_changed()


def drop_space(collection: Collection, name: str) -> int:
    """Delete a space that is not the collection's default one; the number of vectors that it held."""
    store = collection.store
    with store.database.write() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, name)
        if row.name == owner.default_space:
            raise InvalidInput(f"{name!r} is the default space of {collection.name!r}, which always has one")
        refuse_where_derived(catalog.spaces_of(transaction, owner.collection_id), row, "drop them first")
        writer = CollectionWriter(transaction, collection.name)
        writer.drop_space(name)
        writer.finish()
    store.search.forget_space(row.space_id)
    return row.n_live


def reencode(collection: Collection, encoder: str, space: str | None, *, keep: bool) -> WriteReport:
    """Make a space anew with another encoder, beside the old one, which serves until they change places.

    The new one has the name ``SPACE.next`` until it is whole; it is gone on with where an earlier call was interrupted.
    What is written meanwhile is encoded into both. keep: the old one stays, as ``SPACE.old``.
    """
    store = collection.store
    made = store.load_encoder(encoder)
    if made is None:
        raise InvalidInput("'none' encodes nothing; give an encoder, or add a space with encoder='none'")
    with store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, space)
        spaces = catalog.spaces_of(transaction, owner.collection_id)
    following, old = f"{row.name}.next", f"{row.name}.old"
    _check_reencoding(collection, row, made, keep=keep and old in spaces)
    if not keep:
        refuse_where_derived(spaces, row, f"drop them first, or keep the old space as {old!r} (keep=True, --keep)")
    begun = spaces.get(following)
    if begun is not None and begun.fingerprint != made.spec.fingerprint:
        raise InvalidInput(
            f"there is a space {following!r}, not of this encoder; drop it first (spaces {collection.name} --drop"
            f" {following}), or go on with the encoder that it was begun with"
        )
    report = WriteReport()
    try:
        if begun is None:
            report += add_space(
                collection, following, encoder=encoder, metric=Metric(row.metric), recipe=row.recipe, dim=None
            )
        # Again: what was interrupted, or written by others just before they knew of the space.
        report += fill_spaces(collection)
    except (InvalidRecord, EncoderUnavailable):
        # A record that this encoder cannot encode, or no encoder: no write would succeed while the space is there.
        if following in [one.name for one in collection.spaces()]:
            drop_space(collection, following)
        raise
    with store.database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        here = writer.spaces.get(row.name)
        if here is None or here.space_id != row.space_id or following not in writer.spaces:
            raise InvalidInput(f"another writer changed the spaces of {collection.name!r} meanwhile; try again")
        if keep:
            writer.rename_space(row.name, old, named_newly(writer.spaces, row, old))
        else:
            writer.drop_space(row.name)
        writer.rename_space(following, row.name)
        writer.finish()
    if not keep:
        store.search.forget_space(row.space_id)
    return report


def _check_reencoding(collection: Collection, row: SpaceRow, made: Encoder, *, keep: bool) -> None:
    """InvalidInput where a space cannot be made anew by this encoder."""
    if not row.encoder:
        raise InvalidInput(f"the vectors of {row.name!r} were computed elsewhere, so there is nothing to encode again")
    if made.spec.fingerprint == row.fingerprint:
        raise InvalidInput(f"the space {row.name!r} of {collection.name!r} is made by that very encoder")
    if keep:
        raise InvalidInput(f"there is a space {row.name + '.old'!r} already; drop it first, or do not keep the old one")
    read = modalities_read(row)
    if not read <= made.spec.modalities:
        lacks = " and ".join(sorted(one.value for one in read - made.spec.modalities))
        raise InvalidInput(f"the encoder {made.spec.name!r} does not read {lacks}, which the space {row.name!r} holds")


def record_pages(collection: Collection, where: Where | None, size: int) -> Iterator[list[Record]]:
    """The records under a filter, so many at a time, each page of a snapshot of its own.

    A snapshot that is held for long keeps the database from tidying away what is written meanwhile.
    """
    after = 0
    while True:
        with collection.store.reading() as transaction:
            owner = catalog.require_collection(transaction, collection.name)
            tree = None if where is None else checked_where(transaction, owner, where)
            page = list(stream_records(transaction, owner, tree, size, after=after))
        if not page:
            return
        after = page[-1][0]
        yield [record for _, record in page]


def fill_spaces(collection: Collection) -> WriteReport:
    """Encode every record that lacks a vector in a space with an encoder; goes on where it was interrupted."""
    report = WriteReport()
    layout = collection.layout()
    if layout is None:
        return report
    preparer = Preparer(vector_space=layout.collection.default_space, stored=True)
    store = collection.store
    n_numbers = sum(space.dim or 0 for space in layout.spaces.values() if space.encoder)
    size = min(_PAGE, max(_LEAST_PAGE, _PAGE_BYTES // (4 * max(n_numbers, 1))))

    def pages() -> Iterator[list[Batch]]:
        for page in record_pages(collection, None, size):
            yield [preparer.prepare([
                {
                    "key": record.key, "text": record.content, "modality": record.modality, "uri": record.uri,
                    "metadata": record.metadata,
                }
                for record in page
                if record.content is not None
            ])]  # fmt: skip

    def work(batch: Batch) -> tuple[Batch, Encoded]:
        return batch, encode_batch(store.database, collection.name, batch, store.encoder_of)

    for done in one_ahead(pages(), work, 1):  # a page is committed while the next is encoded
        for batch, encoded in done:
            if encoded.vectors:
                report += commit_missing_vectors(store.database, collection.name, batch, store.encoder_of, encoded)
    for space in derived_spaces(layout.spaces):
        report.updated += fill_derived(collection, space.name)
    return report


def _why_not(recipe: Recipe, row: SpaceRow) -> str:
    """Why a recipe cannot be measured on a space."""
    if Metric(row.metric) not in recipe.metrics:
        return f"does not serve vectors compared by {row.metric!r}"
    if recipe.placement is Placement.GPU:
        return "is built on a GPU, and FAISS finds none here"
    return f"needs {recipe.min_vectors:,} vectors beside those that are held out; the space has {row.n_live:,}"


def tune_index(
    collection: Collection,
    space: str | None,
    *,
    recall: float,
    k: int,
    recipes: Sequence[str] | None,
    seed: int,
    progress: Callable[[str], None],
) -> TuningReport:
    """Measure recipes and settings on a space's own vectors, keep the fastest that reaches the recall, and build it."""
    from embedstore.searching.tuning import candidates, n_held_out, tune

    store = collection.store
    _check_tuning(recall, k, recipes, seed)
    with store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, space)
        for name in recipes or ():
            if not candidates(Metric(row.metric), [find_recipe(name).name], row.n_live - n_held_out(row.n_live)):
                raise InvalidInput(f"the recipe {name!r} {_why_not(find_recipe(name), row)}; see 'embedstore recipes'")
        if row.dim is None:
            raise InvalidInput(f"the space {row.name!r} holds no vectors yet, so nothing can be measured")
        report = store.search.space_cache(row.space_id).looking(
            transaction, owner, row,
            lambda view: tune(view, recall=recall, k=k, names=recipes, seed=seed, progress=progress),
        )  # fmt: skip
    with store.database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        if row.name not in writer.spaces or writer.spaces[row.name].space_id != row.space_id:
            raise SpaceNotFound(f"the space {row.name!r} was deleted while it was measured")
        writer.set_recipe(row.name, report.recipe)
        writer.set_tuning(row.name, report.to_json())
        writer.finish()
    build_index(collection, row.name, report.recipe)
    return report


def _check_tuning(recall: float, k: int, recipes: Sequence[str] | None, seed: int) -> None:
    """InvalidInput for arguments of ``tune`` that cannot be."""
    if isinstance(recall, bool) or not isinstance(recall, (int, float)) or not 0 < recall <= 1:
        raise InvalidInput(f"recall is {recall!r}; it must be above 0 and at most 1")
    check_whole("k", k, 1)
    check_whole("seed", seed, 0)
    if isinstance(recipes, str) or (recipes is not None and not recipes):
        raise InvalidInput(f"recipes is {recipes!r}; give a list of names, or None for all: recipes=['hnsw']")


def tuning_state(collection: Collection, row: SpaceRow) -> tuple[dict[str, Any] | None, str | None]:
    """What was measured when a space was last tuned, and why it should be tuned again; None for either if nothing."""
    from embedstore.searching.tuning import why_tune_again

    store = collection.store
    with store.reading() as transaction:
        report = catalog.tuning_of(transaction, row.space_id)
        if report is None or row.dim is None:
            return report, None
        owner = catalog.require_collection(transaction, collection.name)
        cache = store.search.space_cache(row.space_id)
        return report, cache.looking(transaction, owner, row, lambda view: why_tune_again(report, view))


def begin_lagging_builds(collection: Collection) -> None:
    """Begin to build, in the background, the indexes of a collection that lack many of its vectors."""
    store = collection.store
    if not store.builds_in_background or not store.exists():
        return
    with store.reading() as transaction:
        owner = catalog.find_collection(transaction, collection.name)
        if owner is None:
            return
        for row in catalog.spaces_of(transaction, owner.collection_id).values():
            if store.search.space_cache(row.space_id).lags(transaction, owner, row):
                store.begin_build(owner, row)


def build_index(
    collection: Collection, space: str | None, recipe: str | None, *, wait: bool = True
) -> SpaceRow:
    """Bring a space's index up to date with every record, or build it anew by another recipe.

    Raises StoreLocked where another process is building it, unless that is waited for.
    """
    store = collection.store
    with store.reading() as transaction:
        row = space_row(transaction, catalog.require_collection(transaction, collection.name), space)
    wanted = require_served(row.recipe if recipe is None else recipe, Metric(row.metric))
    if wanted.name != row.recipe:
        with store.database.write() as transaction:
            writer = CollectionWriter(transaction, collection.name)
            writer.set_recipe(row.name, wanted.name)
            writer.finish()
    for over_newer in (False, True):
        with store.reading() as transaction:
            owner = catalog.require_collection(transaction, collection.name)
            row = space_row(transaction, owner, row.name)
            cache = store.search.space_cache(row.space_id)
            if row.dim is None or cache.build(transaction, owner, row, wanted, wait=wait, over_newer=over_newer):
                break  # else another process published a newer cache while its build was waited for
    return row


def refresh_caches(collection: Collection) -> None:
    """Write what caches lack: exact vectors of every space, and the keyword index."""
    search = collection.store.search
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        for row in catalog.spaces_of(transaction, owner.collection_id).values():
            if row.dim is not None and row.n_live:
                search.space_cache(row.space_id).refresh(transaction, owner, row)
        if transaction.dialect.name == "sqlite":
            search.keyword_cache(owner.collection_id).catch_up(transaction, owner)
