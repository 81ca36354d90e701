"""Finds the files that a path, a folder or a pattern stands for, in an order that is always the same."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.source import unreadable


def files_of_folder(folder: str) -> list[str]:
    """The paths, relative to ``folder``, of all files in it and below, sorted; hidden ones are skipped.

    Links to folders are followed, after the folders themselves; each folder is read once, so loops end.
    """
    seen: set[tuple[int, int]] = set()
    linked = [""]
    found: list[str] = []
    while linked:
        start = linked.pop(0)
        waiting = [start]
        while waiting:
            inner = waiting.pop()
            for entry in _entries(folder, inner, seen):
                path = os.path.join(inner, entry.name)
                if entry.is_file() or not os.path.exists(entry.path):  # a broken link is refused later
                    found.append(path)
                elif entry.is_dir():
                    (linked if entry.is_symlink() else waiting).append(path)
    return sorted(path.replace(os.sep, "/") for path in found)


def _entries(folder: str, inner: str, seen: set[tuple[int, int]]) -> Iterator[os.DirEntry[str]]:
    path = os.path.join(folder, inner) if inner else folder
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(path) as entries:
            names = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise unreadable(path, error) from None
    for entry in names:
        if not entry.name.startswith("."):
            yield entry


def files_of_pattern(pattern: str) -> tuple[str, list[str]]:
    """The folder that a glob pattern starts in ("" for the working one), and the files it matches, sorted.

    ``**`` stands for any number of folders. Folders that match are passed over. InvalidInput for no file.
    """
    found = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    if not found:
        raise InvalidInput(f"no file matches {pattern!r}")
    fixed = pattern
    while glob.has_magic(fixed):
        fixed = os.path.dirname(fixed)
    return fixed, found
