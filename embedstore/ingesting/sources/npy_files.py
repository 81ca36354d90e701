"""Vectors from NumPy's files: a matrix in a .npy file, of which every row is a record without a text."""

from __future__ import annotations

import tokenize
from collections.abc import Iterator

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.source import OnError, SourceRow, file_fingerprint, file_status, unreadable
from embedstore.wording import first_line

FIELD = "vector"
_ROWS_AT_ONCE = 1024


def read_array(path: str, *, mapped: bool = False) -> np.ndarray:
    """The array in a .npy file, without ever unpickling; InvalidInput where it is none, or holds no numbers."""
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, EOFError, MemoryError, tokenize.TokenError, SyntaxError) as error:
        raise InvalidInput(f"{path!r} cannot be read as a .npy file: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):
        raise InvalidInput(f"{path!r} holds several arrays; give a .npy file with one")
    if array.dtype.kind not in "fiu":
        raise InvalidInput(f"{path!r} holds {array.dtype}; vectors are numbers")
    return array


class NpyFile:
    """The rows of a matrix (n, dim), each in the field ``vector``."""

    rereadable = True
    unit = "rows"

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = path
        file_status(path)
        self._matrix = read_array(path, mapped=True)
        if self._matrix.ndim != 2:
            raise InvalidInput(f"{path!r}: vectors are the rows of a matrix; this has the shape {self._matrix.shape}")
        self.total: int | None = len(self._matrix)

    def fingerprint(self) -> str:
        """From absolute path, size and modification time."""
        return file_fingerprint([self._path])

    def columns(self) -> list[str]:
        """The one field."""
        return [FIELD]

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order, numbered from 1."""
        for start in range(0, len(self._matrix), _ROWS_AT_ONCE):
            with np.errstate(over="ignore"):  # what is too large is refused as infinite
                block = np.asarray(self._matrix[start : start + _ROWS_AT_ONCE], np.float32)
            for number, vector in enumerate(block, start=start + 1):
                yield SourceRow(number, number, {FIELD: vector})
