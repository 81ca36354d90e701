"""The header of a PNG file, and whether its checksums hold, without decoding it."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNK = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_MODES = {
    (1, 0): "1", (2, 0): "L", (4, 0): "L", (8, 0): "L", (16, 0): "I;16",
    (8, 2): "RGB", (16, 2): "RGB",
    (1, 3): "P", (2, 3): "P", (4, 3): "P", (8, 3): "P",
    (8, 4): "LA", (8, 6): "RGBA", (16, 6): "RGBA",
}  # fmt: skip
"""Pillow's mode by the bits of a sample and the type of colour."""
_PLAIN = frozenset({b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs", b"tIME"})


@dataclass(frozen=True, slots=True)
class PngHeader:
    """What the header of a PNG says; ``mode`` is Pillow's."""

    width: int
    height: int
    mode: str


def plain_png(data: bytes) -> PngHeader | None:
    """The header of a PNG that is sound as far as its checksums tell and holds nothing but pixels and their colours.

    None for anything else, which is not to say that it is broken.
    """
    if not data.startswith(_SIGNATURE):
        return None
    view, place = memoryview(data), len(_SIGNATURE)
    header: PngHeader | None = None
    has_pixels = False
    try:
        while True:
            length, kind = _CHUNK.unpack_from(data, place)
            start, end = place + _CHUNK.size, place + _CHUNK.size + length
            if zlib.crc32(view[place + 4 : end]) != _CHECKSUM.unpack_from(data, end)[0]:
                return None
            if header is None:
                if kind != b"IHDR" or length != _HEADER.size:
                    return None
                width, height, bits, colour, *ways = _HEADER.unpack_from(data, start)
                if (bits, colour) not in _MODES or ways[:2] != [0, 0] or ways[2] > 1 or not width or not height:
                    return None
                header = PngHeader(width, height, _MODES[bits, colour])
            elif kind == b"IEND":
                return header if has_pixels else None
            elif kind not in _PLAIN:
                return None
            has_pixels = has_pixels or kind == b"IDAT"
            place = end + _CHECKSUM.size
    except struct.error:  # it ends too early
        return None
