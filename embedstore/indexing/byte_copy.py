"""The vectors of a space once more, a byte a number, and a bound on what that leaves out of their scores.

A scan of the copy reads a fourth of what a scan of the vectors reads. By the bound, most vectors cannot be among the
nearest; the few that can are compared in full, so the answer is exact. (A vector approximation file: Weber, Schek and
Blott, A quantitative analysis and performance study for similarity-search methods, VLDB 1998. There a code tells the
cell that a vector lies in; here it is the nearest of equal steps, and the bound that of the farthest from its code.)

A vector x is held as y = x - c, with c the mean of all, in steps of one size for all numbers: y is about scale * b,
with b of -128 to 127. The length of y - scale * b is at most ``error``, but for some vectors that lie far out.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from embedstore.forking import once
from embedstore.indexing.cachefile import CacheFile, CacheWriter, DamagedCache, checked, map_file
from embedstore.indexing.kernels import loaded_faiss
from embedstore.indexing.recipes import Family, Recipe
from embedstore.indexing.selection import Selection
from embedstore.indexing.steps import Steps, width_of
from embedstore.indexing.threads import OneThread
from embedstore.model import BoolVector, FloatMatrix, FloatVector, IntVector, Metric

_FEWEST_NUMBERS = 1 << 22
_FEWEST_DIMS, _MOST_DIMS = 64, 32_768
"""Below the first the scan itself is as fast; beyond the last the squares of bytes add up to more than 31 bits."""
_BLOCK_ROWS = 4_096
_FAR_SHARE, _SLIGHTLY = 1_000, 1.5
"""One vector of so many may lie far out, where the others' largest number times this is less than theirs."""
_LARGEST, _ZERO = 127, 128
WIDENED = 4
"""How many times as many are asked for where too few were."""
_PATIENCE = 100
"""After so many searches fewer are tried again."""
_FAILED, _DOUBTFUL = 16, 32
"""What a search in vain adds to the doubt, and the doubt from which on searches are passed over, each taking off 1."""
_OFTEN, _SELDOM = 3, 100
"""How many scans by a selection make its bytes worth keeping together, and how many more if they were given up."""
_PART_SHARE, _FEWEST_KEPT, _KEPT_BYTES = 0.7, 500, 128 << 20
"""Of the rows at most, rows at least, and bytes for a space at most that are kept together."""
_SIZES = (1e-12, 1e12)
"""Between them, squares of what is left of a step are numbers in single precision."""
_EPSILON = 2.0**-23
"""The step of single precision at 1."""
_FINE_EPSILON = 2.0**-52


def is_worthwhile(recipe: Recipe, n_vectors: int, dim: int) -> bool:
    """Whether searches of a space by a recipe gain by a copy: they compare every vector, and there are many."""
    scans = recipe.family in (Family.EXACT, Family.CODES)
    return scans and n_vectors * dim >= _FEWEST_NUMBERS and _FEWEST_DIMS <= dim <= _MOST_DIMS


def write_copy(folder: Path, matrix: FloatMatrix) -> tuple[CacheFile, Steps] | None:
    """Write the copy of prepared vectors (n, dim); None where they are too small, too large or all the same."""
    n, dim = matrix.shape
    centre = _mean(matrix)
    farthest = np.concatenate([np.abs(block - centre).max(axis=1) for block in _blocks(matrix)])
    n_far = n // _FAR_SHARE
    limit, largest = float(np.partition(farthest, n - 1 - n_far)[n - 1 - n_far]), float(farthest.max())
    if largest <= _SLIGHTLY * limit:  # coarser steps for all cost less than some more vectors to compare
        limit = largest
    if not _SIZES[0] < limit < _SIZES[1]:
        return None
    near = farthest <= limit
    far = np.flatnonzero(~near)
    steps = np.float32(limit / _LARGEST)
    error = longest = 0.0
    with CacheWriter(folder, "bytes", ".u8") as writer:
        start = 0
        for block in _blocks(matrix):
            kept = near[start : start + len(block)]
            start += len(block)
            moved = block - centre
            numbers = np.clip(np.rint(moved / steps), -_LARGEST - 1, _LARGEST)
            error = max(error, _longest(moved - numbers * steps, kept))
            longest = max(longest, _longest(moved, kept))
            filled = np.full((len(block), width_of(dim)), _ZERO, np.uint8)
            filled[:, :dim] = (numbers + _ZERO).astype(np.uint8)
            writer.write(filled.tobytes())
        writer.write(centre.astype("<f4").tobytes())
        writer.write(far.astype("<i8").tobytes())
    assert writer.written is not None
    # What was computed in single precision may be off by so much.
    rounded = 4 * _EPSILON * math.sqrt(dim) * (limit + float(np.abs(centre).max()))
    slack = 1 + 2 * dim * _EPSILON
    return writer.written, Steps(float(steps), error * slack + rounded, longest * slack + rounded, far.size)


