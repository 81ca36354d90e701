"""FAISS's indexes on NVIDIA GPUs: built there, and searched there.

What is kept on the disk is always an index of the CPU, so that a store moves between machines. The GPU classes of FAISS
take selectors and do not look at them, so a filtered search is never given to them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import DeviceUnavailable
from embedstore.indexing.gpus import require_room
from embedstore.indexing.products import middle_of
from embedstore.indexing.recipes import FEWEST_CANDIDATES, Family, Recipe
from embedstore.model import FloatMatrix, Metric
from embedstore.optional import load_faiss
from embedstore.wording import first_line

if TYPE_CHECKING:
    from embedstore.indexing.faiss_index import FaissIndex, Settings

_LOG = logging.getLogger("embedstore")
_HALF_BYTES = 2
_LARGEST_HALF = 65_000.0
_MOST_HITS = 2048
"""What the GPU classes of FAISS can return for one query."""
_MOST_OF_GRAPH = 512
_MOST_LISTS = 2048
_WORTHWHILE = 32
"""Queries from which on an approximate index is asked on a GPU, which answers few of them no sooner than the CPU."""
_ITOPK_STEP = 32
_NO_CAGRA = "graphs on a GPU need FAISS built with cuVS: pip uninstall faiss-gpu, then pip install faiss-gpu-cuvs"


def build_on_gpu(fitted: FloatMatrix, recipe: Recipe, metric: Metric) -> Any:
    """An index built on the first GPU, in its CPU form. fitted: rows (n, dim) as the index takes them."""
    faiss = load_faiss()
    kind = _kind(metric)
    n, dim = fitted.shape
    resources = faiss.StandardGpuResources()
    if recipe.family is Family.LISTS:
        plain = faiss.index_factory(dim, recipe.factory_for(n, dim), kind)
        built = faiss.index_cpu_to_gpu(resources, 0, plain)
        built.train(fitted)
        built.add(fitted)
        return faiss.index_gpu_to_cpu(built)
    if not hasattr(faiss, "GpuIndexCagra"):
        raise DeviceUnavailable(_NO_CAGRA)
    settings = faiss.GpuIndexCagraConfig()
    settings.graph_degree = int(recipe.build["graph_degree"])
    settings.intermediate_graph_degree = int(recipe.build["intermediate_graph_degree"])
    require_room(fitted.nbytes, 0)
    built = faiss.GpuIndexCagra(resources, dim, kind, settings)
    built.train(fitted)
    graph = faiss.IndexHNSWCagra()
    built.copyTo(graph)
    return graph


class _OnGpus:
    """What is on GPUs, a part on each. Threads may share it, and take turns.

    An index on a GPU has memory that belongs to it for what it works on, so two threads must not be in it at once.
    ``required``: whether a GPU was asked for by name; else the CPU goes on where it fails.
    """

    given_up = False

    def __init__(self, gpus: list[int], required: bool) -> None:
        faiss = load_faiss()
        self.required = required
        self._gpus = gpus
        self._parts: list[Any] = []
        self._resources = [faiss.StandardGpuResources() for _ in gpus]
        self._guard = threading.Lock()

    def give_up(self, error: DeviceUnavailable) -> None:
        """Have the CPU answer from now on, and say so."""
        if not self.given_up:
            self.given_up = True
            _LOG.warning("searching on the CPU: %s", error)

    def leave_to_parent(self) -> None:
        """Free nothing of it in this process, which was forked: the memory on the GPU is the parent's."""
        for one in (*self._parts, *self._resources):
            one.this.disown()

    def _of_parts(self, ask: Callable[[int], np.ndarray]) -> list[np.ndarray]:
        """What each part gives, asked by its place, all at the same time."""
        try:
            with self._guard:
                if len(self._gpus) == 1:
                    return [ask(0)]
                with ThreadPoolExecutor(len(self._gpus)) as threads:
                    return list(threads.map(ask, range(len(self._gpus))))
        except RuntimeError as error:  # of FAISS
            raise DeviceUnavailable(f"the GPU cannot search: {first_line(error)}") from error


