"""A simulated disk: what was written, what was made durable, and what may be found after the power was cut.

A file's bytes are durable once it was synced, a name once its folder was. Until then each 512-byte sector holds what it
held after any number of the writes to it, in any combination with the others; the file may have grown or not; and each
change of names survives or does not, a rename as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

SECTOR_BYTES = 512
ROOT = 0
"""The inode of the folder that everything is in; it is durable."""

Change = list[tuple[int, str, int | None]]
"""Names that change at once: a folder's inode, a name, and the inode that it stands for, None for no more."""


@dataclass(slots=True)
class File:
    """A file's durable bytes; its bytes; and what was done since it was synced.

    An entry of ``pending`` is an offset and the bytes written there, or a new size and None.
    """

    durable: bytes = b""
    content: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, offset: int, chunk: bytes) -> None:
        """Write at an offset."""
        _put(self.content, offset, chunk)
        self.pending.append((offset, chunk))

    def resize(self, size: int) -> None:
        """Cut the file, or extend it by zeros."""
        _resize(self.content, size)
        self.pending.append((size, None))

    def sync(self) -> None:
        """Make the bytes durable."""
        self.durable = bytes(self.content)
        self.pending.clear()

    def torn(self, rng: np.random.Generator) -> bytes:
        """What may be found of the file: for each sector, a random number of the writes to it survived."""
        if not self.pending:
            return self.durable
        found, bias = bytearray(self.durable), rng.choice([0.1, 0.5, 0.9])
        left: dict[int, int] = {}
        for offset, chunk in self.pending:
            for sector in [] if chunk is None else _sectors(offset, len(chunk)):
                left[sector] = left.get(sector, 0) + 1
        for sector, n in left.items():
            left[sector] = n if rng.random() < bias else int(rng.integers(0, n + 1)) if rng.random() < 0.3 else 0
        for offset, chunk in self.pending:
            if chunk is None:
                if rng.random() < 0.5:
                    _resize(found, offset)
                continue
            for sector in _sectors(offset, len(chunk)):
                if left[sector] > 0:
                    left[sector] -= 1
                    start = max(offset, sector * SECTOR_BYTES)
                    end = min(offset + len(chunk), (sector + 1) * SECTOR_BYTES)
                    _put(found, start, chunk[start - offset : end - offset])
        size = int(rng.choice([len(found), len(self.content), len(self.durable)]))
        if size != len(found):
            _resize(found, size)
        return bytes(found)


def _sectors(offset: int, n_bytes: int) -> range:
    return range(offset // SECTOR_BYTES, -(-(offset + n_bytes) // SECTOR_BYTES))


def _put(content: bytearray, offset: int, chunk: bytes) -> None:
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(chunk)] = chunk


def _resize(content: bytearray, size: int) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(bytes(size - len(content)))


@dataclass(frozen=True, slots=True)
class Survival:
    """What is found after a cut. data: 'synced', 'written' or 'torn'; names: 'synced', 'changed' or 'some'."""

    data: str
    names: str


MODELS = {
    "nothing unsynced": Survival("synced", "synced"),
    "everything": Survival("written", "changed"),
    "names only": Survival("synced", "changed"),
    "torn data": Survival("torn", "changed"),
    "some names": Survival("synced", "some"),
    "torn data, some names": Survival("torn", "some"),
}
"""The ways in which a disk may look after a cut."""


@dataclass(frozen=True, slots=True)
class Image:
    """Folders and files by their paths below the root."""

    folders: tuple[str, ...]
    files: dict[str, bytes]

    def digest(self) -> bytes:
        """What tells one image from another."""
        hashed = blake2b(repr(self.folders).encode(), digest_size=16)
        for path, content in sorted(self.files.items()):
            hashed.update(f"\0{path}\0{len(content)}\0".encode())
            hashed.update(content)
        return hashed.digest()

    def put(self, root: Path) -> None:
        """Make the folders and files."""
        for path in self.folders:
            (root / path).mkdir(mode=0o700)
        for path, content in self.files.items():
            (root / path).write_bytes(content)


