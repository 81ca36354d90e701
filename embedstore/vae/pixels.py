"""The prepared pixels of a training's pictures, on disk, so that memory is flat in their number."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedstore.errors import InvalidInput
from embedstore.pictures import Picture, read_picture
from embedstore.storage.files import write_all
from embedstore.vae.preparation import ImagePreparation, Pixels

_AT_ONCE = 64


class PixelFeed:
    """Prepared pictures in a file, uint8 (n, channels, size, size), read a batch at a time."""

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        """shape: channels, size, size."""
        self.shape = shape
        self._n_bytes = int(np.prod(shape))
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._n = os.fstat(self._descriptor).st_size // self._n_bytes

    def __len__(self) -> int:
        return self._n

    def pixels(self, places: np.ndarray) -> Pixels:
        """The pictures at these places, uint8 (n, channels, size, size)."""
        block = bytearray(len(places) * self._n_bytes)
        view = memoryview(block)
        for line, place in enumerate(places.tolist()):
            into = view[line * self._n_bytes : (line + 1) * self._n_bytes]
            if os.preadv(self._descriptor, [into], place * self._n_bytes) != self._n_bytes:
                raise InvalidInput("the file of prepared pictures was cut off while it was read; train again")
        return np.frombuffer(block, np.uint8).reshape(len(places), *self.shape)

    def batch(self, places: np.ndarray) -> Tensor:
        """The pictures as float32 in 0 to 1."""
        return torch.from_numpy(self.pixels(places)).float().div_(255.0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Written:
    """What became of a training's pictures: how many there are, what they are, and which were refused."""

    def __init__(self) -> None:
        self.n = 0
        self.refused: list[str] = []
        self._hashed = blake2b(digest_size=16)
        self._first: bytes | None = None
        self.differ = False

    def take(self, pixels: bytes) -> None:
        """Note one picture."""
        self.n += 1
        self._hashed.update(pixels)
        if self._first is None:
            self._first = pixels
        self.differ = self.differ or pixels != self._first

    @property
    def digest(self) -> str:
        """Hexadecimal BLAKE2b-128 of all pixels in order."""
        return self._hashed.hexdigest()


def write_pixels(path: Path, pictures: Iterable[Any], preparation: ImagePreparation) -> Written:
    """Prepare pictures, whatever ``read_picture`` takes, into a file; those that are broken are left out and noted."""
    written = Written()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for made in in_threads(lambda given: _prepared(given, preparation), pictures):
            if isinstance(made, str):
                written.refused.append(made)
            else:
                body = made.tobytes()
                write_all(descriptor, body)
                written.take(body)
    finally:
        os.close(descriptor)
    return written


def _prepared(given: Any, preparation: ImagePreparation) -> Pixels | str:
    try:
        return preparation.apply(read_picture(given))
    except InvalidInput as error:
        return str(error)


def in_threads(work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """``work`` of each item, in order; decoders let go of the interpreter, so that all cores decode."""
    from embedstore.encoders.threads import usable_cores

    waiting = iter(items)
    with ThreadPoolExecutor(max_workers=usable_cores()) as pool:
        ahead: list[Any] = []
        while chunk := list(islice(waiting, _AT_ONCE)):
            following = [pool.submit(work, item) for item in chunk]
            yield from (one.result() for one in ahead)
            ahead = following
        yield from (one.result() for one in ahead)


def looks_grey(pictures: Sequence[Any]) -> bool:
    """Whether all of these pictures, as far as they can be read, have no colour."""
    for given in pictures:
        try:
            picture: Picture = read_picture(given)
            if picture.mode in ("1", "L", "LA", "I;16", "I", "F"):
                continue
            pixels = np.asarray(picture.decode().convert("RGBA"), np.int16)
        except InvalidInput:
            continue
        seen = pixels[..., 3] > 0
        colour = pixels[..., :3][seen]
        if colour.size and int(np.abs(colour - colour[:, :1]).max()) > 2:
            return False
    return True
