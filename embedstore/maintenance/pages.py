"""Reads the rows of a SQLite file page by page, without trusting anything that leads from one page to another.

SQLite reaches a row through the pages above it; where one of those is damaged, it cannot, though the row is whole. Here
every page that looks like a leaf of a table is read by itself, after the file format that SQLite publishes
(https://www.sqlite.org/fileformat2.html). What comes out must be checked by its own hash.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

_LEAF = 0x0D
_HEADER_BYTES = 100
_MAGIC = b"SQLite format 3\0"
_INTEGER_BYTES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_MAX_CELLS = 4096

Cells = tuple[Any, ...]


class PageFile:
    """A SQLite file as pages of ``page_bytes``; usable as a context manager."""

    def __init__(self, path: Path, page_bytes: int) -> None:
        self._page_bytes = page_bytes
        self._file = path.open("rb")
        size = path.stat().st_size
        self._n_pages = size // page_bytes
        self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else None

    def __enter__(self) -> PageFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()

    @property
    def header_is_whole(self) -> bool:
        """Whether the file begins as a SQLite file of this page size does."""
        if self._map is None or self._n_pages == 0 or self._map[:16] != _MAGIC:
            return False
        return int.from_bytes(self._map[16:18], "big") == self._page_bytes

    @property
    def n_missing(self) -> int:
        """How many pages the file has lost at its end, as far as its header says."""
        if self._map is None or not self.header_is_whole:
            return 0
        return max(0, int.from_bytes(self._map[28:32], "big") - self._n_pages)

    def rows(
        self, newest: Sequence[int] = (), doubtful: Collection[int] = ()
    ) -> Iterator[tuple[int, Cells]]:
        """The rowid and the cells of every row in every leaf page that is in use; unreadable cells are passed over.

        The pages ``doubtful`` come first, the pages ``newest`` last, in that order.
        """
        unread = set(range(1, self._n_pages + 1)) - self.free_pages()
        last = [number for number in newest if number in unread]
        first = sorted(unread & set(doubtful))
        for number in [*first, *sorted(unread - set(last) - set(first)), *last]:
            yield from self._rows_of(number)

    def _page(self, number: int) -> bytes:
        assert self._map is not None
        if not 1 <= number <= self._n_pages:
            raise ValueError(number)
        return self._map[(number - 1) * self._page_bytes : number * self._page_bytes]

    def free_pages(self) -> set[int]:
        """The pages that hold nothing any more, as the header says; they may still show rows that were deleted.

        Empty where their list is not as long as the header says: a page of it is damaged, or older than the rest, and
        might count pages as free that are in use.
        """
        free: set[int] = set()
        trunk, n_free = self._freelist()
        while 1 <= trunk <= self._n_pages and trunk not in free:
            page = self._page(trunk)
            following, n_leaves = struct.unpack(">II", page[:8])
            n_leaves = min(n_leaves, self._page_bytes // 4 - 2)
            free |= {trunk, *struct.unpack(f">{n_leaves}I", page[8 : 8 + 4 * n_leaves])}
            trunk = following
        return free if len(free) == n_free else set()

    @property
    def freelist_is_whole(self) -> bool:
        """Whether it is known which pages hold nothing any more."""
        return self.header_is_whole and len(self.free_pages()) == self._freelist()[1]

    def _freelist(self) -> tuple[int, int]:
        """The first page of the list of free pages, and how many there are; (0, 0) where the header is not whole."""
        if not self.header_is_whole:
            return 0, 0
        trunk, n_free = struct.unpack(">2I", self._page(1)[32:40])
        return int(trunk), int(n_free)

    def _rows_of(self, number: int) -> Iterator[tuple[int, Cells]]:
        page = self._page(number)
        start = _HEADER_BYTES if number == 1 else 0
        if page[start] != _LEAF:
            return
        n_cells = struct.unpack(">H", page[start + 3 : start + 5])[0]
        if n_cells > _MAX_CELLS:
            return
        for i in range(n_cells):
            at = start + 8 + 2 * i
            try:
                (offset,) = struct.unpack(">H", page[at : at + 2])
                yield self._row(page, offset)
            except (ValueError, IndexError, struct.error, UnicodeDecodeError, OverflowError):
                continue  # what is lost is told by the counts

    def _row(self, page: bytes, offset: int) -> tuple[int, Cells]:
        n_bytes, offset = _varint(page, offset)
        rowid, offset = _varint(page, offset)
        if rowid >= 1 << 63:
            rowid -= 1 << 64
        return rowid, _cells(self._payload(page, offset, n_bytes))

    def _payload(self, page: bytes, offset: int, n_bytes: int) -> bytes:
        """A row's bytes: those in its page, and the rest from its chain of overflow pages."""
        if n_bytes > self._page_bytes * self._n_pages:
            raise ValueError(n_bytes)
        most = self._page_bytes - 35
        if n_bytes <= most:
            found = page[offset : offset + n_bytes]
        else:
            least = (self._page_bytes - 12) * 32 // 255 - 23
            local = least + (n_bytes - least) % (self._page_bytes - 4)
            local = local if local <= most else least
            parts = [page[offset : offset + local]]
            (following,) = struct.unpack(">I", page[offset + local : offset + local + 4])
            missing = n_bytes - local
            while missing > 0:
                overflow = self._page(following)
                parts.append(overflow[4 : 4 + missing])
                missing -= len(parts[-1])
                (following,) = struct.unpack(">I", overflow[:4])
            found = b"".join(parts)
        if len(found) != n_bytes:
            raise ValueError(n_bytes)
        return found


def _varint(page: bytes, offset: int) -> tuple[int, int]:
    """SQLite's variable-length integer at ``offset``, and the offset behind it."""
    value = 0
    for i in range(8):
        byte = page[offset + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + i + 1
    return value << 8 | page[offset + 8], offset + 9


def _cells(payload: bytes) -> Cells:
    header_bytes, offset = _varint(payload, 0)
    kinds = []
    while offset < header_bytes:
        kind, offset = _varint(payload, offset)
        kinds.append(kind)
    cells: list[Any] = []
    at = header_bytes
    for kind in kinds:
        value, n_bytes = _value(payload, at, kind)
        cells.append(value)
        at += n_bytes
    if at != len(payload):
        raise ValueError(at)
    return tuple(cells)


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    """A cell of a serial type, and its number of bytes."""
    if kind == 0:
        return None, 0
    if kind in _INTEGER_BYTES:
        n_bytes = _INTEGER_BYTES[kind]
        return int.from_bytes(payload[at : at + n_bytes], "big", signed=True), n_bytes
    if kind == 7:
        return struct.unpack(">d", payload[at : at + 8])[0], 8
    if kind in (8, 9):
        return kind - 8, 0
    if kind < 12:
        raise ValueError(kind)
    n_bytes = (kind - 12) // 2
    found = payload[at : at + n_bytes]
    return (found.decode() if kind % 2 else found), n_bytes
