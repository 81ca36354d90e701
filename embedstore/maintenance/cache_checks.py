"""Checks cache files against their manifests, and what they hold against the database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import DamagedRow
from embedstore.indexing import cachefile
from embedstore.indexing.byte_copy import ByteCopy
from embedstore.indexing.cache_writing import belongs, died_since, stream_vectors
from embedstore.indexing.cachefile import CacheFile, DamagedCache
from embedstore.indexing.exact import prepared
from embedstore.indexing.faiss_file import Expected, layout_fault
from embedstore.indexing.faiss_index import file_kind
from embedstore.indexing.recipes import find_recipe
from embedstore.indexing.steps import Steps
from embedstore.maintenance.keyword_checks import keyword_faults
from embedstore.maintenance.reports import VerifyReport
from embedstore.model import Metric
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.layout import keyword_cache_path, space_cache_folder

_CHUNK_BYTES = 4 << 20
_MAX_LOOKS = 5


def check_caches(transaction: Transaction, folder: Path, report: VerifyReport) -> None:
    """Check the caches of every collection and space. Those of others, or of another history, are passed over."""
    for collection in catalog.all_collections(transaction):
        for space in catalog.spaces_of(transaction, collection.collection_id).values():
            path = space_cache_folder(folder, space.space_id)
            for what in _settled_faults(transaction, collection, space, path, report):
                report.add("cache", str(path), what)
        path = keyword_cache_path(folder, collection.collection_id)
        if path.exists():
            report.n_cache_files += 1
            for what in keyword_faults(path, transaction, collection):
                report.add("cache", str(path), what)


def _settled_faults(
    transaction: Transaction, collection: CollectionRow, space: SpaceRow, folder: Path, report: VerifyReport
) -> list[str]:
    """What is wrong with the cache of a space; looked at again where another process replaced it meanwhile."""
    for _ in range(_MAX_LOOKS):
        before = _published(folder)
        faults = list(_space_faults(transaction, collection, space, folder, report))
        if not faults or _published(folder) == before:
            return faults
    return []  # it is replaced all the time, so whatever was wrong is gone


def _published(folder: Path) -> bytes | None:
    try:
        return (folder / cachefile.MANIFEST_NAME).read_bytes()
    except OSError:
        return None


def _space_faults(
    transaction: Transaction, collection: CollectionRow, space: SpaceRow, folder: Path, report: VerifyReport
) -> Iterator[str]:
    try:
        manifest = cachefile.read_manifest(folder)
        if manifest is None or not belongs(transaction, collection, space, manifest):
            return
        files = {name: CacheFile(**fields) for name, fields in manifest["files"].items()}
        for file in {file.name: file for file in files.values()}.values():
            report.n_cache_files += 1
            mapped = cachefile.open_checked(folder, file)
            if _sha256(mapped) != file.sha256:
                yield f"{file.name} does not hold what was written"
        if "index" in files:
            index = cachefile.open_checked(folder, files["index"])
            recipe = find_recipe(manifest["index"]["recipe"])
            index_dim = recipe.index_dim(manifest["dim"])
            n_vectors = manifest["index"]["n_vectors"]
            expected = Expected(file_kind(recipe), Metric(space.metric), index_dim, n_vectors)
            fault = layout_fault(index, expected)
            if fault is not None:
                yield f"{files['index'].name} is not the index that was written: {fault}"
        yield from _exact_faults(transaction, space, folder, manifest, files)
    except DamagedCache as error:
        yield str(error)
    except DamagedRow:
        return  # listed as what it is, a vector of the database; there is nothing to hold the cache against


def _sha256(mapped: npt.NDArray[np.uint8]) -> str:
    hashed = hashlib.sha256()
    for start in range(0, mapped.size, _CHUNK_BYTES):
        hashed.update(mapped[start : start + _CHUNK_BYTES].data)
    return hashed.hexdigest()


def _exact_faults(
    transaction: Transaction, space: SpaceRow, folder: Path, manifest: dict[str, Any], files: dict[str, CacheFile]
) -> Iterator[str]:
    """Whether the cached vectors are those that the database has, but for those that died since."""
    n_rows, dim = manifest["n_vectors"], manifest["dim"]
    matrix = np.asarray(cachefile.open_checked(folder, files["exact"])).view("<f4").reshape(n_rows, dim)
    seqs, record_ids = np.asarray(cachefile.open_checked(folder, files["labels"])).view("<i8").reshape(2, n_rows)
    n_found = 0
    for stored, found, of_records in stream_vectors(transaction, space, 0, manifest["hi_seq"]):
        places = np.searchsorted(seqs, found)
        known = places < n_rows
        known[known] = seqs[places[known]] == found[known]
        if not known.all():
            yield f"it lacks vector {int(found[~known][0])} of the space"
            return
        n_found += found.size
        wanted = prepared(stored, Metric(space.metric))
        same = np.isclose(matrix[places], wanted, rtol=1e-5, atol=1e-7).all(axis=1)
        same &= record_ids[places] == of_records
        if not same.all():
            yield f"vector {int(found[~same][0])} is not the one in the database"
            return
    n_dead = int(np.isin(seqs, died_since(transaction, space, manifest["change"])).sum())
    if n_found + n_dead != n_rows:
        yield f"it has {n_rows:,} vectors; {n_found:,} of them are in the database, and {n_dead:,} were deleted since"
    if "bytes" in files:
        steps = Steps.from_json(manifest["bytes"])
        if not ByteCopy(folder, files["bytes"], steps, matrix.shape, Metric(space.metric)).holds(matrix):
            yield f"{files['bytes'].name} is not a copy of the exact vectors"
