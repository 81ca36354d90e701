"""Pictures from anywhere, as what a record keeps of them and as pixels: checked before and while they are decoded.

The content of a picture's record is a text. Where the bytes themselves are kept it is a data URL (RFC 2397), else the
name that their SHA-256 gives them (``ni:``, RFC 6920), and the record's ``uri`` is the file that had those bytes.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import functools
import hashlib
import io
import logging
import os
import re
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.png import plain_png

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {
    "PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp",
    "TIFF": "image/tiff",
}  # fmt: skip
"""The formats that are read, by Pillow's names, with their media types."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_PIXELS = 40_000_000
MAX_BYTES = 256 << 20
_NAMED = re.compile(r"ni:///sha-256;([A-Za-z0-9_-]{43})(?:\?ct=(image/[a-z]+))?")
_TAKEN, _TAKEN_ANY, _SUB_IFD = 0x9003, 0x0132, 0x8769
_ORIENTATION, _UPRIGHT = 0x0112, 1
_PILLOW = r"PIL\."
_reading: ContextVar[bool] = ContextVar("reading", default=False)
_WIDE = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True, slots=True)
class Picture:
    """The bytes of a picture with what its header says, checked to be of a format that is read and not too large.

    ``path``: the file that they were read from, absolute; None where they were given themselves.
    """

    data: bytes = field(repr=False)
    format: str
    width: int
    height: int
    mode: str
    taken: str | None = None
    path: str | None = None

    @property
    def digest(self) -> bytes:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.data).digest()

    def data_url(self) -> str:
        """The bytes as a text: ``data:image/png;base64,...``."""
        return f"data:{FORMATS[self.format]};base64,{base64.b64encode(self.data).decode()}"

    def name(self) -> str:
        """The bytes' own name: ``ni:///sha-256;...?ct=image/png``."""
        hashed = base64.urlsafe_b64encode(self.digest).rstrip(b"=").decode()
        return f"ni:///sha-256;{hashed}?ct={FORMATS[self.format]}"

    def decode(self) -> Image:
        """The first frame as Pillow's image, turned as its EXIF says; InvalidInput where the bytes are broken."""
        with _guarded(self.path or "the picture"):
            from PIL import Image, ImageOps

            opened = Image.open(io.BytesIO(self.data), formats=[self.format])
            opened.load()
            if opened.getexif().get(_ORIENTATION, _UPRIGHT) == _UPRIGHT:
                return opened
            return ImageOps.exif_transpose(opened)


def read_picture(given: Any) -> Picture:
    """A picture from a path, bytes, a Pillow image or an array (h, w), (h, w, 3) or (h, w, 4) of uint8.

    Only the header is read of a file's content. Raises InvalidInput for what is no picture of ``FORMATS``, is too
    large, or is no regular file; images and arrays become PNG.
    """
    if isinstance(given, Picture):
        return given
    if isinstance(given, PictureFile):
        return given.read()
    if isinstance(given, (str, os.PathLike)):
        path = os.fsdecode(os.fspath(given))
        return picture_of(_file_bytes(path), os.path.abspath(path))
    if isinstance(given, (bytes, bytearray, memoryview)):
        return picture_of(bytes(given), None)
    if isinstance(given, np.ndarray):
        given = _image_of_array(given)
    pillow = sys.modules.get("PIL.Image")
    if pillow is not None and isinstance(given, pillow.Image):
        written = io.BytesIO()
        with _guarded("the picture"):
            (given if given.mode in ("1", "P", "I;16") else plain(given)).save(written, "PNG")
        return picture_of(written.getvalue(), None)
    raise InvalidInput(
        f"a picture must be a path, bytes, a Pillow image or an array of uint8, not {type(given).__name__}"
    )


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A file below a folder; a link that leads out of the folder is not read."""

    folder: str
    path: str

    def read(self) -> Picture:
        """The picture; InvalidInput as ``read_picture`` raises it, and for a link that leads out."""
        inside, real = os.path.realpath(self.folder), os.path.realpath(self.path)
        if os.path.commonpath([inside, real]) != inside:
            raise InvalidInput(f"the picture {self.path!r} is a link that leads out of {self.folder!r}; copy it in")
        return read_picture(self.path)


def picture_of(data: bytes, path: str | None) -> Picture:
    """The picture that bytes hold, by its header; InvalidInput for what is none, or too large."""
    what = repr(path) if path is not None else "the picture"
    header = plain_png(data)
    if header is not None:  # nearly every PNG, and quicker by half
        _check_size(what, header.width, header.height)
        return Picture(data, "PNG", header.width, header.height, header.mode, None, path)
    with _guarded(what):
        from PIL import Image

        if data[:2] in (b"II", b"MM"):
            _silence_tiff()

        with Image.open(io.BytesIO(data), formats=list(FORMATS)) as opened:
            width, height = opened.size
            _check_size(what, width, height)
            assert opened.format is not None
            if opened.format == "PNG":
                with Image.open(io.BytesIO(data), formats=["PNG"]) as again:
                    again.verify()  # the checksums of its pixels, which decoding passes over
            return Picture(data, opened.format, width, height, opened.mode, _taken(opened), path)


def _check_size(what: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InvalidInput(
            f"{what} has {width} x {height} pixels; at most {MAX_PIXELS // 1_000_000} million are read: make it smaller"
        )


def picture_of_record(content: str | None, uri: str | None) -> Picture:
    """The picture of a record, by its content and uri.

    Raises InvalidInput where the file is gone or holds other bytes now than when it was brought in.
    """
    if content is not None and content.startswith("data:"):
        _, _, encoded = content.partition(";base64,")
        try:
            return picture_of(base64.b64decode(encoded, validate=True), None)
        except binascii.Error:
            raise InvalidInput("the record's content is no picture: its base64 cannot be read") from None
    named = None if content is None else _NAMED.fullmatch(content)
    if named is None or uri is None:
        raise InvalidInput("the record has no picture: neither bytes nor the name and file of one")
    picture = picture_of(_file_bytes(uri), uri)
    if base64.urlsafe_b64encode(picture.digest).rstrip(b"=").decode() != named[1]:
        raise InvalidInput(
            f"{uri!r} holds another picture now than when it was brought in; ingest it again, or put the old file back"
        )
    return picture


def thumbnail(picture: Picture, side: int = 96) -> bytes:
    """A small PNG of a picture, at most ``side`` pixels wide and high."""
    image = plain(picture.decode())
    image.thumbnail((side, side))
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def plain(image: Image) -> Image:
    """An image of any mode as L, LA, RGB or RGBA with eight bits a channel; wider numbers are scaled down."""
    if image.mode in ("L", "LA", "RGB", "RGBA"):
        return image
    if image.mode in _WIDE:
        return _narrowed(image)
    if image.mode == "1":
        return image.convert("L")
    if image.mode == "La":
        return image.convert("LA")
    if "transparency" in image.info or image.mode in ("PA", "RGBa"):
        return image.convert("RGBA")
    return image.convert("RGB")


def _narrowed(image: Image) -> Image:
    """An image of 16 or 32 bits, or of floats, as L."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        scale = 255.0 if float(np.nanmax(values, initial=0.0)) <= 1.0 else 1.0
        values = np.nan_to_num(values) * scale
    else:
        values = values / 257.0  # 65535 becomes 255
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8), "L")