class Disk:
    """Files and folders by inode; the names of each folder as they are, and as they are durable."""

    def __init__(self) -> None:
        self.files: dict[int, File] = {}
        self._names: dict[int, dict[str, int]] = {ROOT: {}}
        self._durable: dict[int, dict[str, int]] = {ROOT: {}}
        self._changes: list[Change] = []
        self._n_inodes = 1

    def find(self, path: str) -> int | None:
        """The inode at a path below the root, '' for the root itself; None where there is none."""
        inode: int | None = ROOT
        for name in path.split("/") if path else ():
            inode = self._names[inode].get(name) if inode is not None and inode in self._names else None
        return inode

    def make(self, path: str, *, folder: bool = False) -> int:
        """Make an empty file or folder; its inode."""
        inode = self._n_inodes
        self._n_inodes += 1
        if folder:
            self._names[inode], self._durable[inode] = {}, {}
        else:
            self.files[inode] = File()
        self._change([(*self._place(path), inode)])
        return inode

    def remove(self, path: str) -> None:
        """Remove a name."""
        self._change([(*self._place(path), None)])

    def rename(self, old: str, new: str) -> None:
        """Give what is at ``old`` the name ``new``, in the place of what is there."""
        inode = self.find(old)
        assert inode is not None, old
        self._change([(*self._place(old), None), (*self._place(new), inode)])

    def link(self, old: str, new: str) -> None:
        """Give a file a second name."""
        inode = self.find(old)
        assert inode is not None, old
        self._change([(*self._place(new), inode)])

    def sync(self, inode: int) -> None:
        """Make a file's bytes durable, or a folder's names."""
        if inode in self.files:
            self.files[inode].sync()
            return
        touching = [change for change in self._changes if any(folder == inode for folder, _, _ in change)]
        self._changes = [change for change in self._changes if change not in touching]
        for change in touching:
            _apply(self._durable, change)

    def image(self, survival: Survival, rng: np.random.Generator) -> Image:
        """What may be found if the power is cut now."""
        names = {inode: dict(held) for inode, held in self._durable.items()}
        for change in self._changes if survival.names != "synced" else ():
            if survival.names == "changed" or rng.random() < 0.5:
                _apply(names, change)
        folders, files = [], {}
        for path, inode in _walk(names, ROOT, ""):
            if inode in names:
                folders.append(path)
            elif not path.endswith("-shm"):
                files[path] = self._surviving(self.files[inode], survival, rng)
            elif survival.data == "torn" and rng.random() < 0.5:
                files[path] = rng.bytes(32_768)  # shared memory: SQLite must not believe it
        return Image(tuple(folders), files)

    @staticmethod
    def _surviving(file: File, survival: Survival, rng: np.random.Generator) -> bytes:
        if survival.data == "torn":
            return file.torn(rng)
        return bytes(file.content) if survival.data == "written" else file.durable

    def _place(self, path: str) -> tuple[int, str]:
        """The inode of the folder that a path is in, and its last name."""
        folder, _, name = path.rpartition("/")
        inode = self.find(folder)
        assert inode is not None, path
        return inode, name

    def _change(self, change: Change) -> None:
        _apply(self._names, change)
        self._changes.append(change)


def _apply(names: dict[int, dict[str, int]], change: Change) -> None:
    for folder, name, inode in change:
        if inode is None:
            names[folder].pop(name, None)
        else:
            names[folder][name] = inode


def _walk(names: dict[int, dict[str, int]], folder: int, path: str) -> Iterator[tuple[str, int]]:
    for name, inode in names[folder].items():
        below = f"{path}/{name}" if path else name
        yield below, inode
        if inode in names:
            yield from _walk(names, inode, below)
