"""FAISS indexes of a space: built from its exact vectors, written to a cache file, opened, searched with a filter.

Positions in the index are rows of the matrix it was built from. An index is never changed once it is built.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedstore.errors import DeviceUnavailable, InvalidInput, StorageFull
from embedstore.indexing.cachefile import CacheFile, CacheWriter, DamagedCache, Pages, open_checked, open_pages, release
from embedstore.indexing.faiss_file import Expected, ListPlaces, layout_fault, list_places
from embedstore.indexing.fitting import Shape, parts_of, shape_for, training_rows
from embedstore.indexing.recipes import Family, Placement, Recipe, find_recipe
from embedstore.indexing.selection import Selection
from embedstore.indexing.threads import ManyThreads
from embedstore.model import FloatMatrix, FloatVector, IntVector, Metric
from embedstore.optional import load_faiss
from embedstore.wording import first_line

_LOOP_LIMIT = 1 << 31
_SPARE_BYTES = 4096
_OVER_QUERIES = 3
"""FAISS's mode in which lists that were chosen already are searched for many queries by many threads."""
_READING = threading.Lock()
"""FAISS keeps the limits for reading a file in global variables."""


def _forget_parent() -> None:
    global _READING
    _READING = threading.Lock()  # another thread may have held it


os.register_at_fork(after_in_child=_forget_parent)

Settings = Mapping[str, int]
"""FAISS's names of search parameters, with their values."""


class MappedLists:
    """Inverted lists that stay on the disk: the pages of each are checked when it is first searched."""

    def __init__(self, places: ListPlaces, pages: Pages) -> None:
        self._places = places
        self._pages = pages
        self._checked = np.zeros(places.offsets.size + 1, np.bool_)
        self._checked[-1] = True  # for -1, which is no list

    def check(self, lists: np.ndarray) -> None:
        """Check lists by number, -1 for none; DamagedCache where one is not what was written."""
        if self._checked[lists].all():
            return
        asked = np.zeros(self._checked.size, np.bool_)
        asked[lists] = True
        wanted = np.flatnonzero(asked & ~self._checked)
        self._pages.check_ranges(self._places.offsets[wanted], self._places.n_bytes[wanted])
        self._checked[wanted] = True


class ListsRoom(NamedTuple):
    """Arrays for the inverted lists that queries look into, the distances to them, and the addresses of both."""

    lists: np.ndarray
    to_lists: np.ndarray
    addresses: tuple[Any, Any]


class Places(NamedTuple):
    """Arrays that FAISS reads queries from and writes answers to, and their addresses."""

    queries: np.ndarray
    distances: np.ndarray
    positions: np.ndarray
    addresses: tuple[Any, Any, Any]
    lists: ListsRoom | None  # where lists are chosen, and checked, before they are searched


