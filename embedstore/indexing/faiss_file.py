"""Checks what a file says of itself before FAISS reads it: FAISS allocates whatever a header claims.

Only indexes that a recipe can have made are let through: of the kind that its factory string makes, with every length
as the number of vectors demands, and nothing behind. Graphs and lists are gone through too, since FAISS follows
whatever number stands in them.
The layouts are those of ``faiss/impl/index_write.cpp``; a file of FAISS is told by the four letters it begins with.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.model import Metric

_HEADER = struct.Struct("<iqqqBi")
_BINARY_HEADER = struct.Struct("<iiqBi")
_METRIC = {Metric.EUCLIDEAN: 1, Metric.COSINE: 0, Metric.DOT: 0}
_FLAT = {Metric.EUCLIDEAN: b"IxF2", Metric.COSINE: b"IxFI", Metric.DOT: b"IxFI"}
_MOST_LEVELS = 64
_ID_BYTES = 8
_BLOCK_VECTORS = 32
"""Vectors that are scanned in registers at once."""
_MOST_CODE_BYTES = 8  # of one number


class _Fault(Exception):
    """What is wrong with a file, in words."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What an index must be: the kind by its factory string, without numbers, and how many vectors of what."""

    factory: str
    metric: Metric
    dim: int
    n_vectors: int
    mapped: bool = False  # lists stay on the disk, and are not to be read to be looked at


@dataclass(slots=True)
class ListPlaces:
    """Where the inverted lists of a file are: offsets and lengths in bytes, both (nlist,)."""

    offsets: npt.NDArray[np.int64]
    n_bytes: npt.NDArray[np.int64]


