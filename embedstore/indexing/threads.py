"""Keeps FAISS on the calling thread where there is work for one: it would call up others, and wait for them.

How many threads FAISS uses is a setting of its OpenMP for each thread. FAISS's own functions for it give up the
interpreter's lock, as all of FAISS does, and a thread that gave it up waits for the others. So OpenMP is asked itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_OPENMP = re.compile(r"lib[gi]?omp[.-]")
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


class _Setting(NamedTuple):
    """How to ask for the number of threads that FAISS would use on this thread, and how to set it."""

    ask: Callable[[], int]
    set: Callable[[int], Any]


@functools.cache
def _setting(faiss: Any) -> _Setting:
    """By the OpenMP that FAISS is seen to listen to, without giving up the interpreter's lock; else by FAISS."""
    by_faiss = _Setting(faiss.omp_get_max_threads, faiss.omp_set_num_threads)
    for path in _loaded_openmp():
        try:
            library = ctypes.PyDLL(path)  # which is loaded already
            by_openmp = _Setting(library.omp_get_max_threads, library.omp_set_num_threads)
        except (OSError, AttributeError):
            continue
        before, known = by_faiss.ask(), by_openmp.ask()
        by_openmp.set(before + 1)
        heard = by_faiss.ask() == before + 1
        by_openmp.set(known)
        if heard and by_faiss.ask() == before:
            return by_openmp
    return by_faiss


def _loaded_openmp() -> list[str]:
    """The libraries of OpenMP in this process (GNU's, Intel's, LLVM's); none where the system does not tell."""
    try:
        paths = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    except (OSError, UnicodeDecodeError):
        return []
    found = [path for path in paths if _OPENMP.match(Path(path).name)]
    return sorted(found, key=lambda path: ("faiss" not in path, path))  # FAISS's own first


class OneThread:
    """A block in which FAISS uses no other threads; other Python threads have a setting of their own."""

    __slots__ = ("_n_threads", "_setting")

    def __init__(self, faiss: Any) -> None:
        self._setting = _setting(faiss)
        self._n_threads = 1

    def __enter__(self) -> None:
        self._n_threads = self._setting.ask()
        if self._n_threads != 1:
            self._setting.set(1)

    def __exit__(self, *_: object) -> None:
        if self._n_threads != 1:
            self._setting.set(self._n_threads)


class ManyThreads(OneThread):
    """A block in which FAISS may use other threads, but in a forked process, where those of the parent are no more."""

    __slots__ = ()

    def __enter__(self) -> None:
        if _forked:
            super().__enter__()
