"""Prepares the pictures of a training into a file of pixels, and says what became of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.pictures import Picture, read_picture
from embedstore.side_by_side import side_by_side
from embedstore.storage.files import write_all
from embedstore.vae.preparation import ImagePreparation, Pixels

_AT_ONCE = 64


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
        for window in _windows(pictures):
            for made in side_by_side(window, lambda given: _prepared(given, preparation)):
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


def _windows(pictures: Iterable[Any]) -> Iterator[list[Any]]:
    waiting = iter(pictures)
    while window := list(islice(waiting, _AT_ONCE)):
        yield window


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
