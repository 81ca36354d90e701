"""Decoded points side by side in one picture, or one after the other in a moving one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.errors import InvalidInput, StorageFailed, StorageFull
from embedstore.names import check_file
from embedstore.storage.files import is_full

if TYPE_CHECKING:
    from PIL.Image import Image

STILL = (".png", ".webp")
MOVING = (".gif",)
_LEAST_SIDE = 96
_GAP = 2
_MOST_WEBP = 16_383


def check_strip(file: str | os.PathLike[str]) -> Path:
    """The path of a strip that can be written; else InvalidInput."""
    return check_file(file, (*STILL, *MOVING), "strip")


def save_strip(
    rows: Sequence[Sequence[Any]], file: str | os.PathLike[str], *, moving: bool = False, seconds: float = 0.12
) -> None:
    """Write rows of Pillow images to a PNG or WebP, small ones magnified; to a GIF, one after the other, to and fro.

    moving: so to a WebP, too. InvalidInput where what was decoded is no picture, and for a moving PNG.
    """
    from PIL.Image import Image

    path = check_strip(file)
    if moving and path.suffix.lower() == ".png":
        raise InvalidInput(f"{str(file)!r} cannot move; take a GIF or a WebP")
    images = [one for row in rows for one in row]
    rows = [row for row in rows if row]
    if not images or not all(isinstance(one, Image) for one in images):
        raise InvalidInput("what these points decode to is no picture, so there is nothing to draw")
    try:
        if path.suffix.lower() in MOVING or moving:
            shown = [_magnified(one) for one in images]
            shown += shown[-2:0:-1]
            shown[0].save(path, save_all=True, append_images=shown[1:], duration=round(1000 * seconds), loop=0)
        else:
            drawn = sheet(rows)
            if path.suffix.lower() == ".webp" and max(drawn.size) > _MOST_WEBP:
                raise InvalidInput(f"a WebP has {_MOST_WEBP:,} pixels a side at most; take a PNG, or fewer steps")
            drawn.save(path)
    except OSError as error:
        kind = StorageFull if is_full(error) else StorageFailed
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error


def sheet(rows: Sequence[Sequence[Image]]) -> Image:
    """Rows of images on one, with small gaps."""
    from PIL import Image

    shown = [[_magnified(one) for one in row] for row in rows]
    width = max(sum(one.width + _GAP for one in row) - _GAP for row in shown)
    height = sum(max(one.height for one in row) + _GAP for row in shown) - _GAP
    mode = "RGB" if any(one.mode != "L" for row in shown for one in row) else "L"
    made = Image.new(mode, (width, height), "white")
    top = 0
    for row in shown:
        left = 0
        for one in row:
            made.paste(one.convert(mode), (left, top))
            left += one.width + _GAP
        top += max(one.height for one in row) + _GAP
    return made


def _magnified(image: Image) -> Image:
    from PIL.Image import Resampling

    factor = max(1, round(_LEAST_SIDE / max(image.size)))
    return image if factor == 1 else image.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