class _Reader:
    """Goes through the bytes of a file."""

    def __init__(self, content: npt.NDArray[np.uint8], expected: Expected) -> None:
        self.content = content.data
        self.expected = expected
        self.offset = 0
        self.lists: ListPlaces | None = None

    def take(self, layout: str) -> tuple[int, ...]:
        """The numbers of a packed structure."""
        numbers = struct.unpack_from(layout, self.content, self.offset)
        self.offset += struct.calcsize(layout)
        return numbers

    def skip(self, n_bytes: int, what: str) -> None:
        """Pass over bytes, which must be there."""
        if not 0 <= n_bytes <= len(self.content) - self.offset:
            raise _Fault(f"{what} of {n_bytes:,} bytes is longer than the file")
        self.offset += n_bytes

    def array(self, n_bytes: int, what: str, length: int | None = None) -> int:
        """Pass over an array of entries of ``n_bytes`` each that is preceded by its length; the length."""
        (found,) = self.take("<Q")
        if found > len(self.content):
            raise _Fault(f"{what} of {found:,} entries is longer than the file")
        if length is not None and found != length:
            raise _Fault(f"{what} has {found:,} entries, not {length:,}")
        self.skip(found * n_bytes, what)
        return found

    def code(self, wanted: bytes) -> None:
        """The four letters that tell the kind of what follows."""
        found = bytes(self.content[self.offset : self.offset + 4])
        if found != wanted:
            raise _Fault(f"it is an index of another kind ({found!r}, not {wanted!r})")
        self.offset += 4

    def header(self, code: bytes, n_vectors: int) -> None:
        """What every index begins with."""
        self.code(code)
        dim, found, _, _, is_trained, metric = struct.unpack_from(_HEADER.format, self.content, self.offset)
        self.offset += _HEADER.size
        self._check_size(dim, found, n_vectors)
        if metric != _METRIC[self.expected.metric] or is_trained != 1:
            raise _Fault("it compares by another metric")

    def _check_size(self, dim: int, found: int, n_vectors: int) -> None:
        wanted = self.expected.dim
        if (dim, found) != (wanted, n_vectors):
            raise _Fault(f"it is of {found:,} vectors of {dim:,} numbers, not {n_vectors:,} of {wanted:,}")

    # ---- parts

    def flat(self, n_vectors: int) -> None:
        """An index of whole vectors."""
        self.header(_FLAT[self.expected.metric], n_vectors)
        self.array(4, "its vectors", n_vectors * self.expected.dim)

    def scalar_quantizer(self) -> int:
        """How numbers become codes; the bytes of a vector's code."""
        _, _, _, dim, code_bytes = self.take("<iifQQ")
        if dim != self.expected.dim or code_bytes > dim * _MOST_CODE_BYTES:
            raise _Fault("its quantiser is of other vectors")
        self.array(4, "its quantiser's ranges")
        return code_bytes

    def product_quantizer(self) -> None:
        dim, n_pieces, bits = self.take("<QQQ")
        if dim != self.expected.dim or not 0 < n_pieces <= dim or bits not in (4, 8):
            raise _Fault("its quantiser is of other vectors")
        self.array(4, "its centroids", dim << bits)

    def codes(self) -> None:
        """Codes of a scalar quantiser, one after the other."""
        self.header(b"IxSQ", self.expected.n_vectors)
        code_bytes = self.scalar_quantizer()
        self.array(1, "its codes", self.expected.n_vectors * code_bytes)

    def numbers(self, kind: str, what: str, length: int | None = None) -> npt.NDArray[Any]:
        """The entries of an array that is preceded by its length."""
        start = self.offset + 8
        dtype = np.dtype(kind)
        self.array(dtype.itemsize, what, length)
        return np.frombuffer(self.content[start : self.offset], dtype)

    def graph(self) -> None:
        """The levels and neighbours of an HNSW graph."""
        n = self.expected.n_vectors
        n_chances = self.array(8, "its chances of levels")
        sums = self.numbers("<i4", "its neighbours up to each level")
        if max(n_chances, sums.size) > _MOST_LEVELS or not sums.size or sums[0] != 0 or (np.diff(sums) < 0).any():
            raise _Fault("its graph has other levels than a graph has")
        levels = self.numbers("<i4", "its levels", n)
        offsets = self.numbers("<u8", "its offsets", n + 1).astype(np.int64)
        neighbours = self.numbers("<i4", "its neighbours")
        entry, highest, *_ = self.take("<iiiii")  # and two efforts, and one number no longer in use
        if not n:
            return
        right = levels.min() >= 1 and levels.max() < sums.size and highest == levels.max() - 1
        if not (right and 0 <= entry < n and levels[entry] == highest + 1):
            raise _Fault("its graph has no way in")
        if offsets[0] != 0 or offsets[-1] != neighbours.size or (np.diff(offsets) != sums[levels]).any():
            raise _Fault("its graph has other neighbours than its levels demand")
        if neighbours.size and not (neighbours.min() >= -1 and neighbours.max() < n):
            raise _Fault("its graph leads to vectors that it does not have")
        for level in range(1, int(highest) + 1):
            nodes = np.flatnonzero(levels > level)
            places = offsets[nodes][:, None] + np.arange(sums[level], sums[level + 1])
            found = neighbours[places]  # (n_nodes, neighbours of a level)
            if (levels[found[found >= 0]] <= level).any():
                raise _Fault("its graph leads to vectors that are not on the level")

    def ivf(self, code: bytes) -> int:
        """What every kind of inverted lists begins with; the number of lists."""
        self.header(code, self.expected.n_vectors)
        nlist, _ = self.take("<QQ")
        if not 0 < nlist <= max(self.expected.n_vectors, 1):
            raise _Fault(f"it has {nlist:,} lists for {self.expected.n_vectors:,} vectors")
        self.flat(nlist)
        (kept_map,) = self.take("<B")
        if kept_map:
            raise _Fault("it keeps a map of its vectors, which no recipe does")
        self.array(8, "its map", 0)
        return nlist

    def inverted_lists(self, nlist: int, most_code_bytes: int) -> None:
        """Lists as arrays: ids and codes of each, one list after the other."""
        self.code(b"ilar")
        found, code_bytes = self.take("<QQ")
        if found != nlist or code_bytes > most_code_bytes:
            raise _Fault("its lists are not those of its quantiser")
        kind = bytes(self.content[self.offset : self.offset + 4])
        self.offset += 4
        start = self.offset + 8
        n_sizes = self.array(8, "the sizes of its lists")
        sizes = np.frombuffer(self.content[start : self.offset], "<u8")
        n_of = np.zeros(nlist, np.uint64)
        if kind == b"full" and n_sizes == nlist:
            n_of[:] = sizes
        elif kind == b"sprs" and n_sizes % 2 == 0 and (n_sizes == 0 or sizes[::2].max() < nlist):
            n_of[sizes[::2].astype(np.int64)] = sizes[1::2]
        else:
            raise _Fault("the sizes of its lists are none")
        self._check_total(n_of)
        n_bytes = n_of.astype(np.int64) * (_ID_BYTES + code_bytes)
        self.lists = ListPlaces(self.offset + np.cumsum(n_bytes) - n_bytes, n_bytes)
        self.skip(int(n_bytes.sum()), "its lists")
        if not self.expected.mapped:
            ends = self.lists.offsets + n_bytes
            self._check_ids([
                self.content[int(end) - _ID_BYTES * int(size) : int(end)]
                for end, size in zip(ends, n_of, strict=True) if size
            ])  # fmt: skip

    def _check_ids(self, parts: list[memoryview]) -> None:
        """That the lists hold each vector once."""
        ids = np.frombuffer(b"".join(parts), "<i8")
        n = self.expected.n_vectors
        if ids.size != n or (n and (ids.min() < 0 or ids.max() >= n or np.bincount(ids, minlength=n).max() > 1)):
            raise _Fault("its lists do not hold each vector once")

    def block_lists(self, nlist: int) -> None:
        """Lists in blocks, as they are scanned in registers."""
        self.code(b"ilbl")
        found, _, n_per_block, block_bytes = self.take("<QQQQ")
        most_bytes = n_per_block * self.expected.dim * 4
        if found != nlist or n_per_block != _BLOCK_VECTORS or not 0 < block_bytes <= most_bytes:
            raise _Fault("its lists are not those of its quantiser")
        parts = []
        for _ in range(nlist):
            start = self.offset + 8
            size = self.array(_ID_BYTES, "the ids of a list")
            parts.append(self.content[start : self.offset])
            blocks = -(-size // n_per_block)
            self.array(1, "the codes of a list", blocks * block_bytes)
        self._check_ids(parts)

    def _check_total(self, sizes: npt.NDArray[np.uint64]) -> None:
        if sizes.size and (int(sizes.max()) > self.expected.n_vectors or int(sizes.sum()) != self.expected.n_vectors):
            raise _Fault(f"its lists do not hold {self.expected.n_vectors:,} vectors")


# ---- the kinds of indexes, by their factory strings without numbers


def _graph_of_vectors(reader: _Reader) -> None:
    reader.header(b"IHNf", reader.expected.n_vectors)
    reader.graph()
    reader.flat(reader.expected.n_vectors)


def _graph_of_codes(reader: _Reader) -> None:
    reader.header(b"IHNs", reader.expected.n_vectors)
    reader.graph()
    reader.codes()


def _graph_of_cagra(reader: _Reader) -> None:
    reader.header(b"IHc2", reader.expected.n_vectors)
    reader.take("<BBii")  # how level 0 was made, and the type of the numbers
    reader.graph()
    reader.flat(reader.expected.n_vectors)


def _lists_of_vectors(reader: _Reader) -> None:
    reader.inverted_lists(reader.ivf(b"IwFl"), 4 * reader.expected.dim)


def _lists_of_codes(reader: _Reader) -> None:
    nlist = reader.ivf(b"IwSq")
    code_bytes = reader.scalar_quantizer()
    reader.take("<QB")
    reader.inverted_lists(nlist, code_bytes)


def _lists_of_pieces(reader: _Reader) -> None:
    nlist = reader.ivf(b"IwPQ")
    reader.take("<BQ")
    reader.product_quantizer()
    reader.inverted_lists(nlist, reader.expected.dim)


def _lists_of_pieces_in_registers(reader: _Reader) -> None:
    nlist = reader.ivf(b"IwPf")
    _, _, block, _, way, groups = reader.take("<BQiQiQ")
    if (block, way, groups) != (_BLOCK_VECTORS, 0, 0):
        raise _Fault("it is to be scanned in another way than a recipe says")
    reader.product_quantizer()
    reader.block_lists(nlist)


def _lists_of_bits(reader: _Reader) -> None:
    nlist = reader.ivf(b"Iwrq")
    dim, code_bytes, metric = reader.take("<QQi")
    same = dim == reader.expected.dim and metric == _METRIC[reader.expected.metric]
    if not same or code_bytes > 4 * dim + 64:
        raise _Fault("its quantiser is of other vectors")
    reader.take("<QBB")
    reader.inverted_lists(nlist, code_bytes)


def _bits(reader: _Reader) -> None:
    reader.code(b"IBxF")
    dim, code_bytes, n_vectors, is_trained, _ = struct.unpack_from(
        _BINARY_HEADER.format, reader.content, reader.offset
    )
    reader.offset += _BINARY_HEADER.size
    expected = reader.expected
    if (dim, n_vectors, code_bytes, is_trained) != (expected.dim, expected.n_vectors, expected.dim // 8, 1):
        raise _Fault(f"it is of {n_vectors:,} vectors of {dim:,} bits, not {expected.n_vectors:,} of {expected.dim:,}")
    reader.array(1, "its codes", n_vectors * code_bytes)


KINDS: dict[str, Callable[[_Reader], None]] = {
    "HNSW,Flat": _graph_of_vectors, "HNSW,SQ": _graph_of_codes, "Cagra": _graph_of_cagra, "SQfp": _Reader.codes,
    "SQ": _Reader.codes, "IVF,Flat": _lists_of_vectors, "IVF,SQ": _lists_of_codes, "IVF,PQ": _lists_of_pieces,
    "IVF,PQxfs": _lists_of_pieces_in_registers, "IVF,RaBitQ": _lists_of_bits, "Binary": _bits,
}  # fmt: skip
"""By factory string without its numbers, what goes through such a file."""


def layout_fault(content: npt.NDArray[np.uint8], expected: Expected) -> str | None:
    """What keeps a file's bytes from being the index that is expected; None if nothing does."""
    try:
        _read(content, expected)
    except _Fault as fault:
        return str(fault)
    except struct.error:
        return "it ends too early"
    return None


def list_places(content: npt.NDArray[np.uint8], expected: Expected) -> ListPlaces | None:
    """Where the inverted lists of a file are that ``layout_fault`` found right; None where it has none such."""
    return _read(content, expected).lists


def _read(content: npt.NDArray[np.uint8], expected: Expected) -> _Reader:
    reader = _Reader(content, expected)
    KINDS[kind_of(expected.factory)](reader)
    left = len(reader.content) - reader.offset
    if left:
        raise _Fault(f"{left:,} bytes follow it")
    return reader


def kind_of(factory: str) -> str:
    """A factory string without its numbers and places to fill in."""
    bare = factory.replace("{nlist}", "").replace("{m}", "")
    return "".join(letter for letter in bare if not letter.isdigit())
