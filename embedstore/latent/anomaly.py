"""Finds the strangest records of a space: what an autoencoder does not give back, or what lies far from all others."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.keeping import check_field, keep_field
from embedstore.model import Metric, Record
from embedstore.reading import checked_where, space_row, stream_records, vectors_of
from embedstore.storage import catalog
from embedstore.storage.catalog import SpaceRow
from embedstore.storing.encoding import prepared_content
from embedstore.storing.layout import modalities_read

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LOG = logging.getLogger("embedstore")
METHODS = ("reconstruction", "elbo", "knn")
_PAGE = 1000
_STORED = ("score", "share", "strange")


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A record with how strange it is: its score, greater for stranger, and the share of ordinary ones below it.

    ``share`` is of what was held out when the model was trained; for 'knn', of all records that were scored.
    """

    key: str
    score: float
    share: float
    strange: bool


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """The strangest records, the strangest first, of ``n_scored``; ``threshold`` is the score from which one counts.

    unreadable: records whose content could not be had, such as a picture whose file is gone, with the reason.
    """

    method: str
    threshold: float
    n_scored: int
    n_strange: int
    anomalies: list[Anomaly]
    unreadable: list[str]


def find_anomalies(
    collection: Collection, *, space: str | None, method: str, where: Where | None, top: int, quantile: float,
    neighbour: int, store_as: str | None,
) -> AnomalyReport:  # fmt: skip
    """See ``Collection.anomalies``."""
    _check(method, top, quantile, neighbour)
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        row = space_row(transaction, owner, space)
        if store_as is not None:
            check_field(transaction, owner, store_as, _STORED)
    if method == "knn":
        unreadable: list[str] = []
        keys, scores = _by_neighbours(collection, row, where, neighbour)
        quantiles = np.quantile(scores, np.linspace(0, 1, 201)).tolist() if len(scores) else [0.0]
    else:
        keys, scores, unreadable, quantiles = _by_model(collection, row, where, method)
    if unreadable and not keys:
        raise InvalidInput(f"none of {len(unreadable):,} records could be scored; the first: {unreadable[0]}")
    if not keys:
        raise InvalidInput(f"the space {row.name!r} holds no vectors of such records, so nothing can be scored")
    from embedstore.vae.scoring import share_below, threshold_at

    shares = share_below(scores, quantiles)
    threshold = threshold_at(quantiles, quantile)
    strange = scores > threshold
    if store_as is not None and keys:
        keep_field(collection, store_as, _fields(keys, scores, shares, strange))
    order = np.argsort(-scores, kind="stable")[:top].tolist()
    found = [Anomaly(keys[place], float(scores[place]), float(shares[place]), bool(strange[place])) for place in order]
    return AnomalyReport(method, threshold, len(keys), int(strange.sum()), found, unreadable)


def _check(method: str, top: int, quantile: float, neighbour: int) -> None:
    if method not in METHODS:
        raise InvalidInput(f"method is {method!r}; it must be one of {', '.join(METHODS)}")
    check_whole("top", top, 1)
    check_whole("neighbour", neighbour, 1)
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float)) or not 0 < quantile < 1:
        raise InvalidInput(f"quantile is {quantile!r}; it must lie between 0 and 1")


def _by_model(
    collection: Collection, row: SpaceRow, where: Where | None, method: str
) -> tuple[list[str], np.ndarray, list[str], list[float]]:
    """Keys and scores of the records that the space's autoencoder reads, those it could not read, its quantiles."""
    encoder: Any = collection.store.encoder_of(row)
    score = getattr(encoder, "anomaly_scores", None)
    if score is None:
        raise InvalidInput(
            f"the encoder of {row.name!r}, {encoder.spec.name!r}, is no trained autoencoder; method='knn' needs none"
        )
    keys: list[str] = []
    parts: list[np.ndarray] = []
    unreadable: list[str] = []
    for page in _pages(collection, row, where):
        items = []
        for record in page:
            try:
                items.append(prepared_content(encoder, record.modality, record.content, record.uri))
                keys.append(record.key)
            except InvalidInput as error:
                unreadable.append(f"{record.key}: {error}")
        if items:
            parts.append(score(items, method))
    scores = np.concatenate(parts) if parts else np.empty(0)
    return keys, scores, unreadable, encoder.anomaly_quantiles(method)


def _pages(collection: Collection, row: SpaceRow, where: Where | None) -> Iterator[list[Record]]:
    read = modalities_read(row)
    records = (one for one in collection.records(where) if one.content is not None and one.modality in read)
    while page := list(islice(records, _PAGE)):
        yield page


def _by_neighbours(
    collection: Collection, row: SpaceRow, where: Where | None, neighbour: int
) -> tuple[list[str], np.ndarray]:
    """Keys of records with vectors, and the distance of each to its nth neighbour, itself left out.

    Distances are Euclidean, 1 - cosine, or minus the inner product, by the space's metric (Ramaswamy, Rastogi and Shim
    2000 rank by the distance to the nth neighbour).
    """
    if neighbour >= row.n_live:
        _LOG.warning("%d vectors have no neighbour of rank %d; their farthest is taken", row.n_live, neighbour)
    keys: list[str] = []
    parts: list[np.ndarray] = []
    shift = 1.0 if Metric(row.metric) is Metric.COSINE else 0.0
    with collection.store.reading() as transaction:
        owner = catalog.require_collection(transaction, collection.name)
        tree = None if where is None else checked_where(transaction, owner, where)
        stream = stream_records(transaction, owner, tree)
        cache = collection.store.search
        while page := list(islice(stream, _PAGE)):
            held = vectors_of(transaction, row.space_id, [record_id for record_id, _ in page])
            given = [(record_id, record) for record_id, record in page if record_id in held]
            if not given:
                continue
            matrix = np.frombuffer(b"".join(held[record_id] for record_id, _ in given), "<f4").reshape(len(given), -1)
            found = cache.neighbours(transaction, owner, row, matrix, neighbour + 1, tree)
            parts.append(shift - _nth_score(found.numbers, found.scores, given, neighbour))
            keys += [record.key for _, record in given]
    return keys, np.concatenate(parts) if parts else np.empty(0)


def _nth_score(
    numbers: np.ndarray, scores: np.ndarray, given: list[tuple[int, Record]], neighbour: int
) -> np.ndarray:
    """Of each line, the score of its nth neighbour without itself; of the last there is, where there are fewer."""
    made = np.empty(len(given))
    for line, (record_id, _) in enumerate(given):
        others = scores[line][(numbers[line] != record_id) & (numbers[line] >= 0)]
        made[line] = others[min(neighbour, len(others)) - 1] if len(others) else 0.0
    return made


def _fields(
    keys: list[str], scores: np.ndarray, shares: np.ndarray, strange: np.ndarray
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, key in enumerate(keys):
        share, is_strange = round(float(shares[place]), 6), bool(strange[place])
        yield key, {"score": float(scores[place]), "share": share, "strange": is_strange}
