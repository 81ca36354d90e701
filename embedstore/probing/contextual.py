"""How much a word's vector depends on where the word stands, by layer (Ethayarajh 2019)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed, check_whole
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.model import FloatMatrix
from embedstore.probing.examples import Examples, examples_of, layer_spaces, states_of
from embedstore.states.taps import HIDDEN
from embedstore.transforms.affine import normalized

if TYPE_CHECKING:
    from embedstore.collection import Collection


@dataclass(frozen=True, slots=True)
class Contextuality:
    """Of one layer, mean cosines.

    self_similarity: of the uses of one word in different texts; intra_sentence: of a text's words and their mean;
    anisotropy: of words drawn at random, which is what both would be if contexts meant nothing. The adjusted ones are
    less by it. max_explained: the mean share of a word's uses that one direction explains (MEV), less that of words
    drawn at random.
    """

    layer: int
    self_similarity: float
    intra_sentence: float
    anisotropy: float
    max_explained: float
    n_words: int

    @property
    def adjusted_self_similarity(self) -> float:
        """Self-similarity less anisotropy; 1 where a word has one vector, whatever the text."""
        return self.self_similarity - self.anisotropy

    @property
    def adjusted_intra_sentence(self) -> float:
        """Intra-sentence similarity less anisotropy."""
        return self.intra_sentence - self.anisotropy

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, rounded for people."""
        return {
            "layer": self.layer, "self_similarity": round(self.self_similarity, 4),
            "adjusted_self_similarity": round(self.adjusted_self_similarity, 4),
            "intra_sentence": round(self.intra_sentence, 4),
            "adjusted_intra_sentence": round(self.adjusted_intra_sentence, 4), "anisotropy": round(self.anisotropy, 4),
            "max_explained": round(self.max_explained, 4), "n_words": self.n_words,
        }  # fmt: skip


def contextuality(
    collection: Collection,
    *,
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    site: str = HIDDEN,
    where: Where | None = None,
    least: int = 5,
    sample: int = 2000,
    seed: int = 0,
) -> list[Contextuality]:
    """Measure, by layer, a collection of words that ``probing.words`` made.

    least: in how many different texts a word must stand to be counted. sample: of how many pairs and texts at most.
    """
    check_whole("least", least, 2)
    check_whole("sample", sample, 10)
    check_seed(seed)
    spaces = layer_spaces(collection, layers, prefix=prefix, site=site)
    try:
        examples = examples_of(collection, "source", spaces, where=where)
    except InvalidInput as error:
        raise InvalidInput(f"{error}: a collection of words is made by probing.words, embedstore probe words") from None
    uses = _uses(examples, least)
    if not uses:
        raise InvalidInput(f"no word stands in {least} texts of {collection.name!r}; ask for fewer (least)")
    texts: dict[Any, list[int]] = {}
    for place, source in enumerate(examples.labels):
        texts.setdefault(source, []).append(place)
    drawn = np.random.default_rng(seed)
    n = len(examples)
    pairs = drawn.integers(0, n, (sample, 2))
    pairs = pairs[np.array([examples.labels[a] != examples.labels[b] for a, b in pairs.tolist()])]
    if not len(pairs):
        raise InvalidInput(f"all words of {collection.name!r} are of one text; there must be several")
    chosen = [mine for mine in texts.values() if len(mine) > 1]
    order = drawn.permutation(len(chosen))[:sample]
    at_random = [drawn.integers(0, n, len(mine)) for mine in list(uses.values())[:200]]
    found = []
    for space in spaces:
        states = states_of(collection, space.name, examples.record_ids)
        unit = normalized(states)
        found.append(Contextuality(
            space.layer, float(np.mean([_mean_cosine(unit[mine]) for mine in uses.values()])),
            float(np.mean([_to_the_mean(states[chosen[place]]) for place in order.tolist()])),
            float(np.einsum("nd,nd->n", unit[pairs[:, 0]], unit[pairs[:, 1]]).mean()),
            float(np.mean([_explained(states[mine]) for mine in list(uses.values())[:200]])
                  - np.mean([_explained(states[mine]) for mine in at_random])),
            len(uses),
        ))  # fmt: skip
    return found


def _uses(examples: Examples, least: int) -> dict[str, list[int]]:
    """By word its places, one a text, where there are enough."""
    places: dict[str, dict[Any, int]] = {}
    for place, (word, source) in enumerate(zip(examples.texts, examples.labels, strict=True)):
        places.setdefault(word.casefold(), {}).setdefault(source, place)
    return {word: list(mine.values()) for word, mine in places.items() if len(mine) >= least}


def _mean_cosine(unit: FloatMatrix) -> float:
    """Of all pairs of vectors (n, d) of length one."""
    n = len(unit)
    total = unit.sum(axis=0, dtype=np.float64)
    return float((total @ total - n) / (n * (n - 1)))


def _to_the_mean(states: FloatMatrix) -> float:
    """Mean cosine of the words of a text and their mean, lengths and all."""
    mean = states.mean(axis=0, dtype=np.float64)
    return float((normalized(states) @ mean).mean() / max(float(np.linalg.norm(mean)), 1e-300))


def _explained(states: FloatMatrix) -> float:
    sizes = np.linalg.svd(states.astype(np.float64), compute_uv=False) ** 2
    return float(sizes[0] / max(float(sizes.sum()), 1e-300))
