"""Lines of UTF-8 text from a stream of bytes, each error with its byte offset."""

from __future__ import annotations

import io
from collections.abc import Iterator

from embedstore.errors import InvalidRecord
from embedstore.ingesting.sources.bytestream import ByteStream

MAX_LINE_BYTES = 64 << 20


def byte_lines(stream: ByteStream) -> Iterator[tuple[int, bytes]]:
    """Each line without its newline, preceded by the byte offset at which it begins.

    Raises InvalidRecord (without its row) for a line over 64 MiB.
    """
    for start, region in _regions(stream, whole_blocks=False):
        for line in region.split(b"\n"):
            yield start, line
            start += len(line) + 1


def text_lines(stream: ByteStream, *, lenient: bool = False) -> Iterator[str]:
    r"""Each line with its own ending, ``\n``, ``\r\n`` or ``\r``, as ``csv.reader`` wants them.

    Raises InvalidRecord (without its row) for NUL, for what is not UTF-8 and for a line over 64 MiB; the
    lines before the one at fault are given first. With ``lenient`` NUL stays and a byte at fault becomes a
    lone surrogate (PEP 383), for the caller to find.
    """
    for start, region in _regions(stream, whole_blocks=True):
        if lenient:
            yield from io.StringIO(region.decode(errors="surrogateescape"), newline="")
            continue
        problem = text_problem(region, start)
        if problem is not None:
            reason, at = problem
            region = region[: max(region.rfind(b"\n", 0, at), region.rfind(b"\r", 0, at)) + 1]
        yield from io.StringIO(region.decode(), newline="")
        if problem is not None:
            raise InvalidRecord(reason)


def text_problem(text: bytes, start: int) -> tuple[str, int] | None:
    """Why ``text``, which begins at byte ``start`` of its file, is no text, and where in it; else None.

    A wrong encoding is told before a NUL.
    """
    try:
        text.decode()
    except UnicodeDecodeError as error:
        found = " ".join(f"{byte:02X}" for byte in text[error.start : error.end])
        reason = f"not UTF-8 at byte offset {start + error.start}: {error.reason} ({found})"
        return f"{reason}; save the file as UTF-8", error.start
    at = text.find(b"\0")
    return None if at < 0 else (f"a NUL byte at byte offset {start + at}, which text cannot hold", at)


def _regions(stream: ByteStream, *, whole_blocks: bool) -> Iterator[tuple[int, bytes]]:
    r"""The stream cut only at line ends, each part preceded by its byte offset.

    With ``whole_blocks`` a part keeps its last line end, and a lone ``\r`` is a line end too; else a part
    is without its last ``\n``.
    """
    parts: list[bytes] = []
    n_kept = 0
    start: int | None = None
    for block in stream.text_blocks():
        if start is None:
            start = stream.offset - len(block)
        cut = block.rfind(b"\n") + 1
        if whole_blocks:  # a \r at the very end may be half of \r\n
            cut = max(cut, block.rfind(b"\r", 0, len(block) - 1) + 1)
        if cut:
            region = b"".join((*parts, block[: cut if whole_blocks else cut - 1]))
            yield start, region
            start += n_kept + cut
            parts, n_kept = [], 0
        if cut < len(block):
            parts.append(block[cut:])
            n_kept += len(block) - cut
        if n_kept > MAX_LINE_BYTES:
            raise InvalidRecord(f"a line is longer than {MAX_LINE_BYTES >> 20} MiB")
    if parts and start is not None:
        yield start, b"".join(parts)
