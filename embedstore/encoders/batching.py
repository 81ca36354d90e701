"""Token ids of many texts, run in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from embedstore.model import FloatMatrix

Tokens = Sequence[int]
Run = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], FloatMatrix]
"""Maps input_ids and attention_mask, both int64 (n_texts, n_tokens), to vectors (n_texts, dim)."""


def batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions grouped so that a batch, padded, holds at most ``tokens_per_batch`` tokens; longest first.

    A text that is longer than that has a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    groups: list[list[int]] = []
    room = 0
    for position in order:
        if room == 0:
            groups.append([])
            room = max(1, tokens_per_batch // max(1, lengths[position]))
        groups[-1].append(position)
        room -= 1
    return groups


def pad(texts: Sequence[Tokens], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids padded on the right and their mask, both int64 (n_texts, longest)."""
    longest = max(len(text) for text in texts)
    ids = np.full((len(texts), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def run_all(
    texts: Sequence[Tokens], run: Run, *, dim: int, pad_id: int, tokens_per_batch: int, n_workers: int
) -> FloatMatrix:
    """Vectors of all texts in their order, float32 (n_texts, dim)."""
    vectors: FloatMatrix = np.empty((len(texts), dim), dtype=np.float32)

    def fill(group: list[int]) -> None:
        vectors[group] = run(*pad([texts[position] for position in group], pad_id))

    groups = batches([len(text) for text in texts], tokens_per_batch)
    if n_workers == 1 or len(groups) == 1:
        for group in groups:
            fill(group)
    else:
        pool = ThreadPoolExecutor(n_workers)
        try:
            list(pool.map(fill, groups))  # drained, so that an error of any batch is raised here
        finally:  # an interrupt does not wait for the batches that have not begun
            pool.shutdown(wait=True, cancel_futures=True)
    return vectors
