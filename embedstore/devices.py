"""Which processor is asked for: a word that a user gives, as a value that is checked where it is used."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from embedstore.errors import InvalidInput


class DeviceKind(Enum):
    """The processors there are to choose from."""

    AUTO = "auto"
    """a GPU where one can be used, else the CPU"""
    CPU = "cpu"
    CUDA = "cuda"
    """one NVIDIA GPU"""
    ALL = "all"
    """every NVIDIA GPU"""


@dataclass(frozen=True, slots=True)
class Device:
    """A choice of processor; ``number`` is that of one GPU, 0 where none is named."""

    kind: DeviceKind = DeviceKind.AUTO
    number: int = 0

    def __str__(self) -> str:
        return f"cuda:{self.number}" if self.kind is DeviceKind.CUDA and self.number else self.kind.value

    @property
    def must_be_gpu(self) -> bool:
        """Whether a GPU was asked for by name, so that its absence is an error."""
        return self.kind in (DeviceKind.CUDA, DeviceKind.ALL)


CPU = Device(DeviceKind.CPU)


def choose_device(word: str | Device) -> Device:
    """A device by its word: 'auto', 'cpu', 'cuda', 'cuda:1' or 'all'; InvalidInput for any other."""
    if isinstance(word, Device):
        return word
    named = re.fullmatch(r"cuda:(\d{1,3})", word)
    if named is not None:
        return Device(DeviceKind.CUDA, int(named[1]))
    try:
        return Device(DeviceKind(word))
    except ValueError:
        raise InvalidInput(f"device is {word!r}; it must be auto, cpu, cuda, cuda:NUMBER or all") from None
