"""Ranks lists of results together: reciprocal rank fusion, and maximal marginal relevance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedstore.model import FloatMatrix, FloatVector, Metric

RRF_CONSTANT = 60


def reciprocal_rank_fusion(lists: Sequence[Sequence[int]]) -> list[tuple[int, float]]:
    """Fuse ranked lists of ids into one, best first; equal scores in order of id.

    An id's score is the sum over the lists of 1 / (60 + its rank) (Cormack, Clarke and Büttcher, SIGIR 2009).
    """
    scores: dict[int, float] = {}
    for ranked in lists:
        for rank, one in enumerate(ranked, start=1):
            scores[one] = scores.get(one, 0.0) + 1.0 / (RRF_CONSTANT + rank)
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))


def maximal_marginal_relevance(
    vectors: FloatMatrix, relevance: FloatVector, k: int, weight: float, metric: Metric
) -> list[int]:
    """The places of ``k`` candidates that are relevant and unlike each other, in the order they are chosen.

    vectors: prepared for the metric, float32 (n, dim); relevance: float32 (n,), the scores against the query. Each step
    takes the candidate with the greatest ``weight * relevance - (1 - weight) * greatest score against those taken``
    (Carbonell and Goldstein, SIGIR 1998), both by the same metric. ``weight`` 1 is the plain ranking.
    """
    chosen: list[int] = []
    nearest = np.full(len(vectors), -np.inf, np.float32)
    open_ = np.ones(len(vectors), np.bool_)
    for _ in range(min(k, len(vectors))):
        penalty = np.where(np.isfinite(nearest), nearest, 0)
        value = np.where(open_, weight * relevance - (1 - weight) * penalty, -np.inf)
        best = int(np.argmax(value))
        chosen.append(best)
        open_[best] = False
        if metric is Metric.EUCLIDEAN:
            scores = -np.linalg.norm(vectors - vectors[best], axis=1)
        else:
            scores = vectors @ vectors[best]
        nearest = np.maximum(nearest, scores)
    return chosen
