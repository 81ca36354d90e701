"""How near the vectors of a quantised model are to the exact ones, on a fixed sample of sentences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedstore.model import FloatMatrix

LEAST_COSINE = 0.98
"""A mean below this is no rounding: the export is wrong."""

_SUBJECTS = (
    "The harbour of the old town", "A fungus that attacks rice", "Her grandmother's violin", "The new tax on fuel",
    "A protein in the cell wall", "The night train to the coast", "Rain over the desert", "A court in the capital",
    "The smallest moon of the planet", "An unread letter", "The vaccine against measles", "A goalkeeper of nineteen",
    "Bread from the village oven", "The error in the program", "A herd of reindeer", "The price of copper",
)  # fmt: skip
_PREDICATES = (
    "was described in detail last year.", "is much older than people believe.", "costs more every winter.",
    "did not survive the storm.", "has been photographed from the air for the first time.", "belongs to nobody.",
    "changed the life of a whole family.", "could explain why so many measurements disagree with the theory.",
    "will be shown in the museum, next to the maps.", "surprised even the experts.", "is a matter of dispute.",
    "turned out to be harmless after all, although three laboratories had warned of it.",
)  # fmt: skip

SAMPLE = tuple(f"{subject} {predicate}" for subject in _SUBJECTS for predicate in _PREDICATES)
"""192 sentences of 7 to 25 tokens; each has neighbours by subject and by predicate."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How alike two lists of vectors of the same texts are.

    mean_cosine, least_cosine: between the two vectors of a text. top_10_overlap: the share of each text's ten nearest
    others that are the same in both, from 0 to 1.
    """

    mean_cosine: float
    least_cosine: float
    top_10_overlap: float
    n_texts: int


def measure_fidelity(found: FloatMatrix, exact: FloatMatrix) -> Fidelity:
    """Compare vectors of the same texts, both float32 (n_texts, dim), of length one, more than ten of them."""
    cosines = (found * exact).sum(axis=1)
    shared = [len(set(one) & set(other)) / 10 for one, other in zip(_nearest(found), _nearest(exact), strict=True)]
    return Fidelity(
        mean_cosine=round(float(cosines.mean()), 5), least_cosine=round(float(cosines.min()), 5),
        top_10_overlap=round(float(np.mean(shared)), 4), n_texts=len(found),
    )  # fmt: skip


def _nearest(vectors: FloatMatrix) -> list[list[int]]:
    """Of each vector the positions of the ten others with the greatest product."""
    scores = vectors @ vectors.T  # (n_texts, n_texts)
    np.fill_diagonal(scores, -np.inf)
    nearest: list[list[int]] = np.argpartition(-scores, 10, axis=1)[:, :10].tolist()
    return nearest
