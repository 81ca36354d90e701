"""Checks of the values that make up a record; what cannot be stored is refused with its row and field."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.model import FloatVector

MAX_KEY_BYTES = 512
MIN_LENGTH, MAX_LENGTH = 1e-18, 1e18

_LEAST, _MOST = MIN_LENGTH**2, MAX_LENGTH**2


def shown(text: str, limit: int = 60) -> str:
    """``text`` quoted for a message, cut to ``limit`` characters, unprintable characters escaped."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def check_key(key: Any, row: int | None = None) -> str:
    """A key as stored: a string of 1 to 512 UTF-8 bytes without control characters; integers become decimal.

    None becomes a fresh random key.
    """
    if type(key) is str:
        if 0 < len(key) <= MAX_KEY_BYTES and key.isascii() and key.isprintable():
            return key
    elif key is None:
        return uuid.uuid4().hex
    elif isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        return str(int(key))
    elif isinstance(key, str):
        key = str(key)
    else:
        raise InvalidRecord(f"a key must be a string or an integer, not {type(key).__name__}", row=row, field="key")
    encoded = encode_text(key, row, "key")
    if not encoded:
        raise InvalidRecord("the key is empty; give each record a key of 1 to 512 bytes", row=row, field="key")
    if len(encoded) > MAX_KEY_BYTES:
        raise InvalidRecord(
            f"the key {shown(key)} has {len(encoded):,} bytes; at most {MAX_KEY_BYTES} are allowed",
            row=row, field="key",
        )  # fmt: skip
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise InvalidRecord(f"the key {shown(key)} holds a control character", row=row, field="key")
    return str(key)


def encode_text(text: str, row: int | None, name: str) -> bytes:
    """``text`` in UTF-8; InvalidRecord for a NUL or a lone surrogate."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRecord(
            f"character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X}), which is not text",
            row=row,
            field=name,
        ) from None
    if b"\0" in encoded:
        raise InvalidRecord(f"character {text.index(chr(0))} is NUL, which cannot be stored", row=row, field=name)
    return encoded


def check_text(text: Any, row: int | None = None, *, required: bool = True, name: str = "text") -> bytes | None:
    """A text in UTF-8; InvalidRecord where it is no string, empty, only white space, or not Unicode text."""
    if text is None:
        if required:
            raise InvalidRecord("the text is missing", row=row, field=name)
        return None
    if not isinstance(text, str):
        raise InvalidRecord(f"the text must be a string, not {type(text).__name__}", row=row, field=name)
    encoded = encode_text(text, row, name)
    if not text or text.isspace():
        raise InvalidRecord("the text is empty" + (" but for white space" if text else ""), row=row, field=name)
    return encoded


def check_uri(uri: Any, row: int | None) -> str | None:
    """An address as stored: a non-empty string, or None."""
    if uri is None:
        return None
    if not isinstance(uri, str) or not uri:
        raise InvalidRecord("the uri must be a string that is not empty", row=row, field="uri")
    encode_text(uri, row, "uri")
    return uri


def is_numbers(value: Any) -> bool:
    """Whether something may be a vector: an array of numbers, or a list of them."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "fiu"
    is_list = isinstance(value, (list, tuple)) and bool(value)
    return is_list and all(isinstance(one, (int, float, np.number)) and not isinstance(one, bool) for one in value)


def _kind(value: Any) -> str:
    """What somebody took for a vector."""
    if np.ma.isMaskedArray(value):
        return "a masked array; fill what is masked"
    kinds = {"c": "complex numbers", "U": "texts", "S": "bytes", "b": "true and false", "M": "dates", "m": "durations"}
    if isinstance(value, (list, tuple, np.ndarray)):
        try:
            return kinds.get(np.asarray(value).dtype.kind, type(value).__name__)
        except ValueError:  # of rows of different lengths
            return "rows of different lengths"
    return type(value).__name__


