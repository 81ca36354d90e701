"""Which files can be read, told from the ends of their names."""

from __future__ import annotations

import os

from embedstore.errors import InvalidInput
from embedstore.pictures import SUFFIXES

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
STREAMED_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
BINARY_SUFFIXES = (".parquet", ".arrow", ".feather", ".ipc")
MATRIX_SUFFIXES = (".npy",)
"""Read where one is named, not as part of a folder, in which they are often something else."""
COMPRESSIONS = ("gz", "zst")


def readable_suffixes() -> str:
    """All suffixes in one line, for messages."""
    packed = ", ".join(STREAMED_SUFFIXES + TEXT_SUFFIXES)
    return f"{packed} (each also with .gz or .zst), {', '.join((*BINARY_SUFFIXES, *MATRIX_SUFFIXES, *SUFFIXES))}"


def split_suffix(path: str) -> tuple[str, str | None]:
    """The suffix in lower case, and "gz", "zst" or None: ``a.CSV.gz`` gives ``.csv`` and "gz"."""
    stem, suffix = os.path.splitext(os.path.basename(path).lower())
    if suffix[1:] in COMPRESSIONS:
        return os.path.splitext(stem)[1], suffix[1:]
    return suffix, None


def is_text(path: str) -> bool:
    """Whether the name is that of a text or Markdown file."""
    return split_suffix(path)[0] in TEXT_SUFFIXES


def is_picture(path: str) -> bool:
    """Whether the name is that of a picture."""
    return os.path.splitext(path.lower())[1] in SUFFIXES


def is_data(path: str) -> bool:
    """Whether the name is that of a file of records."""
    suffix, compression = split_suffix(path)
    return suffix in STREAMED_SUFFIXES or (suffix in BINARY_SUFFIXES and compression is None)


def check_suffix(path: str) -> None:
    """InvalidInput where no reader is for the name."""
    suffix, compression = split_suffix(path)
    if suffix in BINARY_SUFFIXES + MATRIX_SUFFIXES and compression is not None:
        raise InvalidInput(
            f"{path!r}: {suffix} files cannot be read through .{compression}; unpack it first"
            + (f" ({suffix} files are compressed inside)" if suffix in BINARY_SUFFIXES else "")
        )
    if not is_text(path) and not is_data(path) and suffix not in MATRIX_SUFFIXES:
        raise InvalidInput(f"{path!r} is of no known kind; readable names end in {readable_suffixes()}")
