"""How a picture of any size and mode becomes the pixels that a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedstore.errors import InvalidInput
from embedstore.pictures import Picture, plain
from embedstore.vae.described import made_from

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = npt.NDArray[np.uint8]
"""Pixels of one picture (channels, size, size), or of many with n in front."""
FITS = ("crop", "pad", "stretch")
MODES = {"grey": 1, "colour": 3}
_MOST_CHANNEL = 255
_MOST_SIDE = 4096


@dataclass(frozen=True, slots=True)
class ImagePreparation:
    """What is done to every picture, the same in training and in encoding.

    size: pixels a side. mode: 'grey' or 'colour'. fit: 'crop' cuts the middle square out, 'pad' fills up to a square
    with the background, 'stretch' gives up the proportions. background: what shows through alpha, red, green, blue.
    """

    size: int
    mode: str = "colour"
    fit: str = "crop"
    background: tuple[int, int, int] = (255, 255, 255)

    def check(self) -> None:
        """Raise InvalidInput for what cannot be."""
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= _MOST_SIDE:
            raise InvalidInput(f"size is {self.size!r}; it must be a whole number of pixels from 1 to {_MOST_SIDE:,}")
        if self.mode not in MODES:
            raise InvalidInput(f"mode is {self.mode!r}; it must be grey or colour")
        if self.fit not in FITS:
            raise InvalidInput(f"fit is {self.fit!r}; it must be one of {', '.join(FITS)}")
        if not isinstance(self.background, tuple) or len(self.background) != 3 or any(
            not isinstance(one, int) or not 0 <= one <= _MOST_CHANNEL for one in self.background
        ):
            raise InvalidInput(f"background is {self.background!r}; give red, green and blue from 0 to 255")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return MODES[self.mode]

    def apply(self, picture: Picture) -> Pixels:
        """A picture's pixels (channels, size, size); InvalidInput where it is broken."""
        return self.pixels_of(picture.decode())

    def pixels_of(self, image: Image) -> Pixels:
        """The pixels of a decoded picture."""
        image = self._composited(plain(image))
        mode = "L" if self.mode == "grey" else "RGB"
        image = self._fitted(image if image.mode == mode else image.convert(mode))
        pixels = np.asarray(image, np.uint8).reshape(self.size, self.size, self.channels)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def image_of(self, pixels: Pixels) -> Image:
        """The picture of pixels (channels, size, size)."""
        from PIL import Image

        return Image.fromarray(pixels[0] if self.channels == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def _composited(self, image: Image) -> Image:
        if image.mode not in ("LA", "RGBA"):
            return image
        from PIL import Image

        ground = Image.new("RGBA", image.size, (*self.background, _MOST_CHANNEL))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")

    def _fitted(self, image: Image) -> Image:
        width, height = image.size
        whole = (self.size, self.size)
        if (width, height) == whole:
            return image
        from PIL import ImageOps
        from PIL.Image import Resampling

        if self.fit == "crop":
            return ImageOps.fit(image, whole, Resampling.BICUBIC)
        if self.fit == "pad":
            colour = self.background if image.mode == "RGB" else round(sum(self.background) / 3)
            return ImageOps.pad(image, whole, Resampling.BICUBIC, color=colour)
        return image.resize(whole, Resampling.BICUBIC)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ImagePreparation:
        """Read what ``to_json`` gave; InvalidInput for anything else."""
        background = fields.get("background")
        return made_from(
            cls, {**fields, "background": tuple(background) if isinstance(background, list) else background},
            "the preparation of pictures",
        )  # fmt: skip