def _image_of_array(pixels: np.ndarray) -> Image:
    from PIL import Image

    right = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if not right or pixels.dtype != np.uint8 or not pixels.size:
        raise InvalidInput(
            f"a picture as an array must be uint8 of shape (h, w), (h, w, 3) or (h, w, 4), not {pixels.dtype} of"
            f" shape {pixels.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _file_bytes(path: str) -> bytes:
    """The bytes of a regular file; InvalidInput for anything else, and for one that is too large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not hang
    except (OSError, ValueError) as error:
        missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
        reason = "there is no such file" if missing else getattr(error, "strerror", None) or str(error)
        raise InvalidInput(f"the picture {path!r} cannot be read: {reason}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(f"the picture {path!r} is no regular file")
        if status.st_size > MAX_BYTES:
            raise InvalidInput(f"the picture {path!r} has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise InvalidInput(f"the picture {path!r} cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


@functools.cache
def _silence_tiff() -> None:
    """Have libtiff keep what it says of broken files to itself; it writes to stderr past Python, and Pillow lets it.

    Pillow's own log of such files is kept quiet while this module reads them.
    """
    import ctypes

    from PIL import Image, features

    logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda record: not _reading.get())
    if not features.check("libtiff"):
        return
    Image.preinit()
    with suppress(OSError, AttributeError):  # another build of Pillow: it then says what it says
        library = ctypes.CDLL(_loaded_library("libtiff"))
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            handler = getattr(library, name)
            handler.argtypes, handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            handler(None)


def _loaded_library(name: str) -> str:
    """The path of a library that this process has loaded; OSError where there is none, or no telling."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            path = line.rstrip("\n").partition("/")
            if path[1] and os.path.basename(path[2]).startswith(name):
                return f"/{path[2]}"
    raise OSError(f"{name} is not loaded")


def _taken(opened: Image) -> str | None:
    """When a picture was taken, by its EXIF, as ISO 8601; None where it does not say so in a way that can be read."""
    try:
        exif = opened.getexif()
        told = exif.get_ifd(_SUB_IFD).get(_TAKEN) or exif.get(_TAKEN_ANY)
        return datetime.datetime.strptime(str(told).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat() if told else None
    except Exception:  # what a broken block makes of this is of many kinds, and a date is not worth a refusal
        return None


@contextmanager
def _guarded(what: str) -> Iterator[None]:
    """Whatever a decoder raises for bytes that it cannot read, as InvalidInput; its warnings are kept to itself."""
    token = _reading.set(True)
    # Not ``catch_warnings``, which threads that decode side by side would restore in the wrong order.
    if not any(getattr(one[3], "pattern", None) == _PILLOW for one in warnings.filters):
        warnings.filterwarnings("ignore", module=_PILLOW)
    try:
        yield
    except InvalidInput:
        raise
    except MemoryError:
        raise InvalidInput(f"{what} asks for more memory than there is") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        from PIL import UnidentifiedImageError

        if isinstance(error, UnidentifiedImageError):
            raise InvalidInput(f"{what} is no picture that can be read; formats are {', '.join(FORMATS)}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInput(f"{what} is a broken picture: {reason}") from None
    finally:
        _reading.reset(token)
