"""Cache files: written with their hashes and made durable, opened only if they are what was written.

Two hashes are kept of every file. SHA-256 over the bytes, for ``verify``; and a page hash that is checked at every
opening: the SHA-256 of the sums (XXH3, 64 bits) of all 4096-byte pages. It runs at the speed of memory and notices
damage of any shape but one time in 2**64. It is a guard against damage, not against an attacker.

Where a file is too large to be read at every opening, the sums of its pages are a file of their own, and each page is
held against its sum when it is first read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from embedstore.failpoints import reach
from embedstore.indexing.steps import Steps
from embedstore.storage.files import sync_folder, write_all

_PAGE_BYTES = 4096
_CHUNK_BYTES = 4 << 20
CHECKED_WHOLE = 128 << 20
"""A file of so many bytes at most is checked when it is opened, even where it could be checked page by page."""
MANIFEST_NAME = "MANIFEST"
MANIFEST_FORMAT = 3
_MAX_MANIFEST_BYTES = 1 << 20
_FILE_NAME = re.compile(r"[\w-]+-[0-9a-f]{12}\.(f32|i64|u8|faiss|sums)", re.ASCII)
_FILE_FIELDS: dict[str, type] = {"name": str, "n_bytes": int, "sha256": str, "page_hash": str}
_FIELDS: dict[str, type] = {
    "store": str, "space": int, "metric": str, "dim": int, "fingerprint": str, "change": int, "commit_id": str,
    "hi_seq": int, "n_vectors": int,
}  # fmt: skip
_INDEX_FIELDS: dict[str, type] = {"recipe": str, "n_vectors": int, "hi_seq": int, "build_ms": int}
_SUM_BYTES = 8
_LARGEST_EXPONENT = 200  # of numbers in single precision, with room to spare


class DamagedCache(Exception):
    """A cache file is missing or is not what was written; it will be rebuilt from SQL."""


@dataclass(frozen=True, slots=True)
class CacheFile:
    """What a manifest says of one file."""

    name: str
    n_bytes: int
    sha256: str
    page_hash: str


class CacheWriter:
    """Writes one cache file through a descriptor of its own, hashing on the way; usable as a context manager.

    The file gets its final name when the block ends without an error, after its bytes are on the disk.
    """

    def __init__(self, folder: Path, stem: str, suffix: str) -> None:
        self._path = folder / f"{stem}-{secrets.token_hex(6)}{suffix}"
        self._temporary = self._path.with_suffix(".tmp")
        self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._sha256 = hashlib.sha256()
        self._sums: list[bytes] = []
        self._pending = bytearray()
        self._n_bytes = 0
        self.written: CacheFile | None = None

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            os.close(self._descriptor)
            if self.written is None:
                self._temporary.unlink(missing_ok=True)

    def write(self, chunk: bytes | memoryview) -> int:
        """Append bytes; raises OSError where the disk is full."""
        rest = memoryview(chunk)
        while len(self._pending) + len(rest) >= _CHUNK_BYTES:
            taken = _CHUNK_BYTES - len(self._pending)
            if self._pending:
                self._pending += rest[:taken]
                self._put(self._pending)
                self._pending = bytearray()
            else:
                self._put(rest[:taken])
            rest = rest[taken:]
        self._pending += rest
        return len(chunk)

    def _put(self, chunk: bytes | bytearray | memoryview) -> None:
        self._sha256.update(chunk)
        self._sums.append(_page_sums(np.frombuffer(chunk, np.uint8)))
        write_all(self._descriptor, chunk)
        self._n_bytes += len(chunk)

    def _finish(self) -> None:
        self._put(self._pending)
        os.fsync(self._descriptor)
        reach("cache.bytes_synced")
        os.rename(self._temporary, self._path)
        sync_folder(self._path.parent)
        reach("cache.file_renamed")
        self.written = CacheFile(self._path.name, self._n_bytes, self._sha256.hexdigest(), self._page_hash())

    def _page_hash(self) -> str:
        return hashlib.sha256(b"".join(self._sums)).hexdigest()

    @property
    def sums(self) -> npt.NDArray[np.uint64]:
        """The sums of the pages written so far, uint64 (n_pages,)."""
        return np.frombuffer(b"".join(self._sums), "<u8")


def _page_sums(chunk: npt.NDArray[np.uint8]) -> bytes:
    """The XXH3 of each page, the last one as long as it is; ``chunk`` begins at a page."""
    content = chunk.data
    sums = [xxhash.xxh3_64_intdigest(content[at : at + _PAGE_BYTES]) for at in range(0, chunk.size, _PAGE_BYTES)]
    return np.array(sums, "<u8").tobytes()


def write_sums(folder: Path, sums: npt.NDArray[np.uint64]) -> CacheFile:
    """Write the sums of a file's pages to a file of their own."""
    with CacheWriter(folder, "sums", ".sums") as writer:
        writer.write(sums.astype("<u8").tobytes())
    assert writer.written is not None
    return writer.written


