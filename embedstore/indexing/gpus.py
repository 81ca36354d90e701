"""Which NVIDIA GPUs FAISS can use, whether there is room, and saying so where there is none.

A process that was forked from one that used a GPU cannot use it: CUDA does not survive a fork, and FAISS ends a process
that asks it all the same. So it is not asked there.
"""

from __future__ import annotations

from typing import Any

from embedstore.devices import Device, DeviceKind
from embedstore.errors import DeviceUnavailable
from embedstore.forking import at_forks
from embedstore.optional import load_faiss

LOST = "a forked process cannot use the GPU of its parent; start processes by 'spawn'"

_used = False
_lost = False


def _note_fork() -> None:
    global _lost
    _lost = _lost or _used


at_forks(in_child=_note_fork)


def n_gpus(faiss: Any) -> int:
    """How many GPUs FAISS can use; none in a process that was forked from one that used them.

    The CPU build has functions of GPU names too, so a class is asked for.
    """
    global _used
    if _lost or not hasattr(faiss, "StandardGpuResources"):
        return 0
    found = int(faiss.get_num_gpus())
    _used = _used or found > 0
    return found


def gpus_are_lost() -> bool:
    """Whether this process was forked from one that used a GPU, which it cannot."""
    return _lost


def chosen_gpus(device: Device) -> list[int]:
    """The GPUs to use; none for the CPU, and for 'auto' where there are none.

    Raises DeviceUnavailable where a GPU was asked for by name and FAISS cannot use it.
    """
    if device.kind is DeviceKind.CPU:
        return []
    faiss = load_faiss()
    found = n_gpus(faiss)
    if device.must_be_gpu and _lost:
        raise DeviceUnavailable(f"device {str(device)!r} was asked for, but {LOST}")
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
        if _lost:
            raise
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
