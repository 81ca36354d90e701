"""Plays what strace saw of a process's writes on a simulated disk, one system call at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

from faults.disk import Disk

CALLS = (
    "open", "openat", "creat", "close", "dup", "dup2", "dup3", "lseek", "write", "pwrite64", "writev", "pwritev",
    "pwritev2", "ftruncate", "truncate", "fallocate", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
    "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "fsync", "fdatasync", "sync_file_range", "mmap",
    "sendfile", "copy_file_range", "splice", "io_uring_setup",
)  # fmt: skip
"""What is traced: every call that changes a file or a name, and those that say which file is meant."""

_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+|\?)")
_UNFINISHED = re.compile(r"^(\d+)\s+(.*) <unfinished \.\.\.>$")
_RESUMED = re.compile(r"^(\d+)\s+<\.\.\. \w+ resumed>(.*)$")
_HEX = re.compile(r"(?:\\x[0-9a-f]{2})*")
_VECTOR = re.compile(r'iov_base="((?:\\x[0-9a-f]{2})*)"')


def strace(output: Path) -> list[str]:
    """The command before a command that writes its trace to ``output``, every string in full and in hexadecimal."""
    return ["strace", "-f", "-y", "-xx", "-s", "100000000", "-o", str(output), "-e", f"trace={','.join(CALLS)}"]


class Tracer:
    """Follows one process: its open files, what they do to the disk, and the lines that it printed."""

    def __init__(self, root: Path) -> None:
        self.disk = Disk()
        self.printed: list[str] = []
        self._root = f"{root.resolve()}"
        self._open: dict[int, _Description] = {}

    def play(self, trace: Path) -> Iterator[str]:
        """Go through the trace; after each call that changed the disk, the call in short."""
        with trace.open() as lines:
            for line in _whole(lines):
                matched = _LINE.match(line)
                if matched is None or matched[3] == "?" or matched[3].startswith("-"):
                    continue
                name, arguments = matched[1], matched[2].split(", ")
                if self._call(name, arguments, int(matched[3], 0)):
                    yield f"{name} {self._shown(arguments)}"

    def _call(self, name: str, arguments: list[str], result: int) -> bool:
        """Carry out a call; whether the disk changed."""
        match name:
            case "open" | "openat" | "creat":
                return self._opened(name, arguments, result)
            case "close":
                self._open.pop(_number(arguments[0]), None)
                return False
            case "dup" | "dup2" | "dup3":
                if _number(arguments[0]) in self._open:
                    self._open[result] = self._open[_number(arguments[0])]
                return False
            case "mkdir" | "mkdirat" | "rename" | "renameat" | "renameat2" | "unlink" | "unlinkat" | "rmdir":
                return self._renamed(name, arguments)
            case "link" | "linkat":
                old, new = self._paths(arguments)
                if old is None or new is None:
                    return False
                self.disk.link(old, new)
                return True
        return self._by_descriptor(name, arguments, result)

    def _opened(self, name: str, arguments: list[str], result: int) -> bool:
        (path,) = self._paths(arguments)
        if path is None:
            self._open.pop(result, None)
            return False
        flags = "O_CREAT|O_TRUNC" if name == "creat" else next(one for one in arguments if one.startswith("O_"))
        inode = self.disk.find(path)
        changed = inode is None
        if inode is None:
            if "O_CREAT" not in flags:
                _refuse(f"{path} was opened but was never made")
            inode = self.disk.make(path)
        elif "O_TRUNC" in flags and self.disk.files[inode].content:
            self.disk.files[inode].resize(0)
            changed = True
        self._open[result] = _Description(inode, appending="O_APPEND" in flags)
        return changed

    def _renamed(self, name: str, arguments: list[str]) -> bool:
        paths = self._paths(arguments)
        inside = [path for path in paths if path is not None]
        if not inside:
            return False
        if len(inside) != len(paths) or "RENAME_EXCHANGE" in arguments[-1]:
            _refuse(f"{name} {paths}")
        if name.startswith("rename"):
            self.disk.rename(*inside)
        elif name.startswith("mkdir"):
            self.disk.make(*inside, folder=True)
        else:
            self.disk.remove(*inside)
        return True

    def _by_descriptor(self, name: str, arguments: list[str], result: int) -> bool:
        if name == "write" and _number(arguments[0]) == 1:
            self.printed += _bytes(arguments[1]).decode().splitlines()
            return False
        place = 4 if name == "mmap" else 1 if name == "copy_file_range" else 0
        held = self._open.get(_number(arguments[place])) if len(arguments) > place else None
        if held is None:
            return False
        file = self.disk.files.get(held.inode)
        match name:
            case "fsync" | "fdatasync":
                self.disk.sync(held.inode)
                return True
            case "lseek":
                held.offset = result
                return False
            case "mmap":
                writing = "PROT_WRITE" in arguments[2] and "MAP_SHARED" in arguments[3]
                if writing and not self._shown(arguments[4:5]).endswith("-shm"):
                    _refuse(f"writing through a map: {arguments}")
                return False
            case "ftruncate" if file is not None:
                file.resize(_number(arguments[1]))
                return True
            case "write" | "writev" | "pwrite64" | "pwritev" if file is not None:
                chunk = _written(arguments[1:])[:result]
                if name.startswith("p"):
                    file.write(_number(arguments[-1]), chunk)
                    return True
                at = len(file.content) if held.appending else held.offset
                file.write(at, chunk)
                held.offset = at + len(chunk)
                return True
            case "sendfile" if file is not None:
                chunk = self._sent(arguments, result)
                file.write(held.offset, chunk)
                held.offset += len(chunk)
                return True
        _refuse(f"{name} {self._shown(arguments)}")

    def _sent(self, arguments: list[str], n_bytes: int) -> bytes:
        """What ``sendfile`` copied from a file on the same disk."""
        source, offset = self._open.get(_number(arguments[1])), re.match(r"\[(\d+)\]", arguments[2])
        if source is None or offset is None:
            _refuse(f"sendfile {arguments}")
        return bytes(self.disk.files[source.inode].content[int(offset[1]) :][:n_bytes])

    def _paths(self, arguments: list[str]) -> list[str | None]:
        """The paths that a call names, below the root; None for those outside."""
        found: list[str | None] = []
        folder = ""
        for one in arguments:
            if one.endswith(">"):
                folder = _bytes(one[one.index("<") + 1 : -1]).decode()
            elif one.startswith('"'):
                path = _bytes(one).decode(errors="replace")
                found.append(self._below(path if path.startswith("/") else f"{folder}/{path}"))
        return found

    def _below(self, path: str) -> str | None:
        return path[len(self._root) + 1 :] if f"{path}/".startswith(f"{self._root}/") else None

    def _shown(self, arguments: list[str]) -> str:
        """The first path among arguments, for messages."""
        for one in arguments:
            if one.endswith(">"):
                return _bytes(one[one.index("<") + 1 : -1]).decode(errors="replace").removeprefix(f"{self._root}/")
        return " ".join(str(path) for path in self._paths(arguments))


class _Description:
    """An open file: where it is, and where the next write goes."""

    def __init__(self, inode: int, *, appending: bool) -> None:
        self.inode = inode
        self.appending = appending
        self.offset = 0


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Lines of a trace; a call that another thread's interrupted is put together, where it ended."""
    begun: dict[str, str] = {}
    for line in lines:
        if matched := _UNFINISHED.match(line):
            begun[matched[1]] = line.rstrip()[: -len(" <unfinished ...>")]
        elif matched := _RESUMED.match(line):
            yield begun.pop(matched[1]) + matched[2]
        else:
            yield line


def _number(argument: str) -> int:
    """A number; of a descriptor, without the path that is shown with it."""
    return int(argument.partition("<")[0], 0)


def _bytes(argument: str) -> bytes:
    text = argument.strip('"')
    if not _HEX.fullmatch(text):
        _refuse(f"a string that is not whole: {argument[-80:]}")
    return bytes.fromhex(text.replace("\\x", ""))


def _written(arguments: list[str]) -> bytes:
    if arguments[0].startswith("["):
        return b"".join(_bytes(one) for one in _VECTOR.findall(", ".join(arguments)))
    return _bytes(arguments[0])


def _refuse(what: str) -> NoReturn:
    """A trace that cannot be played must not pass for one that was."""
    raise NotImplementedError(f"the trace holds what the simulation does not know: {what}")