class Pages:
    """A mapped file of which each page is held against its sum before it is first used; threads may share it."""

    def __init__(self, path: Path, content: npt.NDArray[np.uint8], sums: npt.NDArray[np.uint64]) -> None:
        self.content = content
        self._path = path
        self._sums = sums
        self._checked = np.zeros(sums.shape, np.bool_)
        self._all_checked = sums.size == 0
        self._row_bytes = 0
        self._checked_rows = np.zeros(0, np.bool_)  # of so many bytes each, where they were asked for as such

    def check_all(self) -> None:
        """Check every page; raises DamagedCache for one that is not what was written."""
        if not self._all_checked:
            step = _CHUNK_BYTES // _PAGE_BYTES
            for start in range(0, self._sums.size, step):
                self._check(np.arange(start, min(start + step, self._sums.size)))
            self._all_checked = True

    def check_ranges(self, offsets: npt.NDArray[np.int64], n_bytes: npt.NDArray[np.int64]) -> None:
        """Check the pages of stretches of bytes, each of at least one byte or passed over."""
        if self._all_checked:
            return
        some = n_bytes > 0
        first = offsets[some] // _PAGE_BYTES
        last = (offsets[some] + n_bytes[some] - 1) // _PAGE_BYTES
        if not first.size:
            return
        marks = np.zeros(self._sums.size + 1, np.int32)
        np.add.at(marks, first, 1)
        np.add.at(marks, last + 1, -1)
        self._check(np.flatnonzero((np.cumsum(marks[:-1]) > 0) & ~self._checked))

    def check_rows(self, rows: npt.NDArray[np.int64], row_bytes: int) -> None:
        """Check the pages of rows of ``row_bytes`` each."""
        if self._all_checked or not rows.size:
            return
        if row_bytes != self._row_bytes:
            self._checked_rows, self._row_bytes = np.zeros(self.content.size // row_bytes, np.bool_), row_bytes
        checked = self._checked_rows
        if checked[rows].all():
            return
        first = rows * row_bytes // _PAGE_BYTES
        last = (rows * row_bytes + row_bytes - 1) // _PAGE_BYTES
        most = int((last - first).max()) + 1
        touched = first[:, None] + np.arange(most)  # (n_rows, most)
        marks = np.zeros(self._sums.shape, np.bool_)
        marks[touched[touched <= last[:, None]]] = True
        self._check(np.flatnonzero(marks & ~self._checked))
        checked[rows] = True

    def _check(self, pages: npt.NDArray[np.int64]) -> None:
        for group in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
            if not group.size:
                continue
            start, stop = int(group[0]) * _PAGE_BYTES, (int(group[-1]) + 1) * _PAGE_BYTES
            found = np.frombuffer(_page_sums(self.content[start:stop]), "<u8")
            if not np.array_equal(found, self._sums[group[0] : group[-1] + 1]):
                raise DamagedCache(f"{self._path} does not hold what was written")
        self._checked[pages] = True


def open_pages(folder: Path, file: CacheFile, sums: CacheFile) -> Pages:
    """Map a cache file whose pages are checked as they are used; DamagedCache where its size or its sums are wrong."""
    mapped = map_file(folder, file)
    held = np.array(open_checked(folder, sums)).view("<u8")
    if hashlib.sha256(held.tobytes()).hexdigest() != file.page_hash:
        raise DamagedCache(f"{folder / sums.name} does not hold the sums of {file.name}")
    return Pages(folder / file.name, mapped, held)


def open_checked(folder: Path, file: CacheFile) -> npt.NDArray[np.uint8]:
    """The bytes of a cache file, memory-mapped read-only; DamagedCache where they are not those written."""
    return checked(map_file(folder, file), folder / file.name, file)


def checked(content: npt.NDArray[np.uint8], path: Path, file: CacheFile) -> npt.NDArray[np.uint8]:
    """The bytes of a mapped cache file; DamagedCache where they are not those written."""
    if page_hash(content) != file.page_hash:
        raise DamagedCache(f"{path} does not hold what was written")
    return content


def map_file(folder: Path, file: CacheFile) -> npt.NDArray[np.uint8]:
    """The bytes of a cache file, mapped read-only, not looked at; DamagedCache where it is of another size."""
    path = folder / file.name
    if path.parent != folder or not file.name or file.name in (".", ".."):
        raise DamagedCache(f"{file.name!r} is no name of a cache file")
    try:
        n_bytes = path.stat().st_size
        if n_bytes != file.n_bytes:
            raise DamagedCache(f"{path} has {n_bytes:,} bytes; {file.n_bytes:,} were written")
        return np.memmap(path, np.uint8, "r") if n_bytes else np.empty(0, np.uint8)
    except OSError as error:
        raise DamagedCache(f"{path} cannot be read: {error.strerror}") from error


def release(content: npt.NDArray[np.uint8]) -> None:
    """Let the system take back the memory of a mapped file, which is read again when it is next used."""
    held = getattr(content, "_mmap", None)
    if held is not None:
        held.madvise(mmap.MADV_DONTNEED)


def descriptor_page_hash(descriptor: int) -> str:
    """The page hash of an open file, which is read in pieces; OSError where it cannot be read."""
    hashed = hashlib.sha256()
    offset = 0
    while True:
        piece = os.pread(descriptor, _CHUNK_BYTES, offset)
        if piece or not offset:
            hashed.update(_page_sums(np.frombuffer(piece, np.uint8)))
        if not piece:
            return hashed.hexdigest()
        offset += len(piece)


def page_sums(content: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The sums of the pages of a whole file's bytes, uint64 (n_pages,)."""
    parts = [_page_sums(content[start : start + _CHUNK_BYTES]) for start in range(0, content.size, _CHUNK_BYTES)]
    return np.frombuffer(b"".join(parts), "<u8")


def page_hash(content: npt.NDArray[np.uint8]) -> str:
    """The page hash of a whole file's bytes, in hex."""
    hashed = hashlib.sha256()
    for start in range(0, max(content.size, 1), _CHUNK_BYTES):
        hashed.update(_page_sums(content[start : start + _CHUNK_BYTES]))
    return hashed.hexdigest()


def write_manifest(folder: Path, fields: dict[str, Any]) -> None:
    """Publish a manifest: from here on its files are the cache."""
    body = json.dumps(fields, sort_keys=True)
    text = json.dumps({"manifest": fields, "sha256": hashlib.sha256(body.encode()).hexdigest()}, sort_keys=True)
    temporary = folder / f"{MANIFEST_NAME}-{secrets.token_hex(6)}.tmp"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            write_all(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        reach("cache.manifest_synced")
        os.rename(temporary, folder / MANIFEST_NAME)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    reach("cache.manifest_renamed")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The published manifest, or None where there is none; DamagedCache where it is not what was written.

    One of another format comes back as it is; of one of this format, every field is there and can be what it says.
    """
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedCache(f"{path} cannot be read: {error.strerror}") from error
    try:
        outer = json.loads(text)
        fields: dict[str, Any] = outer["manifest"]
        body = json.dumps(fields, sort_keys=True)
        if outer["sha256"] != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError
        known = fields.get("format") != MANIFEST_FORMAT or manifest_is_sound(fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedCache(f"{path} is not a manifest as it was written") from None
    if not known:
        raise DamagedCache(f"{path} holds what no manifest has")
    return fields


def manifest_is_sound(fields: dict[str, Any]) -> bool:
    """Whether a manifest has every field, each of its kind, with sizes that fit each other."""
    index, files = fields.get("index"), fields.get("files")
    if not (_has(fields, _FIELDS) and isinstance(files, dict) and all(map(_is_file, files.values()))):
        return False
    if not (fields["dim"] > 0 and fields["n_vectors"] <= fields["hi_seq"]):
        return False
    n_bytes = {"exact": fields["n_vectors"] * fields["dim"] * 4, "labels": fields["n_vectors"] * 16}
    for name in ("exact", "index"):
        if f"{name}_sums" in files and name in files:
            n_bytes[f"{name}_sums"] = -(-files[name]["n_bytes"] // _PAGE_BYTES) * _SUM_BYTES
    if fields.get("bytes") is not None:
        n_bytes["bytes"] = Steps.from_json(fields["bytes"]).n_bytes(fields["n_vectors"], fields["dim"])
    if index is not None:
        if not (isinstance(index, dict) and _has(index, _INDEX_FIELDS) and "index" in files):
            return False
        if not 0 < index["n_vectors"] <= index["hi_seq"] <= fields["hi_seq"]:
            return False
        exponent = index.get("exponent", 0)  # manifests of earlier versions have none
        if type(exponent) is not int or abs(exponent) > _LARGEST_EXPONENT:
            return False
        n_bytes |= {"index_labels": index["n_vectors"] * 16, "index": files["index"]["n_bytes"]}
        if "index_centre" in files:
            n_bytes["index_centre"] = fields["dim"] * 4
    return files.keys() == n_bytes.keys() and all(files[name]["n_bytes"] == n for name, n in n_bytes.items())


def _has(fields: dict[str, Any], kinds: dict[str, type]) -> bool:
    """Whether the fields are there, each of its kind; no number is negative."""
    return all(
        type(fields.get(name)) is kind and (kind is not int or fields[name] >= 0) for name, kind in kinds.items()
    )


def _is_file(fields: Any) -> bool:
    return (
        isinstance(fields, dict) and fields.keys() == _FILE_FIELDS.keys() and _has(fields, _FILE_FIELDS)
        and _FILE_NAME.fullmatch(fields["name"]) is not None
    )  # fmt: skip


def set_aside(folder: Path) -> None:
    """Rename a damaged manifest to ``*.corrupt``, so that the next build starts afresh."""
    path = folder / MANIFEST_NAME
    try:
        os.replace(path, path.with_suffix(".corrupt"))
    except OSError:
        pass  # another process was first, or the folder is read-only


def remove_others(folder: Path, keep: Iterable[str]) -> None:
    """Delete cache files that the published manifest does not name. Whoever has one mapped keeps it."""
    kept = {*keep, MANIFEST_NAME}
    for path in folder.iterdir():
        if path.name not in kept and path.suffix in (".f32", ".i64", ".u8", ".faiss", ".sums", ".tmp"):
            path.unlink(missing_ok=True)


def file_fields(file: CacheFile) -> dict[str, Any]:
    """A cache file as a manifest holds it."""
    return asdict(file)
