"""Which layer of a model is best for search: similarity of pairs, and ranked answers, by layer and pool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from embedstore.checks import check_whole
from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.states import POOLS, StateModel, Tap, open_states
from embedstore.states.taps import FINAL_NORM, HIDDEN
from embedstore.transforms.affine import normalized

_AT_ONCE = 4096
_QUERIES = 256


@dataclass(frozen=True, slots=True)
class RetrievalScore:
    """Of one place and pool: Spearman correlation of cosines with judged similarity, or nDCG of ranked answers.

    centered: whether the mean of all vectors was taken away first.
    """

    site: str
    layer: int
    pool: str
    centered: bool
    score: float


@dataclass(slots=True)
class RetrievalReport:
    """Every layer and pool that was tried. metric: 'spearman' or 'ndcg@10'."""

    model: str
    metric: str
    n: int
    scores: list[RetrievalScore]
    options: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> RetrievalScore:
        """The best of those whose vectors an encoder makes as they are (not centred)."""
        return max((one for one in self.scores if not one.centered), key=lambda one: one.score)

    @property
    def encoder(self) -> str:
        """The encoder to search with, as ``hf:MODEL@site=hidden,layer=L,pool=P``."""
        best = self.best
        bare = self.model.removeprefix("hf:").removeprefix("st:")
        more = "".join(f",{name}={value}" for name, value in self.options.items())
        return f"hf:{bare}@site={best.site},layer={best.layer},pool={best.pool}{more}"

    def to_rows(self) -> list[dict[str, Any]]:
        """A row a layer, a column for each pool."""
        rows: dict[tuple[int, str], dict[str, Any]] = {}
        for one in self.scores:
            name = f"{one.pool}, centred" if one.centered else one.pool
            place = {"layer": one.layer, "site": one.site}
            rows.setdefault((one.layer, one.site), place)[name] = round(one.score, 4)
        return list(rows.values())

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "model": self.model, "metric": self.metric, "n": self.n, "encoder": self.encoder,
            "scores": [
                {"site": one.site, "layer": one.layer, "pool": one.pool, "centered": one.centered, "score": one.score}
                for one in self.scores
            ],
        }  # fmt: skip


def similar_pairs(
    model: str | StateModel,
    pairs: Sequence[tuple[str, str]],
    similarities: Sequence[float],
    *,
    layers: str | int | Iterable[int] = "all",
    pools: Sequence[str] = ("mean",),
    center: bool = False,
    allow_network: bool = False,
) -> RetrievalReport:
    """By layer and pool, how well cosines of pairs of texts order them as people did (as in STS).

    center: also with the mean of all vectors taken away, which makes directions more even in lower layers.
    """
    from scipy.stats import spearmanr

    given = [tuple(pair) for pair in pairs]
    if len(given) != len(similarities) or len(given) < 3:
        raise InvalidInput(
            f"there are {len(given)} pairs and {len(similarities)} similarities; give one for each of 3 pairs or more"
        )
    wanted = np.asarray(similarities, np.float64)
    if not np.isfinite(wanted).all() or not wanted.std() > 0:
        raise InvalidInput("the similarities are all the same, or not numbers; there is no order to be found")
    name, opened = _opened(model, allow_network)
    texts = list(dict.fromkeys(text for pair in given for text in pair))
    place_of = {text: place for place, text in enumerate(texts)}
    first, second = (np.array([place_of[pair[side]] for pair in given]) for side in (0, 1))
    scores = []
    for tap, pool, vectors in _by_place(opened, texts, layers, pools):
        for centered in (False, True) if center else (False,):
            unit = normalized(vectors - vectors.mean(axis=0)) if centered else normalized(vectors)
            cosines = np.einsum("nd,nd->n", unit[first], unit[second])
            orders = cosines.std() > 1e-6  # the first token's embedding is the same in every text
            score = float(spearmanr(cosines, wanted).statistic) if orders else 0.0
            scores.append(RetrievalScore(tap.site, tap.layer, pool, centered, score))
    return RetrievalReport(name, "spearman", len(given), scores, _options(opened))


def ranked_answers(
    model: str | StateModel,
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    relevance: Mapping[str, Mapping[str, float]],
    *,
    layers: str | int | Iterable[int] = "all",
    pools: Sequence[str] = ("mean",),
    center: bool = False,
    k: int = 10,
    allow_network: bool = False,
) -> RetrievalReport:
    """By layer and pool, nDCG at ``k`` of documents ranked by cosine to queries.

    documents, queries: texts by id; relevance: by query id and document id, how relevant it is (0 is not). Queries
    without a relevant document are left out.
    """
    check_whole("k", k, 1)
    asked = [one for one in queries if any(value > 0 for value in relevance.get(one, {}).values())]
    unknown = next((one for query in asked for one in relevance[query] if one not in documents), None)
    if unknown is not None:
        raise InvalidInput(f"the relevance speaks of a document {unknown!r}, which is not among the documents")
    if not asked:
        raise InvalidInput("no query has a relevant document; give relevance={query: {document: 1}}")
    name, opened = _opened(model, allow_network)
    ids = list(documents)
    texts = [*documents.values(), *(queries[one] for one in asked)]
    scores = []
    for tap, pool, vectors in _by_place(opened, texts, layers, pools):
        for centered in (False, True) if center else (False,):
            mean = vectors[: len(ids)].mean(axis=0)
            unit = normalized(vectors - mean) if centered else normalized(vectors)
            value = _ndcg(unit[: len(ids)], unit[len(ids) :], ids, asked, relevance, k)
            scores.append(RetrievalScore(tap.site, tap.layer, pool, centered, value))
    return RetrievalReport(name, f"ndcg@{k}", len(asked), scores, _options(opened))


def _opened(model: str | StateModel, allow_network: bool) -> tuple[str, StateModel]:
    if isinstance(model, str):
        return model, open_states(model, allow_network=allow_network)
    return str(model.model.folder), model


def _options(model: StateModel) -> dict[str, str]:
    """What else an encoder must say to be of this model."""
    found: dict[str, str] = {}
    if model.stack == "decoder":
        found["stack"] = "decoder"
    if model.dtype != "float32":
        found["dtype"] = model.dtype
    if model.random_seed is not None:
        found["random"] = str(model.random_seed)
    return found


def _by_place(
    model: StateModel, texts: Sequence[str], layers: Any, pools: Sequence[str]
) -> list[tuple[Tap, str, FloatMatrix]]:
    """The vectors of texts at every layer by every pool, each text run once."""
    if isinstance(pools, str) or not pools or any(pool not in POOLS for pool in pools):
        raise InvalidInput(f"pools is {pools!r}; give a list of {', '.join(POOLS)}")
    sites = [HIDDEN] if model.anatomy.final_norm is None or layers != "all" else [HIDDEN, FINAL_NORM]
    wanted = [(tap, pool, True) for tap in model.taps(sites, layers) for pool in dict.fromkeys(pools)]
    parts: list[list[FloatMatrix]] = [[] for _ in wanted]
    for start in range(0, len(texts), _AT_ONCE):
        tokens = model.tokenize(texts[start : start + _AT_ONCE], first=start)
        for part, vectors in zip(parts, model.pooled_all(tokens, wanted), strict=True):
            part.append(vectors)
    return [(tap, pool, np.concatenate(part)) for (tap, pool, _), part in zip(wanted, parts, strict=True)]


def _ndcg(
    documents: FloatMatrix, queries: FloatMatrix, ids: Sequence[str], asked: Sequence[str],
    relevance: Mapping[str, Mapping[str, float]], k: int,
) -> float:  # fmt: skip
    total, discounts = 0.0, 1.0 / np.log2(np.arange(2, k + 2))
    for start in range(0, len(queries), _QUERIES):
        scores = queries[start : start + _QUERIES] @ documents.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        for line, query in enumerate(asked[start : start + _QUERIES]):
            told = relevance[query]
            gains = np.array([max(told.get(ids[place], 0.0), 0.0) for place in best[line].tolist()])
            ideal = np.sort(np.array([value for value in told.values() if value > 0]))[::-1][:k]
            total += float(gains @ discounts[: len(gains)]) / float(ideal @ discounts[: len(ideal)])
    return total / len(queries)
