"""Asks a FAISS index for one query after another on one thread, with everything that can be made once made once.

Beside the search itself, what takes long are addresses of arrays and objects of parameters, and the interpreter's lock,
which every call into FAISS gives away and has to get back from the other threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from embedstore.indexing.cachefile import Pages
from embedstore.indexing.faiss_index import FaissIndex, Settings
from embedstore.indexing.recipes import Family
from embedstore.indexing.selection import Selection
from embedstore.indexing.threads import OneThread
from embedstore.model import FloatMatrix, FloatVector, IntVector, Metric

SPARE = 6
"""Vectors that are asked for beyond ``k``, so that those as near as the last one are seen, and ranked by their row."""
_WIDER = 16
_MOST_CANDIDATES = 1 << 24
"""From here on FAISS, which multiplies numbers of candidates in single precision, would miscount them."""
_ALONE = (Family.GRAPH, Family.LISTS)
"""Where FAISS searches for one query on the thread that asks, without being told (measured with 1.15)."""


class Refined(NamedTuple):
    """How FAISS itself compares what an index finds with exact vectors, which it reads where they lie.

    ``searched`` is FAISS's index that does both; None where what is compared has to be checked in between, by
    ``pages``, which are those of ``matrix``. ``exact`` is FAISS's index of the exact vectors alone.
    """

    searched: Any
    exact: Any
    matrix: FloatMatrix
    pages: Pages | None


class OneQuery:
    """One way to ask an index, for one thread: threads that share an object of parameters crash FAISS."""

    def __init__(
        self,
        index: FaissIndex,
        k: int,
        settings: Settings,
        selection: Selection | None = None,
        refined: Refined | None = None,
        n_candidates: int = 0,
    ) -> None:
        """refined: what ``refined_by`` made of the index; it then finds ``n_candidates``, and compares them exactly."""
        self._index, self._k, self._settings, self._selection = index, k, settings, selection
        self._refined, self._n_candidates = refined, n_candidates
        self._is_exact = refined is not None or not index.recipe.rescore
        self._compared_here = refined is not None and refined.searched is None
        self._most = n_candidates if refined is not None else min(_WIDER * (k + SPARE), index.n_vectors)
        self._n_found = min(k + SPARE, self._most) if self._is_exact else k
        if self._compared_here:
            self._n_found = n_candidates
        self._inner = self._parameters = index.new_parameters(settings, max(self._n_found, n_candidates), selection)
        self._searched = None
        if refined is not None and not self._compared_here:
            self._searched = refined.searched
            factor = (n_candidates + 0.5) / self._n_found  # FAISS multiplies in single precision, and cuts
            self._parameters = index.faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=self._inner)
        self._alone = index.recipe.family in _ALONE
        nothing = np.zeros((1, index.shape.dim), np.float32)
        self._places = index.places(index.shape.fitted(nothing), self._n_found, settings)
        self._query = self._places.queries[0]
        self._positions, self._distances = self._places.positions[0], self._places.distances[0]

    def nearest(self, query: FloatVector) -> tuple[IntVector, FloatVector]:
        """The positions that were found for a prepared query (dim,), best first, and their scores.

        Both may be written over by the next query. Scores are exact where the index is refined or holds whole vectors,
        and equal ones are in order of position then; else they are those of the index's own codes.
        """
        index = self._index
        self._query[:] = query if index.fits else index.shape.fitted(query[None, :])[0]
        if self._alone:
            index.search_into(self._places, self._parameters, self._searched)
        else:
            with OneThread(index.faiss):
                index.search_into(self._places, self._parameters, self._searched)
        positions, distances = self._positions, self._distances
        # As lists: for so few numbers every call of NumPy takes longer than all that is asked here.
        found = positions.tolist()
        if self._selection is not None or min(found) < 0 or max(found) >= index.n_vectors:
            positions, distances = index.usable(positions, distances, self._selection)
        if not self._is_exact:
            return positions, index.scores(distances)
        if self._compared_here:
            positions, distances = self._compared(positions)
        elif len(set(distances.tolist())) < distances.size:
            if self._n_found < self._most and distances.size > self._k and self._is_tied_to_the_end(distances):
                return self._wider().nearest(query)
            order = np.lexsort((positions, distances if index.shape.metric is Metric.EUCLIDEAN else -distances))
            positions, distances = positions[order], distances[order]
        scores = index.scores(distances[: self._k])
        if index.shape.exponent:  # of the query; the vectors that FAISS compared it with are as they are
            scores = np.ldexp(scores, -index.shape.exponent)
        return positions[: self._k], scores

    def _compared(self, positions: IntVector) -> tuple[IntVector, FloatVector]:
        """Positions that were found, and the exact distances to their vectors, best first."""
        refined, n = self._refined, positions.size
        assert refined is not None
        if refined.pages is not None:
            refined.pages.check_rows(positions, refined.matrix.itemsize * refined.matrix.shape[1])
        if n < self._positions.size:  # some were taken out of a copy
            self._positions[:n] = positions
        x, at_distances, at_positions = self._places.addresses
        with OneThread(self._index.faiss):
            refined.exact.compute_distance_subset(1, x, n, at_distances, at_positions)
        positions, distances = self._positions[:n], self._distances[:n]
        order = np.lexsort((positions, distances if self._index.shape.metric is Metric.EUCLIDEAN else -distances))
        return positions[order], distances[order]

    def _is_tied_to_the_end(self, distances: FloatVector) -> bool:
        """Whether a vector that did not come back may be as near as the last one that is wanted."""
        return bool(distances[self._k - 1] == distances[-1])

    def _wider(self) -> OneQuery:
        """The same where every candidate comes back, or where none are compared, many more."""
        n = self._most
        return OneQuery(self._index, n, self._settings, self._selection, self._refined, self._n_candidates)


def refined_by(index: FaissIndex, matrix: FloatMatrix, pages: Pages | None = None) -> Refined | None:
    """How what an index finds is compared with the rows of ``matrix`` (n, dim), of which nothing is copied.

    pages: those of the matrix, where they are to be checked before they are read. None where it cannot be: its recipe
    does not ask for that, it holds vectors of another shape, or this FAISS reads no vectors that are not its own.
    """
    faiss, recipe = index.faiss, index.recipe
    can = recipe.rescore and recipe.family is not Family.BINARY
    can = can and index.shape.is_whole and index.n_vectors == len(matrix) < _MOST_CANDIDATES
    if index.shape.exponent and index.shape.metric is Metric.EUCLIDEAN:
        return None  # by distance a query and vectors of another scale cannot be compared
    if not can or not hasattr(faiss, "MaybeOwnedVectorUInt8"):
        return None
    flat = faiss.IndexFlat(matrix.shape[1], index.built.metric_type)
    content = matrix.reshape(-1).view(np.uint8)
    flat.codes = faiss.MaybeOwnedVectorUInt8.create_view(faiss.swig_ptr(content), content.size, flat.codes.owner)
    flat.ntotal = matrix.shape[0]
    in_between = pages is not None or index.lists is not None
    return Refined(None if in_between else faiss.IndexRefine(index.built, flat), flat, matrix, pages)
