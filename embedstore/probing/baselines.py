"""What can be told from the words of a text alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from embedstore.model import IntVector


def word_counts(texts: Sequence[str]) -> Any:
    """A sparse matrix (n, words) of which words a text has; None where there are no words."""
    from sklearn.feature_extraction.text import CountVectorizer

    try:
        return CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]").fit_transform(texts)
    except ValueError:  # it found no word at all
        return None


def bag_of_words(
    texts: Sequence[str], classes: IntVector, held_out: IntVector, parts: Iterable[int]
) -> np.ndarray | None:
    """By example whether logistic regression on its words tells its class, 1.0 or 0.0; None without words."""
    words = word_counts(texts)
    if words is None:
        return None
    from sklearn.linear_model import LogisticRegression

    found = np.zeros(len(texts))
    for fold in parts:
        out = held_out == fold
        if len(np.unique(classes[~out])) < 2:
            found[out] = classes[out] == classes[~out][0]
            continue
        model = LogisticRegression(max_iter=1000).fit(words[~out], classes[~out])
        found[out] = model.predict(words[out]) == classes[out]
    return found
