"""Writes the cache of a space: exact vectors, labels, an index by a recipe; the manifest that names them comes last.

One process writes at a time. What it needs is read from SQL, or copied from the cache there was, where that is whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import DamagedRow
from embedstore.failpoints import reach
from embedstore.indexing import cachefile
from embedstore.indexing.byte_copy import is_worthwhile, write_copy
from embedstore.indexing.cachefile import CacheFile, CacheWriter, DamagedCache, page_hash, write_sums
from embedstore.indexing.costs import NEVER, IndexCosts, measured_costs
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_index import FaissIndex, build_index, write_faiss
from embedstore.indexing.recipes import Recipe, find_recipe
from embedstore.indexing.soundness import FAIR_SHARE, GOOD_SHARE, LEAST_SHARE, share_found
from embedstore.indexing.space_view import SpaceView
from embedstore.model import FloatMatrix, IntVector, Metric
from embedstore.records import vector_is_whole
from embedstore.storage.catalog import CollectionRow, SpaceRow, commit_name, store_uuid
from embedstore.storage.database import Transaction
from embedstore.storage.files import make_private
from embedstore.storage.layout import ID_SHIFT
from embedstore.storage.locks import ProcessLock

_LOG = logging.getLogger("embedstore")
_CHUNK_ROWS = 4096
_COPIED_ROWS = 16_384
BUILD_LOCK = "build.lock"


def write_cache(
    folder: Path,
    transaction: Transaction,
    collection: CollectionRow,
    space: SpaceRow,
    recipe: Recipe | None,
    *,
    timeout: float,
    reused: SpaceView | None = None,
    over_newer: bool = False,
) -> bool:
    """Write the exact vectors and, with a recipe, an index over them; StoreLocked where another process is at it.

    Nothing is written, and False given, where the published cache is of a later commit than the transaction sees,
    unless ``over_newer``, for a database that lost commits. Without a recipe the index that the published cache has is
    kept. reused: a view whose cached rows may be copied.
    """
    if space.dim is None or collection.last_change == 0:
        return True
    make_private(folder)
    with ProcessLock(folder / BUILD_LOCK).held(timeout):
        build = _Build(folder, transaction, collection, space)
        if not over_newer and _is_outdated(build):
            return False
        reach("cache.begun")
        try:
            _write_files(build, recipe, reused)
        finally:
            _sweep(folder)
        reach("cache.swept")
    return True


def _is_outdated(build: _Build) -> bool:
    """Whether the published cache is of this store and space, and of a later commit than the snapshot."""
    try:
        manifest = cachefile.read_manifest(build.folder)
    except DamagedCache:
        return False
    if manifest is None or manifest.get("format") != cachefile.MANIFEST_FORMAT:
        return False
    same = (manifest["store"], manifest["space"]) == (store_uuid(build.transaction), build.space.space_id)
    return bool(same and manifest["change"] > build.collection.last_change)


@dataclass(frozen=True, slots=True)
class _Build:
    """What is being built, where, and from which snapshot."""

    folder: Path
    transaction: Transaction
    collection: CollectionRow
    space: SpaceRow

    @property
    def metric(self) -> Metric:
        return Metric(self.space.metric)


@dataclass(frozen=True, slots=True)
class _Exact:
    """The files of the exact vectors, with the sums of their pages, and the vectors' seqs."""

    file: CacheFile
    labels: CacheFile
    sums: np.ndarray
    seqs: IntVector


def _write_files(build: _Build, recipe: Recipe | None, reused: SpaceView | None) -> None:
    """Write new files, and the manifest that makes them the cache; the caller holds the lock."""
    space, collection = build.space, build.collection
    exact = _current_exact(build) or _write_exact(build, reused)
    files = {"exact": exact.file, "labels": exact.labels}
    n = int(exact.seqs.size)
    manifest: dict[str, Any] = {
        "format": cachefile.MANIFEST_FORMAT, "store": store_uuid(build.transaction), "space": space.space_id,
        "metric": space.metric, "dim": space.dim, "fingerprint": space.fingerprint,
        "change": collection.last_change, "hi_seq": space.last_seq, "n_vectors": n,
        "commit_id": _commit_id(build),
    }  # fmt: skip
    if recipe is None:
        _keep_index(build, manifest, files, exact)
    elif not recipe.exact and n >= recipe.min_vectors:
        manifest["index"] = _write_index(build, recipe, exact, files)
        if recipe.mapped:
            files["exact_sums"] = write_sums(build.folder, exact.sums)
    _write_copy(build, recipe, manifest, files)
    manifest["files"] = {name: cachefile.file_fields(file) for name, file in files.items()}
    cachefile.write_manifest(build.folder, manifest)