class GpuFlat(_OnGpus):
    """The exact vectors of a space in half precision on one GPU, or spread over several; for unfiltered searches."""

    fewest_queries = 1
    most_hits = _MOST_HITS

    def __init__(self, matrix: FloatMatrix, metric: Metric, gpus: list[int], *, required: bool = False) -> None:
        """matrix: prepared rows (n, dim). Raises DeviceUnavailable where they do not fit."""
        gpus = gpus[: max(1, matrix.shape[0])]
        for gpu in gpus:
            require_room(_HALF_BYTES * matrix.size // len(gpus), gpu)
        super().__init__(gpus, required)
        try:
            self._fill(matrix, metric)
        except RuntimeError as error:
            raise DeviceUnavailable(f"the vectors do not fit on the GPU: {first_line(error)}") from error

    def _fill(self, matrix: FloatMatrix, metric: Metric) -> None:
        """Spread rows over the GPUs; by distance from their middle where that is far out, since halves tell little."""
        self._centre = middle_of([matrix]) if metric is Metric.EUCLIDEAN else None
        self._firsts: list[int] = []
        bounds = np.linspace(0, matrix.shape[0], len(self._gpus) + 1).astype(int)
        for place, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            rows = np.ascontiguousarray(matrix[first:last])
            if self._centre is not None:
                rows = rows - self._centre
            if max(float(rows.max(initial=0)), -float(rows.min(initial=0))) > _LARGEST_HALF:
                raise DeviceUnavailable(f"numbers beyond {_LARGEST_HALF:,.0f} are too large for half precision")
            part = self._new_part(place, matrix.shape[1], _kind(metric))
            part.add(rows)
            self._parts.append(part)
            self._firsts.append(int(first))

    def _new_part(self, place: int, dim: int, kind: int) -> Any:
        """An empty index on one of the GPUs."""
        faiss = load_faiss()
        settings = faiss.GpuIndexFlatConfig()
        settings.device, settings.useFloat16 = self._gpus[place], True
        return faiss.GpuIndexFlat(self._resources[place], dim, kind, settings)

    def n_candidates(self, k: int) -> int:
        """How many are found for ``k`` hits, and then compared exactly."""
        return max(2 * k, FEWEST_CANDIDATES)

    def plan(self, n_vectors: int, n_candidates: int) -> str:
        """What a search does, in words."""
        return f"GPU scan of {n_vectors:,} vectors in half precision, {n_candidates:,} candidates compared exactly"

    def candidates(self, queries: Any, k: int, settings: Settings | None = None) -> np.ndarray:
        """The best ``k`` rows of every part for each prepared query (n, dim): int64 (n, parts * k), in no order.

        queries: a NumPy array, or a CUDA tensor, which FAISS then reads where it is. settings: there are none.
        """
        if not isinstance(queries, np.ndarray):
            import faiss.contrib.torch_utils  # noqa: F401 - teaches FAISS to take tensors

        if self._centre is not None:
            is_array = isinstance(queries, np.ndarray)
            queries = queries - (self._centre if is_array else queries.new_tensor(self._centre))

        def of_part(place: int) -> np.ndarray:
            part = self._parts[place]
            asked = queries if isinstance(queries, np.ndarray) else queries.to(f"cuda:{self._gpus[place]}")
            _, rows = part.search(asked, min(k, _MOST_HITS, int(part.ntotal)))
            rows = rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()
            return np.where(rows >= 0, rows + self._firsts[place], -1)

        return np.concatenate(self._of_parts(of_part), axis=1)


class GpuIndex(_OnGpus):
    """An approximate index once more, on one GPU, or whole on each of several; for many queries without a filter."""

    fewest_queries = _WORTHWHILE

    def __init__(self, index: FaissIndex, gpus: list[int], *, required: bool = False) -> None:
        """index: in its CPU form. Raises DeviceUnavailable where it does not fit, or this FAISS has no such class."""
        faiss, built = index.faiss, index.built
        self._index = index
        self._is_graph = index.recipe.family is Family.GRAPH
        self.most_hits = _MOST_OF_GRAPH if self._is_graph else _MOST_HITS
        if self._is_graph and not hasattr(faiss, "GpuIndexCagra"):
            raise DeviceUnavailable(_NO_CAGRA)
        for gpu in gpus:
            require_room(_n_bytes(index), gpu)
        super().__init__(gpus, required)
        try:
            for gpu, resources in zip(gpus, self._resources, strict=True):
                if self._is_graph:
                    settings = faiss.GpuIndexCagraConfig()
                    settings.device = gpu
                    part = faiss.GpuIndexCagra(resources, built.d, built.metric_type, settings)
                    part.copyFrom(built)
                else:
                    part = faiss.index_cpu_to_gpu(resources, gpu, built)
                self._parts.append(part)
        except RuntimeError as error:
            raise DeviceUnavailable(f"the index does not fit on the GPU: {first_line(error)}") from error

    def n_candidates(self, k: int) -> int:
        """How many are found for ``k`` hits, and then compared exactly."""
        return self._index.recipe.n_candidates(k) if self._index.recipe.rescore else max(k, FEWEST_CANDIDATES)

    def plan(self, n_vectors: int, n_candidates: int) -> str:
        """What a search does, in words."""
        name = self._index.recipe.name
        return f"{name} on a GPU over {n_vectors:,} vectors, {n_candidates:,} candidates compared exactly"

    def candidates(self, queries: FloatMatrix, k: int, settings: Settings) -> np.ndarray:
        """The best ``k`` positions for each prepared query (n, dim): int64 (n, k), -1 where there are fewer."""
        shares = np.array_split(self._index.shape.fitted(queries), len(self._gpus))

        def of_part(place: int) -> np.ndarray:
            n_found = min(k, self._index.n_vectors)
            if not len(shares[place]):
                return np.empty((0, n_found), np.int64)
            parameters = self._parameters(n_found, settings)
            _, positions = self._parts[place].search(np.ascontiguousarray(shares[place]), n_found, params=parameters)
            return positions  # type: ignore[no-any-return]

        return np.concatenate(self._of_parts(of_part))

    def _parameters(self, k: int, settings: Settings) -> Any:
        faiss = self._index.faiss
        if not self._is_graph:
            return faiss.SearchParametersIVF(nprobe=min(settings["nprobe"], self._index.n_lists, _MOST_LISTS))
        parameters = faiss.SearchParametersCagra()
        parameters.itopk_size = -(-max(settings["efSearch"], k) // _ITOPK_STEP) * _ITOPK_STEP
        return parameters


def _n_bytes(index: FaissIndex) -> int:
    """About what an index takes on a GPU."""
    if index.recipe.family is Family.GRAPH:
        degree = int(index.recipe.build["graph_degree"])
        return index.n_vectors * (4 * index.shape.index_dim + 4 * degree)
    return index.n_vectors * (int(index.built.code_size) + 8)


def _kind(metric: Metric) -> int:
    faiss = load_faiss()
    return int(faiss.METRIC_L2 if metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT)
