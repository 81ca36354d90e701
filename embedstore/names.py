"""Names of collections and spaces, paths, dimensions, seconds: what they may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from embedstore.errors import InvalidInput

MAX_NAME_BYTES = 200
MAX_DIM = 65_536
MAX_PART_BYTES = 255
_DAY = 86_400


def check_collection_name(name: str) -> None:
    """InvalidInput for a name that is empty, too long, or has control characters or surrogates."""
    if not isinstance(name, str):
        raise InvalidInput(f"a name must be a string, not {type(name).__name__}")
    try:
        n_bytes = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"the name {ascii(name)} is not Unicode text") from None
    if not 0 < n_bytes <= MAX_NAME_BYTES or not name.isprintable() or name != name.strip():
        raise InvalidInput(
            f"the name {ascii(name[:60])} cannot be used: names have 1 to {MAX_NAME_BYTES} bytes, only printable"
            " characters, and no blanks at their ends"
        )


def check_seconds(seconds: float, name: str) -> None:
    """InvalidInput for what is no number of seconds that can be waited: from 0 to a day."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= _DAY:  # NaN compares as neither
        raise InvalidInput(f"{name} is {seconds!r}; it must be a number of seconds from 0 to {_DAY:,}")


def check_path(path: str | os.PathLike[str], *, room: int = 0) -> None:
    """InvalidInput for a path that no file system takes: with a NUL, or a part of over 255 bytes.

    room: bytes that are still to be put behind it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidInput(f"a path is a string or a Path, not {type(path).__name__}")
    text = f"{os.fspath(path)}{'x' * room}"
    if not os.fspath(path):
        raise InvalidInput("the path is empty; give a file or folder")
    if "://" in text:
        kind = text.partition("://")[0]
        raise InvalidInput(f"{ascii(kind[:60])}:// begins an address, not a path; a database is given as database=...")
    if "\0" in text:
        raise InvalidInput(f"the path {ascii(text[:60])} holds a NUL, which no path may")
    if any(len(os.fsencode(part)) > MAX_PART_BYTES for part in text.split(os.sep)):
        raise InvalidInput(f"a part of the path {text[:60]!r}... has over {MAX_PART_BYTES} bytes; give a shorter name")


def check_file(file: str | os.PathLike[str], suffixes: Sequence[str], what: str) -> Path:
    """The path of a file that is to be written; InvalidInput for another suffix, or a folder that is not there."""
    path = Path(file)
    if path.suffix.lower() not in suffixes:
        raise InvalidInput(f"{str(file)!r} is no name of a {what}; it must end in {', '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise InvalidInput(f"there is no folder {str(path.parent)!r} for the {what} {str(file)!r}")
    return path


def check_dim(dim: int | None) -> None:
    """InvalidInput for a dimension that is no whole number from 1 to 65,536."""
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or not 1 <= dim <= MAX_DIM):
        raise InvalidInput(f"dim is {dim!r}; it must be a whole number from 1 to {MAX_DIM:,}")
