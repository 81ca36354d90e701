"""Where a network is trained and run: the GPU that was asked for, or the CPU."""

from __future__ import annotations

from embedstore.devices import Device, DeviceKind, choose_device
from embedstore.errors import DeviceUnavailable


def torch_device(asked: str | Device) -> str:
    """The device as torch calls it; DeviceUnavailable where a GPU was named and there is none."""
    from embedstore.encoders.torch_device import may_have_gpu, torch_gpus

    device = choose_device(asked)
    if device.kind is DeviceKind.CPU or (device.kind is DeviceKind.AUTO and not may_have_gpu()):
        return "cpu"
    try:
        return torch_gpus(device)[0]
    except DeviceUnavailable:
        if device.must_be_gpu:
            raise
        return "cpu"
