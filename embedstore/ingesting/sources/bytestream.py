"""The bytes of a file or pipe in order, decompressed on the way, with bounded memory."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import IO, Any, cast

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.source import unreadable

BLOCK_BYTES = 1 << 18
ZSTD_STEP_BYTES = 1 << 10
"""How much is unpacked at once: zstd grows at most 32,768-fold, so that one step gives at most 32 MiB."""

UTF8_BOM = b"\xef\xbb\xbf"
FOREIGN_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


class ByteStream:
    """Reads ``raw`` to its end, once.

    ``position`` counts the bytes taken from ``raw``, ``offset`` the bytes given out after decompression.
    ``compression`` is "gz", "zst" or None, ``encoding`` that of its text, by Python's names; None for UTF-8.
    """

    def __init__(
        self, raw: IO[bytes], name: str, compression: str | None = None, encoding: str | None = None
    ) -> None:
        self.name = name
        self._encoding = encoding
        self.position = 0
        self.offset = 0
        self._compression = compression
        self._read_raw = getattr(raw, "read1", raw.read)  # a pipe gives what it has, without waiting for more

    def read(self, n_bytes: int = BLOCK_BYTES) -> bytes:
        """Up to ``n_bytes`` as they lie in the file; empty at its end."""
        try:
            found = bytes(self._read_raw(n_bytes) or b"")
        except OSError as error:
            raise unreadable(self.name, error) from None
        self.position += len(found)
        return found

    def blocks(self) -> Iterator[bytes]:
        """The decompressed bytes in blocks that are not empty; InvalidInput where the stream is damaged."""
        unpack = {"gz": self._gzip_blocks, "zst": self._zstd_blocks, None: self._plain_blocks}
        for block in unpack[self._compression]():
            self.offset += len(block)
            yield block

    def text_blocks(self) -> Iterator[bytes]:
        """As ``blocks``, for text, which becomes UTF-8: its byte order mark is left out, another one refused."""
        if self._encoding is not None:
            yield from self._transcoded(self._encoding)
            return
        blocks = self.blocks()
        head = b""
        for block in blocks:
            head += block
            if len(head) >= 4:
                break
        head = without_bom(head, self.name)
        if head:
            yield head
        yield from blocks

    def _transcoded(self, encoding: str) -> Iterator[bytes]:
        """The text in UTF-8; InvalidInput where it is not of the encoding that was named."""
        decoder = codecs.getincrementaldecoder(encoding)()
        first = True
        try:
            for block in chain(self.blocks(), [b""]):
                text = decoder.decode(block, final=not block)
                if text:
                    yield (text.removeprefix("\ufeff") if first else text).encode()
                    first = False
        except UnicodeError as error:
            reason = getattr(error, "reason", None) or error
            raise InvalidInput(f"{self.name}: the file is not in {encoding}, as was said: {reason}") from None

    def _plain_blocks(self) -> Iterator[bytes]:
        while block := self.read():
            yield block

    def _gzip_blocks(self) -> Iterator[bytes]:
        # GzipFile needs of its file only read(); it checks each member's CRC and length.
        try:
            with gzip.GzipFile(fileobj=cast(Any, self), mode="rb") as unpacked:
                while block := unpacked.read(BLOCK_BYTES):
                    yield block
        except EOFError:
            raise InvalidInput(f"{self.name}: the gzip stream ends too early; the file is cut off") from None
        except (zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{self.name}: the gzip stream is damaged: {error}") from None

    def _zstd_blocks(self) -> Iterator[bytes]:
        # Not stream_reader: it takes a cut-off frame for a complete one, silently (zstandard 0.25).
        import zstandard

        frame = None
        while packed := self.read():
            view = memoryview(packed)
            while view:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                step, view = view[:ZSTD_STEP_BYTES], view[ZSTD_STEP_BYTES:]
                try:
                    block = frame.decompress(step)
                except zstandard.ZstdError as error:
                    raise InvalidInput(f"{self.name}: the zstd stream is damaged: {error}") from None
                if block:
                    yield block
                if frame.eof:
                    n_unused = len(frame.unused_data)
                    view = memoryview(packed)[len(packed) - len(view) - n_unused :]
                    frame = None
        if frame is not None:
            raise InvalidInput(f"{self.name}: the zstd stream ends too early; the file is cut off")


def without_bom(head: bytes, name: str) -> bytes:
    """The first bytes of a text without their UTF-8 byte order mark; InvalidInput for UTF-16 or UTF-32."""
    for bom, encoding in FOREIGN_BOMS.items():
        if head.startswith(bom):
            raise InvalidInput(f"{name}: the file is {encoding}; save it as UTF-8")
    return head.removeprefix(UTF8_BOM)


@contextmanager
def opened(
    path: str, name: str, compression: str | None, encoding: str | None = None
) -> Iterator[ByteStream]:
    """The file at ``path`` as a ByteStream, closed at the end; InvalidInput where it cannot be opened."""
    try:
        raw = open(path, "rb", buffering=0)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    with raw:
        yield ByteStream(raw, name, compression, encoding)
