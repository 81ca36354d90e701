"""The prepared items of a training, on disk, so that memory is flat in their number."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedstore.errors import InvalidInput


class ItemFeed:
    """Arrays of one shape and type in a file, one after the other, read a batch at a time.

    ``batch`` gives them as float32, multiplied by ``scale``.
    """

    def __init__(self, path: Path, shape: Sequence[int], kind: npt.DTypeLike, *, scale: float = 1.0) -> None:
        self.shape = tuple(shape)
        self._kind = np.dtype(kind)
        self._scale = scale
        self._n_bytes = int(np.prod(self.shape)) * self._kind.itemsize
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._n = os.fstat(self._descriptor).st_size // self._n_bytes

    def __len__(self) -> int:
        return self._n

    def items(self, places: np.ndarray) -> npt.NDArray[Any]:
        """The items at these places, as they are in the file: (n, *shape)."""
        block = bytearray(len(places) * self._n_bytes)
        view = memoryview(block)
        for line, place in enumerate(places.tolist()):
            into = view[line * self._n_bytes : (line + 1) * self._n_bytes]
            if os.preadv(self._descriptor, [into], place * self._n_bytes) != self._n_bytes:
                raise InvalidInput("the file of prepared items was cut off while it was read; train again")
        return np.frombuffer(block, self._kind).reshape(len(places), *self.shape)

    def batch(self, places: np.ndarray) -> Tensor:
        """The items at these places as the network takes them: float32 (n, *shape)."""
        made = torch.from_numpy(self.items(places)).float()
        return made.mul_(self._scale) if self._scale != 1.0 else made

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
