"""Keeps FAISS on the calling thread where there is work for one: it would call up others, and wait for them."""

from __future__ import annotations

import os
from typing import Any

_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


class OneThread:
    """A block in which FAISS uses no other threads; other Python threads have a setting of their own."""

    __slots__ = ("_faiss", "_n_threads")

    def __init__(self, faiss: Any) -> None:
        self._faiss = faiss
        self._n_threads = 1

    def __enter__(self) -> None:
        self._n_threads = self._faiss.omp_get_max_threads()
        if self._n_threads != 1:
            self._faiss.omp_set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._n_threads != 1:
            self._faiss.omp_set_num_threads(self._n_threads)


class ManyThreads(OneThread):
    """A block in which FAISS may use other threads, but in a forked process, where those of the parent are no more."""

    __slots__ = ()

    def __enter__(self) -> None:
        if _forked:
            super().__enter__()
