"""Which GPUs torch encodes on: those that were asked for, or an error that says why not."""

from __future__ import annotations

import importlib.metadata
import warnings
from pathlib import Path
from typing import Any

from embedstore.devices import Device, DeviceKind
from embedstore.errors import DeviceUnavailable

_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Files that the drivers of NVIDIA, of AMD, and of Windows' Linux make."""

_ELSE = "or take device='cpu'"


def may_have_gpu() -> bool:
    """Whether it is worth importing torch to ask for a GPU: it is no CPU build, and there is a driver."""
    try:
        is_cpu_build = importlib.metadata.version("torch").endswith("+cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return not is_cpu_build and any(Path(driver).exists() for driver in _DRIVERS)


def torch_gpus(device: Device) -> list[str]:
    """Torch's names of the GPUs that ``device`` means: one, or with ``all`` every one. ``auto`` means the first.

    Raises DeviceUnavailable where torch finds none that it can use, or ``device`` is the CPU.
    """
    asked = f"device {str(device)!r}"
    if device.kind is DeviceKind.CPU:
        raise DeviceUnavailable(f"{asked} is not a GPU, which this needs; take device='cuda' or 'auto'")
    try:
        import torch
    except ImportError as error:
        raise DeviceUnavailable(
            f"{asked} needs torch, which cannot be imported ({error}); install it, {_ELSE}"
        ) from error
    names = choose_gpus(device, _count(torch, asked))
    for name in names:
        try:
            torch.ones(1, device=name).add_(1).cpu()
        # A GPU that is too old for this build, in use by another process alone, or broken.
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise DeviceUnavailable(
                f"{asked}: torch finds {name} and cannot use it: {reason}; repair it, {_ELSE}"
            ) from error
    return names


def choose_gpus(device: Device, n_gpus: int) -> list[str]:
    """Names of the GPUs that ``device`` means among ``n_gpus``, at least one; DeviceUnavailable for one beyond them."""
    if device.kind is DeviceKind.ALL:
        return [f"cuda:{number}" for number in range(n_gpus)]
    if device.number >= n_gpus:
        raise DeviceUnavailable(
            f"device {str(device)!r} does not exist: torch finds {n_gpus} GPU{'s' if n_gpus > 1 else ''}, counted from"
            f" cuda:0; take one of them, {_ELSE}"
        )
    return [f"cuda:{device.number}"]


def _count(torch: Any, asked: str) -> int:
    """How many GPUs torch finds, at least one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about drivers, which the error speaks of
        found = int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    if found:
        return found
    if torch.version.cuda is None and torch.version.hip is None:
        raise DeviceUnavailable(
            f"{asked} needs a GPU, and torch {torch.__version__} is built for the CPU alone; install a build for CUDA"
            f" (https://pytorch.org/get-started/locally), {_ELSE}"
        )
    raise DeviceUnavailable(
        f"{asked} needs a GPU, and torch {torch.__version__} finds none; check that nvidia-smi lists it and that"
        f" CUDA_VISIBLE_DEVICES does not hide it, {_ELSE}"
    )
