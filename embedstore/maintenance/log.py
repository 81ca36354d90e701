"""Brings SQLite's write-ahead log into a copy of its database, past what is damaged in it.

SQLite reads a log up to the first page whose checksum is wrong, and forgets everything behind. But each page's checksum
continues from that of the page before, as it is written there, so every page can be checked by itself
(https://www.sqlite.org/fileformat2.html#walformat). Pages of commits that were not finished are left out.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_HEADER = struct.Struct(">8I")  # magic, version, page size, sequence, two salts, two sums
_FRAME = struct.Struct(">6I")  # page, pages of the database after a commit (else 0), two salts, two sums
_BIG_ENDIAN = 0x377F0683
_HEADER_SUMMED_BYTES = 24
_SUMMED_BYTES = 8
"""So much of a frame's header is summed, before the page."""


@dataclass(slots=True)
class LogPages:
    """What was brought in: the pages, oldest first, and how many others could not be read.

    doubtful: pages whose newest version could not be read; what the database has of them is older than the rest.
    """

    pages: list[int] = field(default_factory=list)
    doubtful: set[int] = field(default_factory=set)
    n_damaged: int = 0


@dataclass(frozen=True, slots=True)
class _Frame:
    offset: int
    page: int
    n_pages: int
    salts: tuple[int, int]


def bring_in(log: Path, database: Path, page_bytes: int) -> LogPages:
    """Write into ``database`` every page of ``log`` that is whole and belongs to a finished commit."""
    found = LogPages()
    with log.open("rb") as source, database.open("r+b") as target:
        frames, lost = _whole_frames(source, page_bytes)
        last = max((i for i, frame in frames.items() if frame.n_pages), default=None)
        if last is None:
            found.n_damaged = len(lost)
            return found
        found.n_damaged = last + 1 - sum(i <= last for i in frames)
        newest = {frame.page: frame for i, frame in frames.items() if i <= last}
        for frame in newest.values():
            source.seek(frame.offset + _FRAME.size)
            target.seek((frame.page - 1) * page_bytes)
            target.write(source.read(page_bytes))
        target.truncate(frames[last].n_pages * page_bytes)
    found.doubtful = {page for i, page in lost.items() if i <= last and not _is_newer(frames, page, i, last)}
    found.pages = sorted(newest.keys() - found.doubtful, key=lambda page: newest[page].offset)
    return found


def _is_newer(frames: dict[int, _Frame], page: int, place: int, last: int) -> bool:
    """Whether a whole frame behind ``place``, of a finished commit, holds the page."""
    return any(frame.page == page for i, frame in frames.items() if place < i <= last)


def _whole_frames(source: BinaryIO, page_bytes: int) -> tuple[dict[int, _Frame], dict[int, int]]:
    """By place, the frames of the newest log in the file whose checksum is right; and which page the others claim."""
    header = source.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return {}, {}
    magic, _, _, _, *salted, first_sum, second_sum = _HEADER.unpack(header)
    order = ">u4" if magic == _BIG_ENDIAN else "<u4"
    before = (first_sum, second_sum)
    frames: dict[int, _Frame] = {}
    lost: dict[int, int] = {}
    offset, place = _HEADER.size, 0
    salts: tuple[int, int] | None = None
    if _checksum(np.frombuffer(header[:_HEADER_SUMMED_BYTES], order), (0, 0)) == before:
        salts = (salted[0], salted[1])  # those of the newest log; else its first whole frame tells
    while len(content := source.read(_FRAME.size + page_bytes)) == _FRAME.size + page_bytes:
        page, n_pages, salt, other_salt, *sums = _FRAME.unpack_from(content)
        words = np.frombuffer(content[:_SUMMED_BYTES] + content[_FRAME.size :], order)
        if salts in (None, (salt, other_salt)) and page and _checksum(words, before) == tuple(sums):
            salts = (salt, other_salt)  # frames behind the newest log are left from an older one
            frames[place] = _Frame(offset, page, n_pages, salts)
        else:
            lost[place] = page
        before = (sums[0], sums[1])
        offset += len(content)
        place += 1
    return frames, lost


def _checksum(words: npt.NDArray[np.uint32], before: tuple[int, int]) -> tuple[int, int]:
    """SQLite's running sums over pairs of words: s0 += x0 + s1, s1 += x1 + s0, modulo 2**32."""
    ahead, weights = _weights(words.size // 2)
    pairs = words.astype(np.uint32).reshape(-1, 2)  # (n, 2)
    sums = np.einsum("kij,kj->i", weights, pairs, dtype=np.uint32, casting="unsafe")
    first, second = ahead
    return (
        int(first[0] * before[0] + first[1] * before[1] + int(sums[0])) & 0xFFFFFFFF,
        int(second[0] * before[0] + second[1] * before[1] + int(sums[1])) & 0xFFFFFFFF,
    )


@functools.cache
def _weights(n: int) -> tuple[tuple[tuple[int, int], tuple[int, int]], npt.NDArray[np.uint32]]:
    """The running sums as one linear map: of the state before (2, 2), and of each of ``n`` pairs (n, 2, 2).

    A step takes (s0, s1) to (s0 + s1, s0 + 2 s1), and (x0, x1) into it as (x0, x0 + x1).
    """
    a, b, c, d = 1, 0, 0, 1
    weights = np.empty((n, 2, 2), np.uint32)
    for k in range(n - 1, -1, -1):
        weights[k] = [[(a + b) & 0xFFFFFFFF, b], [(c + d) & 0xFFFFFFFF, d]]
        a, b, c, d = (a + b) & 0xFFFFFFFF, (a + 2 * b) & 0xFFFFFFFF, (c + d) & 0xFFFFFFFF, (c + 2 * d) & 0xFFFFFFFF
    return ((a, b), (c, d)), weights