class FaissIndex:
    """A built FAISS index, for reading only; threads may share it."""

    def __init__(self, index: Any, shape: Shape, lists: MappedLists | None = None) -> None:
        self.faiss = load_faiss()
        self.built = index
        self.shape = shape
        self.lists = lists
        self.recipe = shape.recipe
        self.n_vectors = int(index.ntotal)
        self.fits = shape.is_whole and not shape.exponent  # prepared vectors, just as they are
        self._quantizer: Any = None if lists is None else index.quantizer

    @property
    def n_lists(self) -> int:
        """How many inverted lists it has; 1 where it has none."""
        return int(self.built.nlist) if self.recipe.family is Family.LISTS else 1

    def search(
        self, queries: FloatMatrix, k: int, *, selection: Selection | None, settings: Settings
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best ``k`` positions for prepared queries (n, dim): int64 and scores float32, both (n, k).

        Places that could not be filled hold -1. Positions that ``selection`` lacks never come back. Scores are those of
        the index's own codes.
        """
        places = self.places(self.shape.fitted(queries), k, settings)
        with ManyThreads(self.faiss):
            self.search_into(places, self.new_parameters(settings, k, selection))
        distances, positions = places.distances, places.positions
        if positions.size and positions.max() >= self.n_vectors:
            raise self._beyond()
        if selection is not None:
            # FAISS has kinds of indexes that take a selector and do not look at it.
            kept = positions >= 0
            kept &= selection.usable[np.maximum(positions, 0)]
            if not kept.all():
                positions = np.where(kept, positions, -1)
        return positions, self.scores(distances)

    def usable(
        self, positions: IntVector, distances: FloatVector, selection: Selection | None
    ) -> tuple[IntVector, FloatVector]:
        """What was found for one query without the places that could not be filled, and without what is not allowed."""
        if positions.max() >= self.n_vectors:
            raise self._beyond()
        kept = positions >= 0
        if selection is not None:
            kept &= selection.usable[positions]
        return positions[kept], distances[kept]

    def places(self, fitted: np.ndarray, k: int, settings: Settings) -> Places:
        """For queries as the index takes them, which stay where they are, room for ``k`` answers to each."""
        n, of_bits = len(fitted), self.recipe.family is Family.BINARY
        distances, positions = np.empty((n, k), np.int32 if of_bits else np.float32), np.empty((n, k), np.int64)
        at = self.faiss.swig_ptr
        addresses = at(fitted), at(distances), at(positions)
        if self.lists is None:
            return Places(fitted, distances, positions, addresses, None)
        nprobe = min(settings["nprobe"], self.n_lists)
        lists, to_lists = np.empty((n, nprobe), np.int64), np.empty((n, nprobe), np.float32)
        return Places(fitted, distances, positions, addresses, ListsRoom(lists, to_lists, (at(lists), at(to_lists))))

    def _beyond(self) -> DamagedCache:
        return DamagedCache(f"the index {self.recipe.name} names vectors that it does not have")

    def search_into(self, places: Places, parameters: Any, searched: Any = None) -> None:
        """Fill the places for answers by FAISS's own functions: its Python around them takes longer, or less.

        searched: another index of FAISS, which searches by this one.
        """
        (n, k), (x, distances, positions) = places.positions.shape, places.addresses
        try:
            if self.lists is None or places.lists is None:
                index = self.built if searched is None else searched
                index.search_c(n, x, k, distances, positions, parameters)
                return
            chosen, (lists, to_lists) = places.lists.lists, places.lists.addresses
            self._quantizer.search_c(n, x, chosen.shape[1], to_lists, lists)
            self.lists.check(chosen)
            self.built.search_preassigned_c(n, x, k, lists, to_lists, distances, positions, False, parameters)
        except RuntimeError as error:  # of FAISS, which finds that the index cannot be
            reason = first_line(error)
            raise DamagedCache(f"the index {self.recipe.name} cannot be searched: {reason}") from error

    def scores(self, distances: np.ndarray) -> np.ndarray:
        """Distances of FAISS as scores, of which greater is nearer."""
        if self.recipe.family is Family.BINARY:
            return -distances.astype(np.float32)
        if self.shape.metric is Metric.EUCLIDEAN:
            return np.float32(0) - np.sqrt(np.maximum(distances, 0))  # type: ignore[no-any-return]
        return distances

    def new_parameters(self, settings: Settings, k: int, selection: Selection | None) -> Any:
        """FAISS's object of the parameters of a search for ``k``, which no other thread may use."""
        faiss, family = self.faiss, self.recipe.family
        if family is Family.GRAPH:
            parameters = faiss.SearchParametersHNSW(efSearch=max(settings["efSearch"], k))
        elif family is Family.LISTS:
            nprobe = min(settings["nprobe"], self.n_lists)
            if "qb" in settings:
                parameters = faiss.IVFRaBitQSearchParameters(nprobe=nprobe, qb=settings["qb"])
            else:
                parameters = faiss.SearchParametersIVF(nprobe=nprobe)
        elif selection is None:
            return None
        else:
            parameters = faiss.SearchParameters()
        if selection is not None:
            parameters.sel = selection.selector
        return parameters


def build_index(matrix: FloatMatrix, recipe: Recipe, metric: Metric) -> tuple[Any, Shape]:
    """A FAISS index over the prepared rows of ``matrix`` (n, dim), positions 0 to n - 1, and how rows were fitted."""
    with ManyThreads(load_faiss()):
        return _built(matrix, recipe, metric)


def _built(matrix: FloatMatrix, recipe: Recipe, metric: Metric) -> tuple[Any, Shape]:
    faiss = load_faiss()
    n = len(matrix)
    shape = shape_for(matrix, recipe, metric)
    if recipe.family is Family.BINARY:
        index = faiss.IndexBinaryFlat(shape.index_dim)
        for part in parts_of(matrix):
            index.add(shape.fitted(part))
        return index, shape
    kind = faiss.METRIC_L2 if metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT
    if recipe.placement is Placement.GPU:
        from embedstore.indexing.gpu import build_on_gpu

        return build_on_gpu(shape.fitted(matrix), recipe, metric), shape
    index = faiss.index_factory(shape.index_dim, recipe.factory_for(n, shape.index_dim), kind)
    if "efConstruction" in recipe.build:
        index.hnsw.efConstruction = int(recipe.build["efConstruction"])
    if not index.is_trained:
        n_lists = index.nlist if recipe.family is Family.LISTS else 0
        index.train(shape.fitted(training_rows(matrix, metric, n_lists)))
    for part in parts_of(matrix):
        index.add(shape.fitted(part))
    return index, shape


def write_faiss(index: Any, folder: Path, recipe: Recipe) -> tuple[CacheFile, np.ndarray]:
    """Write an index through our own descriptor, since FAISS's own file writing reports success on a full disk.

    Gives the file, and the sums of its pages.
    """
    faiss = load_faiss()
    failures: list[OSError] = []

    with CacheWriter(folder, recipe.name, ".faiss") as writer:

        def put(chunk: bytes) -> int:
            try:
                return writer.write(chunk)
            except OSError as error:
                failures.append(error)
                return 0

        write = faiss.write_index_binary if recipe.family is Family.BINARY else faiss.write_index
        try:
            write(index, faiss.PyCallbackIOWriter(put, 1 << 20))
        except RuntimeError as error:
            if failures:
                raise StorageFull(f"{folder} has no room for the index: {failures[0].strerror}") from error
            raise
    assert writer.written is not None
    return writer.written, writer.sums


def open_faiss(folder: Path, file: CacheFile, shape: Shape, n_vectors: int, sums: CacheFile | None) -> FaissIndex:
    """Open an index written by ``write_faiss``; DamagedCache where it is not what was written.

    sums: of the pages of an index whose lists stay on the disk; they are then checked as they are read.
    """
    recipe = shape.recipe
    expected = Expected(file_kind(recipe), shape.metric, shape.index_dim, n_vectors, mapped=sums is not None)
    pages = None if sums is None else open_pages(folder, file, sums)
    content = open_checked(folder, file) if pages is None else pages.content
    fault = layout_fault(content, expected)
    if fault is not None:
        raise DamagedCache(f"{folder / file.name} is not the index that was written: {fault}")
    places = None if pages is None else list_places(content, expected)
    if pages is not None and places is not None:  # all but the lists is read now
        pages.check_ranges(np.array([0]), np.array([int(places.offsets[0])]))
    if pages is None and recipe.mapped:  # few of these pages are looked at again
        release(content)
    index = _read(folder / file.name, recipe, file.n_bytes)
    if recipe.family is Family.LISTS and recipe.mapped:
        faiss = load_faiss()
        faiss.downcast_InvertedLists(index.invlists).prefetch_nthread = 0  # its threads cost more than they save
        index.parallel_mode = _OVER_QUERIES
    return FaissIndex(index, shape, None if pages is None or places is None else MappedLists(places, pages))


def file_kind(recipe: Recipe) -> str:
    """The factory string of what is on the disk, which for a graph built on a GPU is the CPU's form of it."""
    return "Cagra" if recipe.placement is Placement.GPU and recipe.family is Family.GRAPH else recipe.factory


def _read(path: Path, recipe: Recipe, n_bytes: int) -> Any:
    faiss = load_faiss()
    flags = faiss.IO_FLAG_MMAP if recipe.mapped else faiss.IO_FLAG_MMAP_IFC
    read = faiss.read_index_binary if recipe.family is Family.BINARY else faiss.read_index
    if recipe.family is Family.BINARY or (recipe.family is Family.LISTS and not recipe.mapped):
        flags = 0  # small enough to be held, and faster so
    with _READING:
        # FAISS refuses arrays of a fourth of this; none can be larger than the file.
        faiss.set_deserialization_loop_limit(_LOOP_LIMIT)
        faiss.set_deserialization_vector_byte_limit(4 * n_bytes + _SPARE_BYTES)
        try:
            return read(os.fspath(path), flags)
        except RuntimeError as error:
            raise DamagedCache(f"{path} cannot be read by FAISS: {first_line(error)}") from error


def require_served(name: str, metric: Metric) -> Recipe:
    """The recipe called ``name``; InvalidInput where it does not serve the metric, else as ``require_buildable``."""
    recipe = find_recipe(name)
    if metric not in recipe.metrics:
        served = ", ".join(one.value for one in recipe.metrics)
        raise InvalidInput(f"the recipe {name!r} serves vectors compared by {served}, not by {metric.value!r}")
    require_buildable(recipe)
    return recipe


def require_buildable(recipe: Recipe) -> None:
    """Raise MissingDependency or DeviceUnavailable where an index of this recipe cannot be built here."""
    if recipe.exact and recipe.placement is Placement.CPU:
        return
    faiss = load_faiss()
    if recipe.placement is Placement.GPU and not recipe.exact:
        from embedstore.indexing.gpus import n_gpus

        if not n_gpus(faiss):
            raise DeviceUnavailable(
                f"the recipe {recipe.name!r} is built on a GPU, and FAISS finds none here; take another recipe"
                " (embedstore recipes), or see what embedstore doctor says"
            )