def _write_copy(build: _Build, recipe: Recipe | None, manifest: dict[str, Any], files: dict[str, CacheFile]) -> None:
    """Write the exact vectors once more in bytes, where that makes searches faster."""
    n, dim = manifest["n_vectors"], manifest["dim"]
    if not is_worthwhile(recipe or find_recipe(build.space.recipe), n, dim):
        return
    made = write_copy(build.folder, _matrix(build, files["exact"], n))
    manifest["bytes"] = None
    if made is not None:
        files["bytes"], manifest["bytes"] = made[0], made[1].to_json()


def _matrix(build: _Build, exact: CacheFile, n: int) -> FloatMatrix:
    """The exact vectors that were written, float32 (n, dim)."""
    content = np.asarray(cachefile.open_checked(build.folder, exact))
    return content.view("<f4").reshape(n, build.space.dim or 0)


def _write_index(build: _Build, recipe: Recipe, exact: _Exact, files: dict[str, CacheFile]) -> dict[str, Any]:
    """Build an index over the exact vectors and write its files; what the manifest says of it."""
    n = int(exact.seqs.size)
    matrix = _matrix(build, exact.file, n)
    started = time.monotonic()
    built, shape = build_index(matrix, recipe, build.metric)
    seconds = time.monotonic() - started
    files["index"], sums = write_faiss(built, build.folder, recipe)
    reach("cache.index")
    files["index_labels"] = exact.labels
    if recipe.mapped:
        files["index_sums"] = write_sums(build.folder, sums)
    if shape.centre is not None:
        with CacheWriter(build.folder, "centre", ".f32") as writer:
            writer.write(shape.centre.astype("<f4").tobytes())
        assert writer.written is not None
        files["index_centre"] = writer.written
    index = FaissIndex(built, shape)
    costs = measured_costs(index, matrix, build.metric, recipe.search)
    share = share_found(index, matrix, build.metric)
    if share < LEAST_SHARE and recipe.rescore:
        _LOG.warning(
            "the index %r of the space %r finds %.0f %% of its nearest vectors, so every vector is compared instead;"
            " choose another recipe", recipe.name, build.space.name, 100 * share,
        )  # fmt: skip
        costs = replace(costs, fixed=NEVER)
    elif share < GOOD_SHARE:
        _LOG.log(
            logging.INFO if share >= FAIR_SHARE else logging.WARNING,
            "the index %r of the space %r finds about %.0f %% of its ten nearest vectors by default; tuning finds a"
            " recipe and settings for the recall that you want: embedstore index --tune, or Collection.tune",
            recipe.name, build.space.name, 100 * share,
        )  # fmt: skip
    return {
        "recipe": recipe.name, "n_vectors": n, "hi_seq": build.space.last_seq, "build_ms": round(1000 * seconds),
        "costs": costs.to_json(), "exponent": shape.exponent,
    }  # fmt: skip


def costs_of(index: dict[str, Any]) -> IndexCosts:
    """What a manifest says that searches of its index cost; DamagedCache where it does not say so."""
    try:
        return IndexCosts.from_json(index["costs"])
    except (KeyError, TypeError) as error:
        raise DamagedCache(f"the manifest does not say what searches cost: {error}") from None


def _sweep(folder: Path) -> None:
    """Delete the files that the published manifest does not name, those of a build that failed among them."""
    try:
        manifest = cachefile.read_manifest(folder)
    except DamagedCache:
        manifest = None
    if manifest is None or manifest.get("format") == cachefile.MANIFEST_FORMAT:
        files = {} if manifest is None else manifest["files"]
        cachefile.remove_others(folder, [file["name"] for file in files.values()])


def _keep_index(build: _Build, manifest: dict[str, Any], files: dict[str, CacheFile], exact: _Exact) -> None:
    """Carry the published index over into a new manifest, where it is of this history."""
    try:
        old = cachefile.read_manifest(build.folder)
    except DamagedCache:
        return
    if old is None or "index" not in old or not belongs(build.transaction, build.collection, build.space, old):
        return
    manifest["index"] = old["index"]
    for name, fields in old["files"].items():
        if name.startswith("index"):
            files[name] = CacheFile(**fields)
    if "exact_sums" in old["files"]:
        files["exact_sums"] = write_sums(build.folder, exact.sums)


