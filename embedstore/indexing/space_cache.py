"""Keeps a space's view up with the commits, and its cache files with the view.

The truth is in SQL. A cache file that is missing, damaged or of another history is rebuilt from there; vectors that
came after it are read as a delta, so every view holds exactly what was committed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import DamagedRow, EmbedstoreError, StorageFailed, StorageFull, StoreLocked
from embedstore.failpoints import reach
from embedstore.forking import tell_forked
from embedstore.indexing import cachefile
from embedstore.indexing.cachefile import CacheFile, CacheWriter, DamagedCache
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_index import FaissIndex, build_index, open_faiss, write_faiss
from embedstore.indexing.recipes import Recipe, find_recipe
from embedstore.indexing.space_view import Approximate, SpaceView
from embedstore.model import FloatMatrix, IntVector, Metric
from embedstore.records import vector_is_whole
from embedstore.storage.catalog import CollectionRow, SpaceRow, commit_name, store_uuid
from embedstore.storage.database import Transaction
from embedstore.storage.files import is_full, make_private
from embedstore.storage.layout import ID_SHIFT
from embedstore.storage.locks import ProcessLock

_LOG = logging.getLogger("embedstore")
_BUILD_BYTES = 16 << 20
"""A delta larger than this is written to the cache rather than kept in memory."""
_CHUNK_ROWS = 4096
_MAX_ATTEMPTS = 3


class SpaceCache:
    """The views of one space in this process, and its folder of cache files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._guard = threading.Lock()
        self._view: SpaceView | None = None
        self._opened_mark: tuple[int, int] | None = None
        tell_forked(self)

    def forget_parent(self) -> None:
        """Make the lock anew; another thread may have held it."""
        self._guard = threading.Lock()

    def view(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> SpaceView:
        """The space as the transaction sees it. ``space.dim`` must be known."""
        with self._guard:
            view = self._view
            if view is not None and not self._serves(view, space):
                view = None  # the recipe was changed, or an index for it was built, here or by another process
            if view is not None and view.change == collection.last_change:
                return view
            if view is None or view.change > collection.last_change or view.change < collection.log_floor:
                # Either the first view, or the transaction sees an older commit than another thread did.
                view = self._opened(transaction, collection, space)
            view = self._caught_up(transaction, collection, space, view)
            if self._view is None or view.change >= self._view.change:
                self._view = view
            return view

    def _serves(self, view: SpaceView, space: SpaceRow) -> bool:
        """Whether a view is searched by the space's recipe, as far as the cache files allow."""
        used = "" if view.approximate is None else view.approximate.recipe
        wanted = "" if find_recipe(space.recipe).exact else space.recipe
        return used == wanted or (wanted != "" and self._manifest_mark() == self._opened_mark)

    def _manifest_mark(self) -> tuple[int, int] | None:
        """What tells one published manifest from another without reading it."""
        try:
            status = os.stat(self._folder / cachefile.MANIFEST_NAME)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def build(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, recipe: Recipe
    ) -> SpaceView:
        """Write the cache anew from SQL, with the index of ``recipe``; waits for another builder.

        Searches go on with the view there is until the new one is written.
        """
        try:
            self._write_cache(transaction, collection, space, recipe, timeout=600.0)
        except OSError as error:
            if isinstance(error, EmbedstoreError):
                raise
            kind = StorageFull if is_full(error) else StorageFailed
            raise kind(f"the cache in {self._folder} cannot be written: {error.strerror or error}") from error
        with self._guard:
            self._view = self._caught_up(
                transaction, collection, space, self._opened(transaction, collection, space)
            )
            return self._view

    def refresh(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, *, always: bool = False
    ) -> None:
        """Write the exact vectors to the cache, where it lacks some or holds dead ones; a kept index stays.

        always: also where only the number of the newest commit is missing.
        """
        view = self.view(transaction, collection, space)
        current = not always or self.cached_change(transaction, collection, space) == collection.last_change
        if current and view.delta.shape[0] == 0 and view.alive is None:
            return
        with self._guard:
            keep = None if view.approximate is None else view.approximate.recipe
            if self._try_write(transaction, collection, space, keep):
                self._view = self._caught_up(
                    transaction, collection, space, self._opened(transaction, collection, space)
                )

    def cached_change(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> int:
        """The commit that the cache files hold; the newest one where there are none of this history."""
        with suppress(DamagedCache):
            manifest = cachefile.read_manifest(self._folder)
            if manifest is not None and belongs(transaction, collection, space, manifest):
                return int(manifest["change"])
        return collection.last_change

    def pending(self) -> tuple[int, int]:
        """Of the newest view: rows that are not in the cache, and rows that its index does not cover."""
        view = self._view
        if view is None:
            return 0, 0
        unindexed = 0 if view.approximate is None else view.n_rows - view.approximate.first_row_after
        return view.delta.shape[0], unindexed

    # ---- opening

    def _opened(self, transaction: Transaction, collection: CollectionRow, space: SpaceRow) -> SpaceView:
        """The view that the cache files hold, or an empty one."""
        self._opened_mark = self._manifest_mark()
        for _ in range(_MAX_ATTEMPTS):
            manifest = None
            try:
                manifest = cachefile.read_manifest(self._folder)
                if manifest is not None and belongs(transaction, collection, space, manifest):
                    return self._from_manifest(space, manifest)
                break
            except DamagedCache as error:
                if self._replaced_meanwhile(manifest):
                    continue
                _LOG.warning("cache damaged, rebuilding from the database: %s", error)
                cachefile.set_aside(self._folder)
                break
        return _empty_view(space)

    def _replaced_meanwhile(self, manifest: dict[str, Any] | None) -> bool:
        """Whether another builder published a cache, and removed the files of this one, while it was opened."""
        try:
            return manifest is not None and cachefile.read_manifest(self._folder) not in (manifest, None)
        except DamagedCache:
            return False

    def _from_manifest(self, space: SpaceRow, manifest: dict[str, Any]) -> SpaceView:
        assert space.dim is not None
        n_rows = manifest["n_vectors"]
        files = {name: CacheFile(**fields) for name, fields in manifest["files"].items()}
        base, labels = self._open_pair(files["exact"], files["labels"], n_rows, space.dim)
        view = SpaceView(
            space_id=space.space_id, metric=Metric(space.metric), dim=space.dim, change=manifest["change"],
            last_seq=manifest["hi_seq"], base=base, delta=np.empty((0, space.dim), np.float32),
            seqs=labels[0], record_ids=labels[1], alive=None, n_alive=n_rows,
        )  # fmt: skip
        index = manifest.get("index")
        if index is None or index["recipe"] != space.recipe or find_recipe(space.recipe).exact:
            return view
        opened = open_faiss(
            self._folder, files["index"], find_recipe(index["recipe"]), view.metric, space.dim, index["n_vectors"]
        )
        return replace(view, approximate=self._mapped(view, opened, files, index))

    def _mapped(
        self, view: SpaceView, opened: FaissIndex, files: dict[str, CacheFile], index: dict[str, Any]
    ) -> Approximate:
        """An index together with the way from its positions to the view's rows."""
        if files["index_labels"].name == files["labels"].name:
            return Approximate(opened, index["recipe"], None, view.n_rows)
        raw = cachefile.open_checked(self._folder, files["index_labels"])
        seqs = raw.view("<i8").reshape(2, index["n_vectors"])[0]
        places = np.minimum(np.searchsorted(view.seqs, seqs), max(view.n_rows - 1, 0))
        row_of = np.where(view.seqs[places] == seqs, places, -1) if view.n_rows else np.full(seqs.shape, -1)
        after = int(np.searchsorted(view.seqs, index["hi_seq"], side="right"))
        return Approximate(opened, index["recipe"], row_of.astype(np.int64), after)

    def _open_pair(
        self, exact: CacheFile, labels: CacheFile, n_rows: int, dim: int
    ) -> tuple[FloatMatrix, IntVector]:
        """The matrix (n, dim) and the labels (2, n): seqs and record ids."""
        if exact.n_bytes != n_rows * dim * 4 or labels.n_bytes != n_rows * 16:
            raise DamagedCache(f"{self._folder} holds files of another size than {n_rows:,} vectors need")
        # A plain array over the map: indexing the memmap class costs more than the work itself.
        matrix = np.asarray(cachefile.open_checked(self._folder, exact)).view("<f4").reshape(n_rows, dim)
        pair = np.array(cachefile.open_checked(self._folder, labels)).view("<i8").reshape(2, n_rows)
        return matrix, pair

    # ---- catching up

    def _caught_up(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, view: SpaceView
    ) -> SpaceView:
        """``view`` with every commit that the transaction sees and the view lacks."""
        if view.change == collection.last_change:
            return view
        n_uncached = space.last_seq - view.last_seq + view.delta.shape[0]
        if view.last_seq < space.last_seq and n_uncached * view.dim * 4 > _BUILD_BYTES:
            keep = None if view.approximate is None else view.approximate.recipe
            if self._try_write(transaction, collection, space, keep):
                view = self._opened(transaction, collection, space)
                if view.change == collection.last_change:
                    return view
        return self._with_delta(transaction, collection, space, view)

    @staticmethod
    def _with_delta(
        transaction: Transaction, collection: CollectionRow, space: SpaceRow, view: SpaceView
    ) -> SpaceView:
        alive = view.alive
        dead = transaction.all(
            "SELECT seq FROM dead_vectors WHERE space_id = :space AND change > :change",
            {"space": space.space_id, "change": view.change},
        )
        chunks = list(stream_vectors(transaction, space, view.last_seq, space.last_seq))
        delta, seqs, record_ids = view.delta, view.seqs, view.record_ids
        if chunks:
            delta = np.concatenate([delta, *(prepared(chunk[0], view.metric) for chunk in chunks)])
            seqs = np.concatenate([seqs, *(chunk[1] for chunk in chunks)])
            record_ids = np.concatenate([record_ids, *(chunk[2] for chunk in chunks)])
        if alive is not None and seqs.size > alive.size:
            alive = np.concatenate([alive, np.ones(seqs.size - alive.size, np.bool_)])
        gone = np.array([row[0] for row in dead], np.int64)
        if gone.size and seqs.size:
            places = np.minimum(np.searchsorted(seqs, gone), seqs.size - 1)
            places = places[seqs[places] == gone]
            alive = np.ones(seqs.size, np.bool_) if alive is None else alive.copy()
            alive[places] = False
        n_alive = int(seqs.size if alive is None else np.count_nonzero(alive))
        return replace(
            view, change=collection.last_change, last_seq=space.last_seq, delta=delta, seqs=seqs,
            record_ids=record_ids, alive=alive, n_alive=n_alive,
        )  # fmt: skip

    # ---- writing

    def _try_write(
        self, transaction: Transaction, collection: CollectionRow, space: SpaceRow, keep_index: str | None
    ) -> bool:
        """Write the exact cache, if nobody else is at it and the folder allows; whether it was written."""
        try:
            self._write_cache(transaction, collection, space, None, timeout=0.0, keep_index=keep_index is not None)
        except (StoreLocked, StorageFailed, StorageFull, OSError) as error:
            _LOG.info("the cache in %s was not written: %s", self._folder, error)
            return False
        return True

    def _write_cache(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow,
        recipe: Recipe | None,
        *,
        timeout: float,
        keep_index: bool = False,
    ) -> None:
        if space.dim is None or collection.last_change == 0:
            return
        make_private(self._folder)
        with ProcessLock(self._folder / "build.lock").held(timeout):
            reach("cache.begun")
            try:
                self._write_files(transaction, collection, space, recipe, keep_index=keep_index)
            finally:
                self._sweep()
            reach("cache.swept")

    def _write_files(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow,
        recipe: Recipe | None,
        *,
        keep_index: bool,
    ) -> None:
        """Write new files, and the manifest that makes them the cache; the caller holds the lock."""
        assert space.dim is not None
        exact, labels, seqs = self._write_exact(transaction, space)
        files = {"exact": exact, "labels": labels}
        manifest: dict[str, Any] = {
            "format": cachefile.MANIFEST_FORMAT, "store": store_uuid(transaction), "space": space.space_id,
            "metric": space.metric, "dim": space.dim, "fingerprint": space.fingerprint,
            "change": collection.last_change, "hi_seq": space.last_seq, "n_vectors": int(seqs.size),
            "commit_id": self._commit_id(transaction, collection),
        }  # fmt: skip
        if recipe is not None and not recipe.exact and seqs.size:
            matrix, _ = self._open_pair(exact, labels, int(seqs.size), space.dim)
            built = build_index(matrix, recipe, Metric(space.metric))
            files["index"] = write_faiss(built, self._folder, recipe)
            reach("cache.index")
            files["index_labels"] = labels
            manifest["index"] = {"recipe": recipe.name, "n_vectors": int(seqs.size), "hi_seq": space.last_seq}
        elif keep_index:
            self._keep_index(transaction, collection, space, manifest, files)
        manifest["files"] = {name: cachefile.file_fields(file) for name, file in files.items()}
        cachefile.write_manifest(self._folder, manifest)

    def _sweep(self) -> None:
        """Delete the files that the published manifest does not name, those of a build that failed among them."""
        try:
            manifest = cachefile.read_manifest(self._folder)
        except DamagedCache:
            manifest = None
        if manifest is None or manifest.get("format") == cachefile.MANIFEST_FORMAT:
            files = {} if manifest is None else manifest["files"]
            cachefile.remove_others(self._folder, [file["name"] for file in files.values()])

    def _keep_index(
        self,
        transaction: Transaction,
        collection: CollectionRow,
        space: SpaceRow,
        manifest: dict[str, Any],
        files: dict[str, CacheFile],
    ) -> None:
        """Carry the published index over into a new manifest, where it is of this history."""
        try:
            old = cachefile.read_manifest(self._folder)
        except DamagedCache:
            return
        if old is not None and "index" in old and belongs(transaction, collection, space, old):
            manifest["index"] = old["index"]
            files["index"] = CacheFile(**old["files"]["index"])
            files["index_labels"] = CacheFile(**old["files"]["index_labels"])

    def _write_exact(self, transaction: Transaction, space: SpaceRow) -> tuple[CacheFile, CacheFile, IntVector]:
        seqs, record_ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        with CacheWriter(self._folder, "exact", ".f32") as writer:
            for matrix, chunk_seqs, chunk_records in stream_vectors(transaction, space, 0, space.last_seq):
                writer.write(prepared(matrix, Metric(space.metric)).tobytes())
                seqs.append(chunk_seqs)
                record_ids.append(chunk_records)
        reach("cache.exact")
        all_seqs = np.concatenate(seqs)
        with CacheWriter(self._folder, "labels", ".i64") as labels:
            labels.write(all_seqs.astype("<i8").tobytes())
            labels.write(np.concatenate(record_ids).astype("<i8").tobytes())
        reach("cache.labels")
        assert writer.written is not None and labels.written is not None
        return writer.written, labels.written, all_seqs

    @staticmethod
    def _commit_id(transaction: Transaction, collection: CollectionRow) -> str:
        name = commit_name(transaction, collection.collection_id, collection.last_change)
        assert name is not None  # every change has its commit, in the same transaction
        return name


def belongs(
    transaction: Transaction, collection: CollectionRow, space: SpaceRow, manifest: dict[str, Any]
) -> bool:
    """Whether a cache was made from this very database and history."""
    if manifest.get("format") != cachefile.MANIFEST_FORMAT or manifest["store"] != store_uuid(transaction):
        return False
    same = (manifest["space"], manifest["metric"], manifest["dim"], manifest["fingerprint"])
    if same != (space.space_id, space.metric, space.dim, space.fingerprint):
        return False
    change = manifest["change"]
    if not collection.log_floor <= change <= collection.last_change or manifest["hi_seq"] > space.last_seq:
        return False
    return bool(commit_name(transaction, collection.collection_id, change) == manifest["commit_id"])


def stream_vectors(
    transaction: Transaction, space: SpaceRow, after_seq: int, last_seq: int
) -> Iterator[tuple[FloatMatrix, IntVector, IntVector]]:
    """The live vectors with a seq above ``after_seq`` and up to ``last_seq``, in order, in parts.

    Each part is a matrix (n, dim) as it is stored, the seqs and the record ids. Raises DamagedRow for a vector that is
    not what was written.
    """
    base = space.space_id * ID_SHIFT
    rows = transaction.stream(
        "SELECT v.vector_id, v.record_id, v.vec, v.row_hash, r.key FROM vectors AS v"
        " LEFT JOIN records AS r ON r.record_id = v.record_id"
        " WHERE v.vector_id > :low AND v.vector_id <= :high ORDER BY v.vector_id",
        {"low": base + after_seq, "high": base + last_seq},
    )
    n_bytes = 4 * (space.dim or 0)
    while chunk := _take(rows, _CHUNK_ROWS):
        ids, record_ids, blobs, hashes, keys = zip(*chunk, strict=True)
        for vector_id, blob, hashed, key in zip(ids, blobs, hashes, keys, strict=True):
            if not vector_is_whole(blob, hashed, key) or len(blob) != n_bytes:
                raise DamagedRow(f"vector {vector_id - base} of the space {space.name!r} is not what was written")
        matrix = np.frombuffer(b"".join(blobs), "<f4").reshape(len(chunk), -1)  # (n, dim)
        yield matrix, np.array(ids, np.int64) - base, np.array(record_ids, np.int64)


def _take(rows: Iterator[Any], n: int) -> list[Any]:
    from itertools import islice

    return list(islice(rows, n))


def _empty_view(space: SpaceRow) -> SpaceView:
    assert space.dim is not None
    return SpaceView(
        space_id=space.space_id, metric=Metric(space.metric), dim=space.dim, change=0, last_seq=0,
        base=np.empty((0, space.dim), np.float32), delta=np.empty((0, space.dim), np.float32),
        seqs=np.empty(0, np.int64), record_ids=np.empty(0, np.int64), alive=None, n_alive=0,
    )  # fmt: skip