def check_vector(value: Any, row: int | None = None, name: str = "vector") -> FloatVector:
    """A vector as float32 (dim,); InvalidRecord where it is not one row of finite numbers."""
    if type(value) is np.ndarray and value.dtype == np.float32:
        vector = value
    else:
        try:
            with np.errstate(over="ignore"):  # what is too large is refused as infinite
                given = np.asarray(value)
                if given.dtype.kind in "cUSbmM" or np.ma.isMaskedArray(value):
                    raise TypeError
                vector = np.asarray(given, np.float32)
        except (TypeError, ValueError, OverflowError):
            what = f"a vector must be a list of numbers, not {_kind(value)}"
            raise InvalidRecord(what, row=row, field=name) from None
    if vector.ndim != 1 or vector.shape[0] == 0:
        raise InvalidRecord(
            f"a vector must be one row of numbers; this has shape {vector.shape}", row=row, field=name
        )
    return vector


def check_numbers(numbers: Iterable[int]) -> list[int]:
    """Numbers of records; InvalidInput where they are not one row of whole numbers."""
    wanted = "numbers of records are one row of whole numbers, such as neighbours.numbers[0]"
    try:
        given = np.asarray(numbers if isinstance(numbers, np.ndarray) else list(numbers))
    except (TypeError, ValueError):
        raise InvalidInput(f"{wanted}; this is {_kind(numbers)}") from None
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InvalidInput(f"{wanted}; this holds {given.dtype}, and has the shape {given.shape}")
    return given.tolist()  # type: ignore[no-any-return]


def check_finite(matrix: np.ndarray, row_numbers: Sequence[int | None], name: str, *, nonzero: bool) -> None:
    """Refuse a row of ``matrix`` (n, dim) that holds NaN or infinity, or only zeros where ``nonzero``."""
    if len(matrix) == 1 and _LEAST < float(np.vdot(matrix, matrix)) < _MOST:
        return  # the quickest way to ask this of one vector
    with np.errstate(over="ignore", invalid="ignore"):
        squared = np.einsum("ij,ij->i", matrix, matrix)  # one pass: NaN and infinity survive a sum of squares
    if squared.size == 0 or (squared.min() > _LEAST and squared.max() < _MOST):
        return  # nor is NaN among them: it would be the least and the greatest
    suspects = np.flatnonzero(~((squared > _LEAST) & (squared < _MOST)))  # NaN among them
    for position in suspects.tolist():
        line = matrix[position]
        bad = np.flatnonzero(~np.isfinite(line))
        if bad.size:
            raise InvalidRecord(
                f"number {int(bad[0])} of the vector is {line[bad[0]]}; every number must be finite",
                row=row_numbers[position], field=name,
            )  # fmt: skip
        if nonzero and not line.any():
            raise InvalidRecord(
                "the vector is all zeros, which has no direction; use metric='dot' or 'euclidean' for such vectors",
                row=row_numbers[position], field=name,
            )  # fmt: skip
        check_length(float(np.linalg.norm(line.astype(np.float64))), row_numbers[position], name)


def usable_vectors(matrix: np.ndarray, *, nonzero: bool) -> np.ndarray:
    """Which rows of ``matrix`` (n, dim) ``check_finite`` would not refuse: bool (n,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
        right: np.ndarray = (lengths > MIN_LENGTH) & (lengths < MAX_LENGTH)
    return right if nonzero else right | (lengths == 0)


def check_length(length: float, row: int | None, name: str) -> None:
    """Refuse a vector whose length would make its scores overflow or vanish in float32."""
    if length and not MIN_LENGTH < length < MAX_LENGTH:
        raise InvalidRecord(
            f"the vector's length is {length:.3g}; lengths must lie between {MIN_LENGTH:g} and {MAX_LENGTH:g}",
            row=row, field=name,
        )  # fmt: skip


def check_whole(name: str, value: Any, least: int) -> None:
    """InvalidInput for an argument that is no whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} is {value!r}; it must be a whole number from {least} on")


def check_seed(seed: Any) -> None:
    """InvalidInput for a seed that is no whole number below 2**31, which is what all generators take."""
    check_whole("seed", seed, 0)
    if seed >= 2**31:
        raise InvalidInput(f"seed is {seed}; it must be below {2**31}")