def _current_exact(build: _Build) -> _Exact | None:
    """The exact vectors that are published, where they are whole and those of the snapshot; they stay as they are."""
    try:
        manifest = cachefile.read_manifest(build.folder)
        if manifest is None or not belongs(build.transaction, build.collection, build.space, manifest):
            return None
        if (manifest["hi_seq"], manifest["n_vectors"]) != (build.space.last_seq, build.space.n_live):
            return None
        files = {name: CacheFile(**fields) for name, fields in manifest["files"].items()}
        content = cachefile.open_checked(build.folder, files["exact"])
        seqs = np.array(cachefile.open_checked(build.folder, files["labels"])).view("<i8").reshape(2, -1)[0]
    except DamagedCache:
        return None
    return _Exact(files["exact"], files["labels"], cachefile.page_sums(content), seqs)


def _write_exact(build: _Build, reused: SpaceView | None) -> _Exact:
    seqs, record_ids = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    with CacheWriter(build.folder, "exact", ".f32") as writer:
        for matrix, chunk_seqs, chunk_records in _rows(build, reused):
            writer.write(matrix.tobytes())
            seqs.append(chunk_seqs)
            record_ids.append(chunk_records)
    reach("cache.exact")
    all_seqs = np.concatenate(seqs)
    with CacheWriter(build.folder, "labels", ".i64") as labels:
        labels.write(all_seqs.astype("<i8").tobytes())
        labels.write(np.concatenate(record_ids).astype("<i8").tobytes())
    reach("cache.labels")
    assert writer.written is not None and labels.written is not None
    return _Exact(writer.written, labels.written, writer.sums, all_seqs)


def _rows(build: _Build, reused: SpaceView | None) -> Iterator[tuple[FloatMatrix, IntVector, IntVector]]:
    """Prepared vectors with their seqs and record ids: first those that can be copied, then those of SQL."""
    after = 0
    if reused is not None and _is_whole(reused):
        n_base = reused.base.shape[0]
        kept = _alive(build, reused)
        for start in range(0, n_base, _COPIED_ROWS):
            rows = start + np.flatnonzero(kept[start : start + _COPIED_ROWS])
            yield reused.base[rows], reused.seqs[rows], reused.record_ids[rows]
        after = int(reused.seqs[n_base - 1])
    for matrix, seqs, record_ids in stream_vectors(build.transaction, build.space, after, build.space.last_seq):
        yield prepared(matrix, build.metric), seqs, record_ids


def _is_whole(view: SpaceView) -> bool:
    """Whether the cached rows of a view are still those that were written; damage is not to be copied."""
    return view.base.shape[0] > 0 and page_hash(view.base.reshape(-1).view(np.uint8)) == view.base_hash


def _alive(build: _Build, view: SpaceView) -> np.ndarray:
    """Which cached rows of a view live on in the snapshot of a build."""
    n_base = view.base.shape[0]
    kept = np.ones(n_base, np.bool_) if view.alive is None else view.alive[:n_base].copy()
    gone = died_since(build.transaction, build.space, view.change)
    if gone.size:
        places = np.minimum(np.searchsorted(view.seqs[:n_base], gone), n_base - 1)
        kept[places[view.seqs[places] == gone]] = False
    return kept


def _commit_id(build: _Build) -> str:
    name = commit_name(build.transaction, build.collection.collection_id, build.collection.last_change)
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


def died_since(transaction: Transaction, space: SpaceRow, change: int) -> IntVector:
    """The seqs of the vectors that were overwritten or deleted after a commit, int64, in no order."""
    rows = transaction.all(
        "SELECT seq FROM dead_vectors WHERE space_id = :space AND change > :change",
        {"space": space.space_id, "change": change},
    )
    return np.array([row[0] for row in rows], np.int64)


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
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        ids, record_ids, blobs, hashes, keys = zip(*chunk, strict=True)
        for vector_id, blob, hashed, key in zip(ids, blobs, hashes, keys, strict=True):
            if not vector_is_whole(blob, hashed, key) or len(blob) != n_bytes:
                raise DamagedRow(f"vector {vector_id - base} of the space {space.name!r} is not what was written")
        matrix = np.frombuffer(b"".join(blobs), "<f4").reshape(len(chunk), -1)  # (n, dim)
        yield matrix, np.array(ids, np.int64) - base, np.array(record_ids, np.int64)
