"""Maps: few dimensions in which records that are near each other stay so, for people to look at."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping

import numpy as np

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix, Metric
from embedstore.optional import require
from embedstore.transforms import Affine, Landmarks
from embedstore.wording import first_line

METHODS = ("umap", "tsne", "pacmap")
METRICS: Mapping[str, Metric] = dict.fromkeys(METHODS, Metric.EUCLIDEAN)
MOST_COMPONENTS = 50
"""Vectors are reduced to so many principal components before they are laid out, as is usual."""
_LEAST = 16
_NEIGHBOURS = 15


def draw(method: str, reducer: Affine, vectors: FloatMatrix, dim: int, seed: int) -> Landmarks:
    """Lay out vectors (n, d) in ``dim`` numbers; the same seed gives the same map."""
    if len(vectors) < _LEAST:
        raise InvalidInput(f"a map needs {_LEAST} records at least; there are {len(vectors)}")
    points = reducer.apply(vectors)
    if dim > len(vectors) - 2:
        raise InvalidInput(f"a map of {len(vectors)} records has {len(vectors) - 2} numbers at most, not {dim}")
    if not (points != points[0]).any():
        raise InvalidInput(f"all {len(vectors)} vectors are the same, so there is nothing to lay out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single threads, sparse types and others' future versions
        try:
            places = _DRAWN[method](points, dim, seed)
        except (ValueError, TypeError, np.linalg.LinAlgError) as error:  # what they raise for too little data
            raise InvalidInput(f"{method} cannot lay these vectors out: {first_line(error)}") from None
    if not np.isfinite(places).all():
        raise InvalidInput(f"{method} found no places for these vectors; do they all lie in the same few spots?")
    return Landmarks(reducer, points, np.ascontiguousarray(places, np.float32), _NEIGHBOURS)


def _umap(points: FloatMatrix, dim: int, seed: int) -> np.ndarray:
    require("umap", "maps")
    from umap import UMAP

    fitted = UMAP(
        n_components=dim, n_neighbors=min(_NEIGHBOURS, len(points) - 1), random_state=seed, n_jobs=1
    ).fit_transform(points)
    return np.asarray(fitted)


def _tsne(points: FloatMatrix, dim: int, seed: int) -> np.ndarray:
    if dim > 2:
        raise InvalidInput(f"t-SNE lays out in 1 or 2 numbers, not {dim}; take umap or pca")
    require("openTSNE", "maps")
    from openTSNE import TSNE

    perplexity = min(30.0, (len(points) - 1) / 3)
    return np.asarray(TSNE(n_components=dim, perplexity=perplexity, random_state=seed, n_jobs=-1).fit(points))


def _pacmap(points: FloatMatrix, dim: int, seed: int) -> np.ndarray:
    require("pacmap", "pacmap")
    from pacmap import PaCMAP

    logging.getLogger("pacmap").setLevel(logging.ERROR)  # it warns of its own defaults
    return np.asarray(PaCMAP(n_components=dim, random_state=seed, apply_pca=False).fit_transform(points))


_DRAWN: Mapping[str, Callable[[FloatMatrix, int, int], np.ndarray]] = {
    "umap": _umap, "tsne": _tsne, "pacmap": _pacmap,
}  # fmt: skip
