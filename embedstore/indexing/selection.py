"""Which rows of a view a search may return, in the forms that scans and indexes ask for, each made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from embedstore.forking import once
from embedstore.model import BoolVector, IntVector


class Selection:
    """A set of rows that are alive and allowed. Kept between searches that ask for the same; threads may share it."""

    def __init__(self, usable: BoolVector, lasting: bool = True) -> None:
        """lasting: whether the same rows are likely to be asked for again."""
        self.usable = usable
        self.lasting = lasting
        self.n_scans = 0  # by the copy in bytes, which keeps those of its rows together once there were some
        self._places: dict[int, tuple[Any, Selection]] = {}
        self._shorter: dict[int, Selection] = {}

    @once
    def n(self) -> int:
        """How many rows there are."""
        return int(np.count_nonzero(self.usable))

    @once
    def n_runs(self) -> int:
        """How many runs of neighbouring rows there are."""
        return int(np.count_nonzero(self.usable[1:] > self.usable[:-1])) + int(self.usable[:1].any())

    @once
    def rows(self) -> IntVector:
        """The rows, ascending."""
        return np.flatnonzero(self.usable)

    @once
    def bitmap(self) -> npt.NDArray[np.uint8]:
        """A bit a row, the first in the lowest place, as FAISS reads it."""
        return np.packbits(self.usable, bitorder="little")

    @once
    def selector(self) -> Any:
        """What makes FAISS return no others."""
        from embedstore.optional import load_faiss

        return load_faiss().IDSelectorBitmap(self.bitmap)

    def first(self, n: int) -> Selection:
        """The same set where only the first ``n`` rows exist."""
        if n >= self.usable.size:
            return self
        held = self._shorter.get(n)
        if held is None:
            held = self._shorter[n] = Selection(self.usable[:n])
        return held

    def at(self, row_of: IntVector) -> Selection:
        """The same set by the positions of an index, of which ``row_of`` tells the rows, -1 for rows that are gone."""
        held = self._places.get(id(row_of))
        if held is None or held[0] is not row_of:
            mask = self.usable[row_of]
            mask[row_of < 0] = False
            held = self._places[id(row_of)] = (row_of, Selection(mask))
        return held[1]