def _mean(matrix: FloatMatrix) -> FloatVector:
    total = np.zeros(matrix.shape[1], np.float64)
    for block in _blocks(matrix):
        total += block.sum(axis=0, dtype=np.float64)
    return (total / len(matrix)).astype(np.float32)


def _blocks(matrix: FloatMatrix) -> Iterator[FloatMatrix]:
    for start in range(0, len(matrix), _BLOCK_ROWS):
        yield matrix[start : start + _BLOCK_ROWS]


def _longest(rows: npt.NDArray[np.floating], kept: np.ndarray) -> float:
    squared = np.einsum("ij,ij->i", rows, rows)[kept]
    return math.sqrt(float(squared.max())) if squared.size else 0.0


class Candidates(NamedTuple):
    """The best rows by their bytes, int64 (n,), with scores that are off by ``within`` at most, best first.

    No other row has a score above ``bound``. Neither holds for the rows that lie far out.
    """

    rows: IntVector
    scores: npt.NDArray[np.float64]
    within: float
    bound: float


class Part(NamedTuple):
    """The bytes of some rows alone, in memory, and the rows, ascending; for whoever asks for the same ones again."""

    rows: IntVector
    content: np.ndarray
    index: Any


class ByteCopy:
    """An opened copy. The file is mapped at once, and held against what was written when it is first searched."""

    def __init__(self, folder: Path, file: CacheFile, steps: Steps, shape: tuple[int, int], metric: Metric) -> None:
        """shape: that of the vectors, (n, dim)."""
        self._path, self._file, self.steps = folder / file.name, file, steps
        self._content = map_file(folder, file)
        self._n, self._dim = shape
        self._metric = metric
        self._doubts: dict[int, int] = {}  # both by the magnitude of what would do
        self._levels: dict[int, tuple[int, int]] = {}
        self._kept: tuple[tuple[weakref.ref[Selection], Part], ...] = ()  # replaced whole, so that threads may look
        self.is_damaged = False

    @property
    def is_usable(self) -> bool:
        """Whether it can be searched, as far as is known."""
        return not self.is_damaged and self._can_be_read

    def kept_part(self, selection: Selection | None) -> Part | None:
        """The bytes of the rows of a selection alone, where they were put together."""
        if selection is None:  # as a reference to one that is gone is, too
            return None
        return next((part for of, part in self._kept if of() is selection), None)

    def part(self, selection: Selection | None) -> Part | None:
        """As ``kept_part``; puts them together where the selection was asked for again and again.

        A scan of half of the rows takes half as long then. FAISS's own way of leaving some out takes longer than all.
        """
        kept = self.kept_part(selection)
        if kept is not None or selection is None or not selection.lasting:
            return kept
        n_bytes = selection.n * width_of(self._dim)
        most = min(self._content.size, _KEPT_BYTES)
        if not _FEWEST_KEPT <= selection.n <= _PART_SHARE * self._n or n_bytes > most:
            return None
        selection.n_scans += 1
        if selection.n_scans < _OFTEN:
            return None
        selection.n_scans = -_SELDOM  # where many take turns, none is made anew all the time
        rows = selection.rows[: np.searchsorted(selection.rows, self._n)]
        if rows.size < _FEWEST_KEPT:
            return None
        content = self._parts[0].reshape(self._n, width_of(self._dim))[rows].reshape(-1)
        made = Part(rows, content, self._index_of(content))
        others = list(self._kept)
        while others and n_bytes + sum(part.content.size for _, part in others) > most:
            others.pop(0)
        self._kept = (*others, (weakref.ref(selection, functools.partial(_let_go, weakref.ref(self))), made))
        return made

    def n_wanted(self, fewest: int, *, counted: bool = True) -> int | None:
        """How many to ask for where ``fewest`` would do if the bytes told most: as many as it took lately.

        None where lately they told too little more often than not. Such searches are tried again now and then, and so
        are fewer.
        """
        size = fewest.bit_length()
        doubt = self._doubts.get(size, 0)
        if doubt >= _DOUBTFUL:
            if counted:
                self._doubts[size] = doubt - 1
            return None
        level, left = self._levels.get(size, (0, 0))
        if level and counted:
            self._levels[size] = (level, left - 1) if left > 1 else (level - 1, _PATIENCE)
        return int(fewest * WIDENED**level)

    def note(self, fewest: int, *, told: bool, level: int | None = None) -> None:
        """Note whether a search was answered; level: how many times it was widened, where that was more than expected.

        An answer saves about as much as a search in vain costs.
        """
        size = fewest.bit_length()
        doubt = self._doubts.get(size, 0)
        if doubt or not told:
            self._doubts[size] = max(doubt - _FAILED, 0) if told else doubt + _FAILED
        if level is not None:
            self._levels[size] = (level, _PATIENCE)

    @once
    def _can_be_read(self) -> bool:
        """Whether this FAISS reads bytes that are not its own."""
        faiss = loaded_faiss()
        return hasattr(faiss, "MaybeOwnedVectorUInt8") and hasattr(faiss.ScalarQuantizer, "QT_8bit_direct_signed")

    @once
    def _parts(self) -> tuple[np.ndarray, npt.NDArray[np.float64], IntVector]:
        """The bytes (n, width), the mean (dim,) in double precision, the rows of those that lie far out."""
        try:
            return self._read()
        except DamagedCache:
            self.is_damaged = True
            raise

    def _read(self) -> tuple[np.ndarray, npt.NDArray[np.float64], IntVector]:
        content = checked(self._content, self._path, self._file)
        end = self._n * width_of(self._dim)
        centre = np.frombuffer(content[end : end + 4 * self._dim].tobytes(), "<f4").astype(np.float64)
        far = np.frombuffer(content[end + 4 * self._dim :].tobytes(), "<i8").astype(np.int64)
        if far.size and not (far.min() >= 0 and far.max() < self._n and (np.diff(far) > 0).all()):
            raise DamagedCache(f"{self._path} names vectors that there are not")
        return content[:end], centre, far

    @once
    def _index(self) -> Any:
        """FAISS's index that reads the mapped bytes."""
        return self._index_of(self._parts[0])

    def _index_of(self, content: np.ndarray) -> Any:
        """FAISS's index over bytes (n * width,), which stay where they are."""
        faiss, width = loaded_faiss(), width_of(self._dim)
        kind = faiss.METRIC_L2 if self._metric is Metric.EUCLIDEAN else faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_direct_signed, kind)
        view = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(content), content.size, index.codes.owner)
        index.codes = view
        index.ntotal = content.size // width
        return index

    @property
    def far(self) -> IntVector:
        """The rows that no bound holds for, ascending."""
        return self._parts[2]

    @once
    def is_near(self) -> BoolVector | None:
        """Of every row, whether the bounds hold for it; None where they hold for all."""
        if not self.far.size:
            return None
        near = np.ones(self._n, np.bool_)
        near[self.far] = False
        return near

    def holds(self, matrix: FloatMatrix) -> bool:
        """Whether it is a copy of these vectors (n, dim), within the errors that are told of it."""
        content, centre, _ = self._parts
        rows = content.reshape(self._n, width_of(self._dim))
        steps, slack = self.steps, 1 + _EPSILON
        near = np.ones(self._n, np.bool_) if self.is_near is None else self.is_near
        for start in range(0, self._n, _BLOCK_ROWS):
            kept = near[start : start + _BLOCK_ROWS]
            moved = matrix[start : start + _BLOCK_ROWS] - centre
            numbers = rows[start : start + _BLOCK_ROWS].astype(np.float64) - _ZERO
            lacks = moved - steps.scale * numbers[:, : self._dim]
            told = _longest(lacks, kept) <= steps.error * slack and _longest(moved, kept) <= steps.longest * slack
            if not told or numbers[:, self._dim :].any():
                return False
        return True

    def candidates(self, query: FloatVector, n_wanted: int, part: Part | None = None) -> Candidates | None:
        """The ``n_wanted`` best rows by their bytes, for a prepared query (dim,); None for a query of zeros.

        part: the rows to look at; None for all. Needs FAISS, and that the copy is usable.
        """
        faiss, index = loaded_faiss(), self._index if part is None else part.index
        n = self._n if part is None else part.rows.size
        steps, (_, centre, _) = self.steps, self._parts
        euclidean = self._metric is Metric.EUCLIDEAN
        exact = query - centre if euclidean else query.astype(np.float64)
        step = steps.scale if euclidean else float(np.abs(exact).max()) / _LARGEST
        if not step > 0:
            return None
        numbers = np.rint(exact / step)
        if euclidean:
            numbers = np.minimum(np.maximum(numbers, -_LARGEST - 1), _LARGEST)
        asked = np.zeros(width_of(self._dim), np.float32)
        asked[: self._dim] = numbers
        n_wanted = min(n_wanted, n)
        distances, rows = np.empty(n_wanted, np.float32), np.empty(n_wanted, np.int64)
        at = faiss.swig_ptr
        with OneThread(faiss):
            index.search_c(1, at(asked), n_wanted, at(distances), at(rows), None)
        numbers *= step
        lacks = exact - numbers
        lacking = math.sqrt(float(lacks @ lacks))
        scores = distances.astype(np.float64)
        if euclidean:
            # By the triangle: |q - y| is |q' - y'| but for |q - q'| + |y - y'|.
            scores = -steps.scale * np.sqrt(scores)
            within = lacking + steps.error
        else:
            # q y = q' y' + q' (y - y') + (q - q') y, and the last two are no greater than their lengths multiplied.
            scores *= steps.scale * step
            length = math.sqrt(float(numbers @ numbers))
            within = length * steps.error + lacking * steps.longest
            with_centre = float(centre @ query)
            scores += with_centre
        within += self._dim * _FINE_EPSILON * lacking
        within += 2 * self._dim * _EPSILON * (abs(float(scores[0])) + abs(float(scores[-1])) + self._sizes(exact))
        bound = -math.inf if n_wanted == n else float(scores[-1]) + within
        return Candidates(rows if part is None else part.rows[rows], scores, within, bound)

    def _sizes(self, query: npt.NDArray[np.float64]) -> float:
        """How large the numbers may be of which a score is the sum, where it is one of products."""
        if self._metric is Metric.EUCLIDEAN:
            return 0.0
        return math.sqrt(float(query @ query)) * (self.steps.longest + self._centre_length)

    @once
    def _centre_length(self) -> float:
        return float(np.linalg.norm(self._parts[1]))


def _let_go(copy: weakref.ref[ByteCopy], selection: weakref.ref[Selection]) -> None:
    """Drop what is kept for a selection that is gone."""
    held = copy()
    if held is not None:
        held._kept = tuple(one for one in held._kept if one[0] is not selection)
