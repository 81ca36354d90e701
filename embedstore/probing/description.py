"""How many bits a label takes once a layer's states are known: the online code of minimum description length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.model import FloatMatrix, IntVector
from embedstore.probing.cores import side_by_side
from embedstore.probing.examples import LayerSpace, examples_of, layer_spaces, states_of
from embedstore.probing.learners import choose_strength, fit_linear
from embedstore.probing.linear import classes_of
from embedstore.probing.splitting import inner_folds
from embedstore.states.taps import HIDDEN

if TYPE_CHECKING:
    from embedstore.collection import Collection

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Shares of the examples at which the code goes on to a new model."""
_LEAST = 20


@dataclass(frozen=True, slots=True)
class CodeLength:
    """The online code of a label, in bits: ``bits`` in all, ``uniform`` without any model, and their ratio."""

    layer: int
    space: str
    n: int
    bits: float
    uniform: float

    @property
    def compression(self) -> float:
        """How many times shorter than the uniform code it is."""
        return self.uniform / self.bits

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, rounded for people."""
        return {
            "layer": self.layer, "n": self.n, "bits": round(self.bits, 1), "uniform": round(self.uniform, 1),
            "compression": round(self.compression, 4),
        }  # fmt: skip


def description_length(
    collection: Collection,
    label: str,
    *,
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    site: str = HIDDEN,
    where: Where | None = None,
    seed: int = 0,
) -> list[CodeLength]:
    """The online code length of a label by layer (Voita and Titov 2020): less where the layer tells it more easily.

    The first portion of the examples, in random order, costs log2(classes) bits each; each further one the surprise of
    a linear probe that was fitted to all before it.
    """
    check_seed(seed)
    spaces = layer_spaces(collection, layers, prefix=prefix, site=site)
    examples = examples_of(collection, label, spaces, where=where)
    names, classes = classes_of(examples.labels, label)
    if len(examples) < 2 * _LEAST:
        raise InvalidInput(f"there are {len(examples)} examples; an online code needs {2 * _LEAST} or more")
    order = np.random.default_rng(seed).permutation(len(examples))

    def coded(space: LayerSpace) -> CodeLength:
        rows = states_of(collection, space.name, examples.record_ids)[order]
        bits = online_bits(rows, classes[order], len(names), seed)
        return CodeLength(space.layer, space.name, len(rows), bits, len(rows) * float(np.log2(len(names))))

    return side_by_side(coded, spaces)


def online_bits(rows: FloatMatrix, classes: IntVector, k: int, seed: int) -> float:
    """The online code length in bits of ``classes`` (n,), given the rows (n, d) in this order."""
    n = len(rows)
    ends = sorted({min(n, max(_LEAST, round(share * n))) for share in PORTIONS})
    inner = inner_folds(list(range(n)), seed)
    strength = choose_strength(rows, classes, k, inner)
    bits = ends[0] * float(np.log2(k))
    for start, end in zip(ends, ends[1:], strict=False):
        probe = fit_linear(rows[:start], classes[:start], k, strength, seed)
        told = probe.log_probabilities(rows[start:end])[np.arange(end - start), classes[start:end]]
        bits -= float(told.sum()) / float(np.log(2))
    return bits
