"""Vectors that are to be written, checked against their space: those that records bring, and those that were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embedstore.checks import check_finite, usable_vectors
from embedstore.errors import InvalidRecord, SpaceNotFound, WrongDimension
from embedstore.model import FloatMatrix, Metric
from embedstore.records import Batch
from embedstore.storage.catalog import SpaceRow
from embedstore.storage.writing import SpaceVectors
from embedstore.storing.encoding import Encoded
from embedstore.transforms import is_derived

_COSINE = Metric.COSINE.value


def vectors_by_space(batch: Batch, spaces: Mapping[str, SpaceRow], encoded: Encoded) -> dict[str, SpaceVectors]:
    """Given and computed vectors of a batch as one checked matrix a space."""
    by_space: dict[str, SpaceVectors] = {}
    for name in batch.vectors:
        if name not in spaces:
            raise SpaceNotFound(f"a record brings a vector for the space {name!r}; there are {', '.join(spaces)}")
    for name, space in spaces.items():
        given = batch.vectors.get(name)
        made = encoded.vectors.get(name)
        if given is None and not made:
            continue
        lines: list[np.ndarray | None] = [None] * len(batch) if given is None else list(given)
        for position, vector in made.items() if made else ():
            lines[position] = vector
        present = [line for line in lines if line is not None]
        if not present:
            continue
        positions: Sequence[int] = range(len(lines))
        if len(present) < len(lines):
            positions = [position for position, line in enumerate(lines) if line is not None]
        by_space[name] = SpaceVectors(positions, _stacked(batch, space, present, positions))
    return by_space


def _stacked(
    batch: Batch, space: SpaceRow, lines: Sequence[np.ndarray], positions: Sequence[int]
) -> FloatMatrix:
    """Vectors as one matrix (n, dim), checked against their space."""
    dim = len(lines[0]) if space.dim is None else space.dim
    for line, position in zip(lines, positions, strict=True):
        if len(line) != dim:
            raise wrong_dimension(space.name, dim, len(line), batch.row_numbers[position])
    matrix = (lines[0] if len(lines) == 1 else np.concatenate(lines)).reshape(-1, dim)  # (n, dim)
    rows = [batch.row_numbers[position] for position in positions]
    check_finite(matrix, rows, "vector", nonzero=space.metric == _COSINE)
    return matrix


def usable_lines(space: SpaceRow, matrix: FloatMatrix) -> np.ndarray:
    """Which of the vectors that were made for a space can be compared there: bool (n,).

    One that came to nothing, or out of all bounds, is left out, for the record itself is sound.
    """
    return usable_vectors(matrix, nonzero=space.metric == _COSINE)


class VectorChecker:
    """Checks the vectors that records bring, batch after batch; the first vector of a new space fixes its dimension."""

    def __init__(self, spaces: Mapping[str, SpaceRow], new_metric: Metric = Metric.COSINE) -> None:
        self._spaces = spaces
        self._new_metric = new_metric
        self._dims: dict[str, int] = {name: space.dim for name, space in spaces.items() if space.dim is not None}

    def check(
        self, batch: Batch, on_error: Callable[[InvalidRecord, Mapping[str, Any]], None] | None = None
    ) -> Batch:
        """The batch, if its vectors are right; else raises InvalidRecord, or leaves records out and tells why."""
        bad: dict[int, InvalidRecord] = {}
        for name, lines in batch.vectors.items():
            if self._all_right(name, lines):
                continue
            for position in range(len(batch)):
                fault = self._fault(name, lines[position], batch.row_numbers[position])
                if fault is not None:
                    bad.setdefault(position, fault)
        if not bad:
            return batch
        if on_error is None:
            raise bad[min(bad)]
        for position in sorted(bad):
            on_error(bad[position], {"key": batch.keys[position], "text": batch.contents[position]})
        return batch.subset([position for position in range(len(batch)) if position not in bad])

    def _all_right(self, name: str, lines: Sequence[np.ndarray | None]) -> bool:
        """Whether nothing is wrong with any of these vectors, asked at once since that is the common case."""
        held = [line for line in lines if line is not None]
        dim = self.dim_of(name, held)
        if any(len(line) != dim for line in held):
            return False
        try:
            check_finite(np.concatenate(held or [np.empty(0)]).reshape(-1, max(dim, 1)), [0] * len(held), name,
                         nonzero=self._metric(name) is Metric.COSINE)  # fmt: skip
        except InvalidRecord:
            return False
        return True

    def _metric(self, name: str) -> Metric:
        return Metric(self._spaces[name].metric) if name in self._spaces else self._new_metric

    def _fault(self, name: str, line: np.ndarray | None, row: int) -> InvalidRecord | None:
        if line is None:
            return None
        if len(line) != self.dim_of(name, [line]):
            return wrong_dimension(name, self._dims[name], len(line), row)
        try:
            check_finite(line[None, :], [row], "vector", nonzero=self._metric(name) is Metric.COSINE)
        except InvalidRecord as error:
            return error
        return None

    def dim_of(self, name: str, lines: Sequence[np.ndarray | None]) -> int:
        """The dimension of a space; where it is not known yet, the first vector's."""
        if name not in self._dims:
            self._dims[name] = next((len(line) for line in lines if line is not None), 0)
        return self._dims[name]


def wrong_dimension(space: str, dim: int, n_numbers: int, row: int) -> WrongDimension:
    """The error for a vector of another dimension than its space's."""
    return WrongDimension(
        f"the vector has {n_numbers} numbers; the space {space!r} holds {dim}", row=row, field="vector"
    )


def refuse_given_vectors(batch: Batch, spaces: dict[str, SpaceRow]) -> None:
    """Refuse vectors that a user brings for a space whose vectors an encoder makes."""
    for name, lines in batch.vectors.items():
        if name in spaces and spaces[name].encoder:
            position = next((p for p, line in enumerate(lines) if line is not None), None)
            if position is not None:
                made_by = "of other spaces" if is_derived(spaces[name]) else "by its encoder"
                raise InvalidRecord(
                    f"the vectors of space {name!r} are made {made_by}; leave the vector out, or keep vectors"
                    " computed elsewhere in a collection with encoder='none'",
                    row=batch.row_numbers[position], field="vector",
                )  # fmt: skip
