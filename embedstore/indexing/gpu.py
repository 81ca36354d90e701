"""FAISS on NVIDIA GPUs: building there, searching there, and saying so where it cannot be.

What is kept on the disk is always an index of the CPU, so that a store moves between machines. The GPU classes of FAISS
take selectors and do not look at them, so a filtered search is never given to them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from embedstore.devices import Device, DeviceKind
from embedstore.errors import DeviceUnavailable
from embedstore.indexing.recipes import Family, Recipe
from embedstore.model import FloatMatrix, Metric
from embedstore.optional import load_faiss

_HALF_BYTES = 2
_LARGEST_HALF = 65_000.0
_MOST_HITS = 2048
"""What the GPU classes of FAISS can return for one query."""


def n_gpus(faiss: Any) -> int:
    """How many GPUs FAISS can use. The CPU build has functions of GPU names too, so a class is asked for."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def chosen_gpus(device: Device) -> list[int]:
    """The GPUs to use; none for the CPU, and for 'auto' where there are none.

    Raises DeviceUnavailable where a GPU was asked for by name and FAISS cannot use it.
    """
    if device.kind is DeviceKind.CPU:
        return []
    faiss = load_faiss()
    found = n_gpus(faiss)
    if device.must_be_gpu and not found:
        built = "finds no GPU" if hasattr(faiss, "StandardGpuResources") else "is a build for the CPU"
        raise DeviceUnavailable(
            f"device {str(device)!r} was asked for, but FAISS {built}; take device 'auto' or 'cpu', or see what"
            " 'embedstore doctor' says of the GPU build"
        )
    if device.kind is DeviceKind.CUDA and device.number >= found:
        raise DeviceUnavailable(f"device {str(device)!r} was asked for; FAISS finds {found} GPUs, numbered from 0")
    if device.kind is DeviceKind.ALL:
        return list(range(found))
    return [device.number] if found else []


def require_some_gpu(device: Device) -> None:
    """Raise DeviceUnavailable where neither FAISS nor torch finds the GPU that was asked for by name."""
    try:
        chosen_gpus(device)
    except DeviceUnavailable as error:
        try:
            import torch

            n_found = torch.cuda.device_count()
        except ImportError:
            n_found = 0
        if n_found <= device.number:
            raise DeviceUnavailable(f"{error}; torch finds {n_found} GPUs") from None


def require_room(n_bytes: int, gpu: int) -> None:
    """Raise DeviceUnavailable where a GPU has less free memory than is needed, as far as torch can tell."""
    try:
        import torch

        free, _ = torch.cuda.mem_get_info(gpu)
    except (ImportError, RuntimeError, AssertionError):
        return  # FAISS will say
    if n_bytes > free:
        raise DeviceUnavailable(
            f"the index needs {n_bytes / 1e9:,.1f} GB; GPU {gpu} has {free / 1e9:,.1f} GB free. Take another recipe"
            " (gpu-ivf-pq is smaller), several GPUs (device 'all'), or the CPU"
        )


def build_on_gpu(fitted: FloatMatrix, recipe: Recipe, metric: Metric) -> Any:
    """An index built on the first GPU, in its CPU form. fitted: rows (n, dim) as the index takes them."""
    faiss = load_faiss()
    kind = faiss.METRIC_L2 if metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT
    n, dim = fitted.shape
    resources = faiss.StandardGpuResources()
    if recipe.family is Family.LISTS:
        plain = faiss.index_factory(dim, recipe.factory_for(n, dim), kind)
        built = faiss.index_cpu_to_gpu(resources, 0, plain)
        built.train(fitted)
        built.add(fitted)
        return faiss.index_gpu_to_cpu(built)
    if not hasattr(faiss, "GpuIndexCagra"):
        raise DeviceUnavailable(
            f"the recipe {recipe.name!r} needs FAISS built with cuVS: pip uninstall faiss-gpu, then pip install"
            " faiss-gpu-cuvs"
        )
    settings = faiss.GpuIndexCagraConfig()
    settings.graph_degree = int(recipe.build["graph_degree"])
    settings.intermediate_graph_degree = int(recipe.build["intermediate_graph_degree"])
    require_room(fitted.nbytes, 0)
    built = faiss.GpuIndexCagra(resources, dim, kind, settings)
    built.train(fitted)
    graph = faiss.IndexHNSWCagra()
    built.copyTo(graph)
    return graph


class GpuFlat:
    """The exact vectors of a space in half precision on one GPU, or spread over several; for unfiltered searches."""

    def __init__(self, matrix: FloatMatrix, metric: Metric, gpus: list[int]) -> None:
        """matrix: prepared rows (n, dim). Raises DeviceUnavailable where they do not fit."""
        if float(np.abs(matrix).max(initial=0)) > _LARGEST_HALF:
            raise DeviceUnavailable(f"numbers beyond {_LARGEST_HALF:,.0f} are too large for half precision")
        faiss = load_faiss()
        for gpu in gpus:
            require_room(_HALF_BYTES * matrix.size // len(gpus), gpu)
        self._resources = [faiss.StandardGpuResources() for _ in gpus]
        kind = faiss.METRIC_L2 if metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT
        self.most_hits = _MOST_HITS
        self._parts: list[tuple[int, Any]] = []
        bounds = np.linspace(0, matrix.shape[0], len(gpus) + 1).astype(int)
        try:
            for gpu, resources, first, last in zip(gpus, self._resources, bounds[:-1], bounds[1:], strict=True):
                settings = faiss.GpuIndexFlatConfig()
                settings.device, settings.useFloat16 = gpu, True
                part = faiss.GpuIndexFlat(resources, matrix.shape[1], kind, settings)
                part.add(np.ascontiguousarray(matrix[first:last]))
                self._parts.append((int(first), part))
        except RuntimeError as error:
            raise DeviceUnavailable(f"the vectors do not fit on the GPU: {str(error).splitlines()[0]}") from error

    def candidates(self, queries: Any, k: int) -> np.ndarray:
        """The best ``k`` rows of every part for each prepared query (n, dim): int64 (n, parts * k), in no order.

        queries: a NumPy array, or a CUDA tensor, which FAISS then reads where it is.
        """
        if not isinstance(queries, np.ndarray):
            import faiss.contrib.torch_utils  # noqa: F401 - teaches FAISS to take tensors
        found = []
        for first, part in self._parts:
            _, rows = part.search(queries, min(k, _MOST_HITS, int(part.ntotal)))
            rows = rows if isinstance(rows, np.ndarray) else rows.cpu().numpy()
            found.append(np.where(rows >= 0, rows + first, -1))
        return np.concatenate(found, axis=1)
