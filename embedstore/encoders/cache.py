"""The cache folder, where files that can be made again are kept with their digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

logger = logging.getLogger("embedstore")


def cache_folder() -> Path:
    """The folder of files that can be made again: ``$EMBEDSTORE_CACHE``, else the user's cache folder."""
    given = os.environ.get("EMBEDSTORE_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return platformdirs.user_cache_path("embedstore")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: a temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON."""
    with replacing(path) as file:
        file.write(json.dumps(value, indent=1, sort_keys=True).encode())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; empty where it is absent or damaged, since it can be made again."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def known_sha256(path: Path) -> str:
    """SHA-256 of a file in hex, remembered while the file's size and times stay the same.

    The memory is one small JSON in the cache folder; where that cannot be written the file is hashed
    each time.
    Raises OSError where the file cannot be read.
    """
    resolved = path.resolve(strict=True)
    known = read_json(_memory_of(resolved))
    if known.get("state") == _state_of(resolved) and known.get("path") == str(resolved):
        return str(known["sha256"])
    state = _state_of(resolved)  # before the reading, so that a change meanwhile is seen the next time
    digest = sha256_of(resolved)
    _remember(resolved, state, digest)
    return digest


def remember_sha256(path: Path, digest: str) -> None:
    """Note the SHA-256 of a file that was just written, for ``known_sha256``."""
    resolved = path.resolve(strict=True)
    _remember(resolved, _state_of(resolved), digest)


def _memory_of(resolved: Path) -> Path:
    name = hashlib.blake2b(os.fsencode(resolved), digest_size=16).hexdigest()
    return cache_folder() / "sha256" / f"{name}.json"


def _state_of(resolved: Path) -> list[int]:
    """What changes with the file; the change time too, since a copy over the file can keep its mtime."""
    stat = resolved.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _remember(resolved: Path, state: list[int], digest: str) -> None:
    try:
        write_json(_memory_of(resolved), {"path": str(resolved), "state": state, "sha256": digest})
    except OSError as error:
        logger.debug("cannot remember the digest of %s: %s", resolved, error)
