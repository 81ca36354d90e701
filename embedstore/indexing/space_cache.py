"""Keeps a space's view up with the commits, and its cache files with the view.

The truth is in SQL. A cache file that is missing, damaged or of another history is rebuilt from there; vectors that
came after it are read as a delta, so every view holds exactly what was committed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from embedstore.devices import CPU, Device, DeviceKind
from embedstore.errors import DeviceUnavailable, EmbedstoreError, StorageFailed, StorageFull, StoreLocked
from embedstore.forking import tell_forked
from embedstore.indexing import cachefile
from embedstore.indexing.byte_copy import ByteCopy, is_worthwhile
from embedstore.indexing.cache_writing import BUILD_LOCK, belongs, costs_of, died_since, stream_vectors, write_cache
from embedstore.indexing.cachefile import CacheFile, DamagedCache
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_index import Settings, open_faiss
from embedstore.indexing.fitting import Shape
from embedstore.indexing.recipes import RECIPES_K, Placement, Recipe, find_recipe
from embedstore.indexing.selection import Selection
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.indexing.staleness import fewest_indexed, is_stale, most_unindexed
from embedstore.indexing.steps import Steps
from embedstore.model import BoolVector, IntVector, Metric
from embedstore.storage.catalog import CollectionRow, SpaceRow, tuning_of
from embedstore.storage.database import Transaction
from embedstore.storage.files import is_full
from embedstore.storage.layout import ID_SHIFT
from embedstore.storage.locks import ProcessLock

_LOG = logging.getLogger("embedstore")
_BUILD_BYTES = 16 << 20
"""A delta larger than this is written to the cache rather than kept in memory."""
_GROWTH = 8
"""So is only one larger than this part of what is there, since all of it is written again."""
_MAX_ATTEMPTS = 3
_BUILD_SECONDS = 3600.0
_MAX_SELECTIONS = 64
_SELECTION_BYTES = 256 << 20
_BYTES_A_ROW = 10
"""Of a selection at most: its mask, its numbers, its bits."""
_UNTRIED: dict[str, Any] = {}
_Answer = TypeVar("_Answer")


class SpaceCache:
    """The views of one space in this process, and its folder of cache files."""

    def __init__(self, folder: Path, device: Device = CPU) -> None:
        self._folder = folder
        self._device = device
        self._guard = threading.Lock()
        self._view: SpaceView | None = None
        self._settled: tuple[SpaceView | None, SpaceRow | None] = (None, None)
        self._selections: OrderedDict[str, Selection | None] = OrderedDict()
        self._selected_change = -1
        self._selected_seqs: IntVector | None = None
        self._not_on_gpu: tuple[int, int] | None = None  # the mark of the cache that did not fit on a GPU
        self.on_stale: Callable[[CollectionRow, SpaceRow], None] | None = None
        """Called where the index lags behind its space so far that it should be built anew."""
        tell_forked(self)

    def forget_parent(self) -> None:
        """Make the lock anew, which another thread may have held; and leave the parent's GPU alone."""
        self._guard = threading.Lock()
        if self._view is not None and self._view.gpu is not None:
            self._view.gpu.leave_to_parent()
            self._forget_view()

    def view(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> SpaceView:
        """The space as the transaction sees it. ``space.dim`` must be known."""
        settled = self.settled(collection, space)
        if settled is not None:
            return settled
        with self._guard:
            view = self._view
            if view is not None and not self._serves(view, space):
                view = None  # the recipe was changed, or an index for it was built, here or by another process
            if view is not None and view.change == collection.last_change:
                self._note_settled(view, collection, space)
                return view
            if view is None or view.change > collection.last_change or view.change < collection.log_floor:
                # Either the first view, or the transaction sees an older commit than another thread did.
                view = self._opened(transaction, collection, space)
            view = self._on_gpu(self._caught_up(transaction, collection, space, view), space)
            if self._view is None or view.change >= self._view.change:
                self._view = view
                self._note_settled(view, collection, space)
            else:
                self._tell_stale(view, collection, space)
            return view

    def settled(self, collection: CollectionRow, space: SpaceRow) -> SpaceView | None:
        """The view of a commit, where it is here and there is nothing to do about it."""
        view, of_space = self._settled
        if view is None or view.change != collection.last_change or of_space != space or self._is_mended(view):
            return None
        return view

    def _note_settled(self, view: SpaceView, collection: CollectionRow, space: SpaceRow) -> None:
        """Let a view be returned without a look for a better one, where there is none to come."""
        used = "" if view.approximate is None else view.approximate.recipe.name
        wanted = "" if find_recipe(space.recipe).exact else space.recipe
        if used == wanted and not is_stale(view, space):
            self._settled = (view, space)
        else:
            self._tell_stale(view, collection, space)

    def _tell_stale(self, view: SpaceView, collection: CollectionRow, space: SpaceRow) -> None:
        if self.on_stale is not None and is_stale(view, space):
            self.on_stale(collection, space)

    def _forget_view(self) -> None:
        """Have whoever asks next open the files anew."""
        self._view = None
        self._settled = (None, None)
        self._selections.clear()

    def selection(self, view: SpaceView, asked: str, allowed: Callable[[], BoolVector | None]) -> Selection | None:
        """The rows of a view that a filter allows; kept for whoever asks the same of the same view again.

        asked: the filter in words that no other filter has; allowed: gives its mask over the rows, None for all.
        """
        with self._guard:
            if self._selected_change != view.change or self._selected_seqs is not view.seqs:
                # Not by the change alone: a view of the same commit may have other rows, of a cache that was made anew.
                self._selections.clear()
                self._selected_change, self._selected_seqs = view.change, view.seqs
            if asked in self._selections:
                self._selections.move_to_end(asked)
                return self._selections[asked]
        made = view.selection(allowed())
        with self._guard:
            if self._selected_change == view.change and self._selected_seqs is view.seqs:
                self._selections[asked] = made
                most = min(max(_SELECTION_BYTES // (_BYTES_A_ROW * view.n_rows + 1), 4), _MAX_SELECTIONS)
                while len(self._selections) > most:
                    self._selections.popitem(last=False)
        return made

    def looking(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, look: Callable[[SpaceView], _Answer]
    ) -> _Answer:
        """What ``look`` makes of the view; again where a page that it reads is found damaged, of a cache made anew."""
        for _ in range(_MAX_ATTEMPTS):
            view = self.view(transaction, collection, space)
            try:
                return look(view)
            except DamagedCache as error:
                self.discard(view, error)
        raise StorageFailed(f"the cache of the space {space.name!r} is damaged again and again; check the disk")

    def discard(self, view: SpaceView, error: DamagedCache) -> None:
        """Set aside a cache that was found damaged while a view of it was searched; the next view is made without it.

        One that another process published since then stays.
        """
        with self._guard:
            if self._manifest_mark() == view.mark:
                _LOG.warning("cache damaged, rebuilding from the database: %s", error)
                cachefile.set_aside(self._folder)
            self._forget_view()

    def _serves(self, view: SpaceView, space: SpaceRow) -> bool:
        """Whether a view is searched by the space's recipe, as far as the cache files allow."""
        if self._is_mended(view):
            return False
        used = "" if view.approximate is None else view.approximate.recipe.name
        wanted = "" if find_recipe(space.recipe).exact else space.recipe
        if used == wanted and not is_stale(view, space):
            return True
        return wanted == used == "" or self._manifest_mark() == view.mark  # else there is a newer one to open

    def _is_mended(self, view: SpaceView) -> bool:
        """Whether a view's copy in bytes is damaged, and another cache was published since."""
        damaged = view.byte_copy is not None and view.byte_copy.is_damaged
        return damaged and self._manifest_mark() != view.mark

    def _manifest_mark(self) -> tuple[int, int] | None:
        """What tells one published manifest from another without reading it."""
        try:
            status = os.stat(self._folder / cachefile.MANIFEST_NAME)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def build(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow,
        recipe: Recipe,
        *,
        wait: bool = True,
        over_newer: bool = False,
    ) -> bool:
        """Write the cache anew from SQL, with the index of ``recipe``; False where a newer one was published meanwhile.

        Another builder is waited for; without ``wait`` StoreLocked is raised.

        Searches go on with the view there is until the new one is written.
        """
        try:
            timeout = _BUILD_SECONDS if wait else 0.0
            written = write_cache(
                self._folder, transaction, collection, space, recipe, timeout=timeout, over_newer=over_newer
            )
        except OSError as error:
            if isinstance(error, EmbedstoreError):
                raise
            kind = StorageFull if is_full(error) else StorageFailed
            raise kind(f"the cache in {self._folder} cannot be written: {error.strerror or error}") from error
        with self._guard:
            self._forget_view()  # whoever asks next opens the new files
        return written

    def refresh(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, *, always: bool = False
    ) -> None:
        """Write the exact vectors to the cache, where it lacks some or holds dead ones; a kept index stays.

        always: also where only the number of the newest commit is missing.
        """
        view = self.view(transaction, collection, space)
        current = not always or self.cached_change(transaction, collection, space) == collection.last_change
        if current and view.delta.shape[0] == 0 and view.alive is None and not _lacks_copy(view, space):
            return
        with self._guard:
            if self._try_write(transaction, collection, space, view):
                self._forget_view()

    def cached_change(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> int:
        """The commit that the cache files hold; the newest one where there are none of this history."""
        with suppress(DamagedCache):
            manifest = cachefile.read_manifest(self._folder)
            if manifest is not None and belongs(transaction, collection, space, manifest):
                return int(manifest["change"])
        return collection.last_change

    def lags(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> bool:
        """Whether the published cache lacks an index, or has one that lacks many vectors; nothing is opened for it."""
        recipe = find_recipe(space.recipe)
        if recipe.exact or space.dim is None or space.n_live < fewest_indexed(recipe):
            return False
        manifest = None
        with suppress(DamagedCache):
            manifest = cachefile.read_manifest(self._folder)
        if manifest is None or not belongs(transaction, collection, space, manifest):
            return True
        index = manifest.get("index")
        if index is None or index["recipe"] != recipe.name:
            return True
        return space.last_seq - index["hi_seq"] > most_unindexed(index["n_vectors"])  # type: ignore[no-any-return]

    def pending(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> tuple[int, int]:
        """How many vectors are not in the published cache, and how many its index does not cover."""
        recipe = find_recipe(space.recipe)
        cached = indexed = 0
        with suppress(DamagedCache):
            manifest = cachefile.read_manifest(self._folder)
            if manifest is not None and belongs(transaction, collection, space, manifest):
                cached = manifest["hi_seq"]
                index = manifest.get("index")
                indexed = index["hi_seq"] if index is not None and index["recipe"] == recipe.name else 0
        n_unindexed = 0
        if not recipe.exact and space.n_live >= recipe.min_vectors:
            n_unindexed = _n_after(transaction, space, indexed)
        return _n_after(transaction, space, cached), n_unindexed

    def is_building(self) -> bool:
        """Whether a process is writing the cache just now."""
        if not (self._folder / BUILD_LOCK).exists():
            return False
        try:
            with ProcessLock(self._folder / BUILD_LOCK).held(0):
                return False
        except StoreLocked:
            return True
        except (StorageFailed, StorageFull):  # there is no folder yet, or it cannot be written to
            return False

    # ---- opening

    def _opened(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> SpaceView:
        """The view that the cache files hold, or an empty one."""
        mark = self._manifest_mark()
        for _ in range(_MAX_ATTEMPTS):
            manifest = None
            try:
                manifest = cachefile.read_manifest(self._folder)
                if manifest is not None and belongs(transaction, collection, space, manifest):
                    return replace(self._from_manifest(transaction, space, manifest), mark=mark)
                break
            except DamagedCache as error:
                if self._replaced_meanwhile(manifest):
                    continue
                _LOG.warning("cache damaged, rebuilding from the database: %s", error)
                cachefile.set_aside(self._folder)
                break
        return replace(_empty_view(space), mark=mark)

    def _replaced_meanwhile(self, manifest: dict[str, Any] | None) -> bool:
        """Whether another builder published a cache, and removed the files of this one, while it was opened."""
        try:
            return manifest is not None and cachefile.read_manifest(self._folder) not in (manifest, None)
        except DamagedCache:
            return False

    def _from_manifest(self, transaction: Transaction, space: SpaceRow, manifest: dict[str, Any]) -> SpaceView:
        assert space.dim is not None
        n_rows = manifest["n_vectors"]
        files = {name: CacheFile(**fields) for name, fields in manifest["files"].items()}
        index = manifest.get("index")
        if index is not None and (index["recipe"] != space.recipe or find_recipe(space.recipe).exact):
            index = None
        pages = None
        mapped = index is not None and find_recipe(index["recipe"]).mapped
        if mapped and "exact_sums" in files and files["exact"].n_bytes > cachefile.CHECKED_WHOLE:
            pages = cachefile.open_pages(self._folder, files["exact"], files["exact_sums"])
            content = pages.content
        else:
            content = cachefile.open_checked(self._folder, files["exact"])
            if index is not None:  # few of these pages are looked at again
                cachefile.release(content)
        # A plain array over the map: indexing the memmap class costs more than the work itself.
        base = np.asarray(content).view("<f4").reshape(n_rows, space.dim)
        labels = np.array(cachefile.open_checked(self._folder, files["labels"])).view("<i8").reshape(2, n_rows)
        view = SpaceView(
            space_id=space.space_id, metric=Metric(space.metric), dim=space.dim, change=manifest["change"],
            last_seq=manifest["hi_seq"], base=base, delta=np.empty((0, space.dim), np.float32),
            seqs=labels[0], record_ids=labels[1], alive=None, n_alive=n_rows, pages=pages,
            base_hash=files["exact"].page_hash, byte_copy=self._byte_copy(manifest, files),
            has_no_copy=manifest.get("bytes", _UNTRIED) is None,
        )  # fmt: skip
        if index is None:
            return view
        approximate = self._approximate(view, files, index)
        settings, for_k = settings_of(transaction, space, approximate.recipe)
        return replace(view, approximate=replace(approximate, settings=settings, for_k=for_k))

    def _byte_copy(self, manifest: dict[str, Any], files: dict[str, CacheFile]) -> ByteCopy | None:
        """The copy in bytes, where there is one. One that is damaged is done without: it only makes searches faster."""
        if "bytes" not in files:
            return None
        shape, steps = (manifest["n_vectors"], manifest["dim"]), Steps.from_json(manifest["bytes"])
        try:
            return ByteCopy(self._folder, files["bytes"], steps, shape, Metric(manifest["metric"]))
        except DamagedCache as error:
            _LOG.warning("every vector is compared until the cache is written anew: %s", error)
            return None

    def _approximate(self, view: SpaceView, files: dict[str, CacheFile], index: dict[str, Any]) -> Approximate:
        """An index together with the way from its positions to the view's rows."""
        recipe = find_recipe(index["recipe"])
        centre = None
        if "index_centre" in files:
            centre = np.array(cachefile.open_checked(self._folder, files["index_centre"])).view("<f4")
        shape = Shape(recipe, view.metric, view.dim, centre, index.get("exponent", 0))
        by_page = recipe.mapped and files["index"].n_bytes > cachefile.CHECKED_WHOLE
        sums = files.get("index_sums") if by_page else None
        opened = open_faiss(self._folder, files["index"], shape, index["n_vectors"], sums)
        costs = costs_of(index)
        if files["index_labels"].name == files["labels"].name:
            return Approximate.of_rows(opened, view.base, dict(recipe.search), costs, view.pages)
        raw = cachefile.open_checked(self._folder, files["index_labels"])
        seqs = raw.view("<i8").reshape(2, index["n_vectors"])[0]
        places = np.minimum(np.searchsorted(view.seqs, seqs), max(view.n_rows - 1, 0))
        row_of = np.where(view.seqs[places] == seqs, places, -1) if view.n_rows else np.full(seqs.shape, -1)
        row_of = row_of.astype(np.int64)
        after = int(np.searchsorted(view.seqs, index["hi_seq"], side="right"))
        present = row_of >= 0
        return Approximate(
            opened, row_of, after, dict(recipe.search), costs, None if present.all() else Selection(present)
        )

    def _try_write(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, view: SpaceView
    ) -> bool:
        """Write the exact cache, if nobody else is at it and the folder allows; whether it was written."""
        try:
            return write_cache(self._folder, transaction, collection, space, None, timeout=0.0, reused=view)
        except (StoreLocked, StorageFailed, StorageFull, OSError) as error:
            if not isinstance(error, StoreLocked):  # another process is at it, which is as well
                _LOG.info("the cache in %s was not written: %s", self._folder, error)
            return False

    def _on_gpu(self, view: SpaceView, space: SpaceRow) -> SpaceView:
        """A view with its cached vectors or index on a GPU as well, where its recipe asks and the device allows it.

        Raises DeviceUnavailable where a GPU was asked for by name and cannot be used.
        """
        recipe = find_recipe(space.recipe)
        if recipe.placement is not Placement.GPU or self._device.kind is DeviceKind.CPU:
            return view
        if view.gpu is not None or not view.base.shape[0] or (view.approximate is None and not recipe.exact):
            return view
        if view.mark is not None and view.mark == self._not_on_gpu:
            return view
        from embedstore.indexing.gpu import GpuFlat, GpuIndex
        from embedstore.indexing.gpus import LOST, chosen_gpus, gpus_are_lost

        gpus = chosen_gpus(self._device)
        if not gpus:
            if gpus_are_lost():
                _LOG.warning("searching on the CPU: %s", LOST)
                self._device = CPU
            return view
        if self._view is not None and self._view.gpu is not None:  # which makes room for the new one
            self._view, self._settled = replace(self._view, gpu=None), (None, None)
        required = self._device.must_be_gpu
        try:
            if view.approximate is None:
                return replace(view, gpu=GpuFlat(view.base, view.metric, gpus, required=required))
            return replace(view, gpu=GpuIndex(view.approximate.index, gpus, required=required))
        except DeviceUnavailable as error:
            if required:
                raise
            _LOG.warning("searching on the CPU: %s", error)
            self._not_on_gpu = view.mark
            if view.mark is None:
                self._device = CPU
            return view

    # ---- catching up

    def _caught_up(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, view: SpaceView
    ) -> SpaceView:
        """``view`` with every commit that the transaction sees and the view lacks."""
        if view.change == collection.last_change:
            return view
        n_uncached = space.last_seq - view.last_seq + view.delta.shape[0]
        enough = max(_BUILD_BYTES, view.base.nbytes // _GROWTH)
        if view.last_seq < space.last_seq and n_uncached * view.dim * 4 > enough:
            if self._try_write(transaction, collection, space, view):
                view = self._opened(transaction, collection, space)
                if view.change == collection.last_change:
                    return view
        return self._with_delta(transaction, collection, space, view)

    @staticmethod
    def _with_delta(
        transaction: Transaction, collection: CollectionRow, space: SpaceRow, view: SpaceView
    ) -> SpaceView:
        alive = view.alive
        gone = died_since(transaction, space, view.change)
        chunks = list(stream_vectors(transaction, space, view.last_seq, space.last_seq))
        delta, seqs, record_ids, extents = view.delta, view.seqs, view.record_ids, list(view.extents)
        if chunks:
            new = np.concatenate([prepared(chunk[0], view.metric) for chunk in chunks])
            delta = np.concatenate([delta, new])
            extents = [extent.with_rows(new, view.metric) for extent in extents]
            seqs = np.concatenate([seqs, *(chunk[1] for chunk in chunks)])
            record_ids = np.concatenate([record_ids, *(chunk[2] for chunk in chunks)])
        if alive is not None and seqs.size > alive.size:
            alive = np.concatenate([alive, np.ones(seqs.size - alive.size, np.bool_)])
        if gone.size and seqs.size:
            places = np.minimum(np.searchsorted(seqs, gone), seqs.size - 1)
            places = places[seqs[places] == gone]
            alive = np.ones(seqs.size, np.bool_) if alive is None else alive.copy()
            alive[places] = False
        n_alive = int(seqs.size if alive is None else np.count_nonzero(alive))
        approximate = view.approximate
        if approximate is not None:  # it may have been tuned meanwhile
            settings, for_k = settings_of(transaction, space, approximate.recipe)
            approximate = replace(approximate, settings=settings, for_k=for_k)
        return replace(
            view, change=collection.last_change, last_seq=space.last_seq, delta=delta, seqs=seqs,
            record_ids=record_ids, alive=alive, n_alive=n_alive, approximate=approximate, extents=extents,
        )  # fmt: skip


def settings_of(transaction: Transaction, space: SpaceRow, recipe: Recipe) -> tuple[Settings, int]:
    """The search parameters of an index by a recipe, and the number of hits that they are for.

    They are the recipe's, or those that were chosen for it by measurement.
    """
    tuning = tuning_of(transaction, space.space_id)
    if tuning is None or tuning["recipe"] != recipe.name:
        return dict(recipe.search), RECIPES_K
    return {**recipe.search, **tuning["settings"]}, int(tuning["k"])


def _lacks_copy(view: SpaceView, space: SpaceRow) -> bool:
    """Whether searches of a view would gain by a copy in bytes that is not there, or damaged."""
    if view.byte_copy is not None:
        return view.byte_copy.is_damaged
    return not view.has_no_copy and is_worthwhile(find_recipe(space.recipe), view.base.shape[0], view.dim)


def _n_after(transaction: Transaction, space: SpaceRow, seq: int) -> int:
    """How many live vectors of a space have a greater seq."""
    if seq == 0:
        return space.n_live
    base = space.space_id * ID_SHIFT
    row = transaction.one(
        "SELECT count(*) FROM vectors WHERE vector_id > :low AND vector_id <= :high",
        {"low": base + seq, "high": base + space.last_seq},
    )
    assert row is not None
    return int(row[0])


def _empty_view(space: SpaceRow) -> SpaceView:
    assert space.dim is not None
    return SpaceView(
        space_id=space.space_id, metric=Metric(space.metric), dim=space.dim, change=0, last_seq=0,
        base=np.empty((0, space.dim), np.float32), delta=np.empty((0, space.dim), np.float32),
        seqs=np.empty(0, np.int64), record_ids=np.empty(0, np.int64), alive=None, n_alive=0,
    )  # fmt: skip
