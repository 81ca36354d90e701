"""Token ids of many texts, run in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from embedstore.encoders.threads import Plan
from embedstore.model import FloatMatrix

Tokens = Sequence[int] | npt.NDArray[np.int32]
Ids = npt.NDArray[np.int64]
Run = Callable[[Ids, Ids], FloatMatrix]
"""Maps input_ids and attention_mask, both int64 (n_texts, n_tokens), to vectors (n_texts, dim)."""
Place = Callable[[list[int], Ids, Ids], None]
"""Takes the positions of a batch's texts, their input_ids and attention_mask, and keeps their vectors."""

_MOST_PADDING = 0.04
"""Of a batch; one that holds a quarter of its tokens is closed before it pads more."""


def batches(lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    """Positions grouped so that a batch, padded, holds at most ``tokens_per_batch`` tokens; longest first.

    A text that is longer than that has a batch of its own. Where lengths lie far apart, batches are smaller rather
    than padded.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    groups: list[list[int]] = []
    longest = n_real = 0
    for position in order:
        length = max(1, lengths[position])
        n_padded = longest * (len(groups[-1]) + 1) if groups else 0
        wasteful = n_real >= tokens_per_batch // 4 and n_real + length < (1 - _MOST_PADDING) * n_padded
        if not groups or n_padded > tokens_per_batch or wasteful:
            groups.append([])
            longest, n_real = length, 0
        groups[-1].append(position)
        n_real += length
    return groups


def pad(texts: Sequence[Tokens], pad_id: int) -> tuple[Ids, Ids]:
    """Ids padded on the right and their mask, both int64 (n_texts, longest)."""
    longest = max(len(text) for text in texts)
    ids = np.full((len(texts), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(texts), longest), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return ids, mask


def run_all(texts: Sequence[Tokens], run: Run, *, dim: int, pad_id: int, plan: Plan) -> FloatMatrix:
    """Vectors of all texts in their order, float32 (n_texts, dim)."""
    vectors: FloatMatrix = np.empty((len(texts), dim), dtype=np.float32)

    def place(group: list[int], ids: Ids, mask: Ids) -> None:
        vectors[group] = run(ids, mask)

    place_all(texts, place, pad_id=pad_id, plan=plan)
    return vectors


def place_all(texts: Sequence[Tokens], place: Place, *, pad_id: int, plan: Plan) -> None:
    """Call ``place`` once for each batch of the texts, from ``plan.n_runs`` threads."""

    def work(group: list[int]) -> None:
        place(group, *pad([texts[position] for position in group], pad_id))

    groups = batches([len(text) for text in texts], plan.tokens_per_batch)
    if plan.n_runs == 1 or len(groups) == 1:
        for group in groups:
            work(group)
        return
    pool = ThreadPoolExecutor(plan.n_runs)
    try:
        list(pool.map(work, groups))  # drained, so that an error of any batch is raised here
    finally:  # an interrupt does not wait for the batches that have not begun
        pool.shutdown(wait=True, cancel_futures=True)
