"""Which layers a task draws on: a learned mixture of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.checks import check_seed
from embedstore.filters.parse import Where
from embedstore.probing.examples import examples_of, layer_spaces, states_of
from embedstore.probing.learners import Standard
from embedstore.probing.linear import classes_of
from embedstore.probing.splitting import folds_of
from embedstore.states.taps import HIDDEN

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LEAST_STEPS, _LEAST_EPOCHS = 1500, 30
_BATCH = 512


@dataclass(frozen=True, slots=True)
class ScalarMix:
    """The share of each layer in the mixture that tells a label best (Tenney et al. 2019), by layer; they sum to one.

    center_of_gravity: the mean layer by these shares. accuracy: on the fifth of the examples that was held out.
    """

    label: str
    shares: dict[int, float]
    accuracy: float
    n: int

    @property
    def center_of_gravity(self) -> float:
        """The layer on which the mixture is centred."""
        return sum(layer * share for layer, share in self.shares.items())

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name, rounded for people."""
        return {
            "label": self.label, "n": self.n, "accuracy": round(self.accuracy, 4),
            "center_of_gravity": round(self.center_of_gravity, 3),
            "shares": {str(layer): round(share, 4) for layer, share in self.shares.items()},
        }  # fmt: skip


def scalar_mix(
    collection: Collection,
    label: str,
    *,
    layers: str | int | Iterable[int] = "all",
    prefix: str = "",
    site: str = HIDDEN,
    where: Where | None = None,
    group_by: str | None = None,
    seed: int = 0,
) -> ScalarMix:
    """Fit a linear classifier to a softmax-weighted sum of all layers' states, each standardised, weights and all.

    The layers must have states of the same size, as those of the residual stream have.
    """
    import torch

    check_seed(seed)
    spaces = layer_spaces(collection, layers, prefix=prefix, site=site)
    examples = examples_of(collection, label, spaces, where=where, group_by=group_by)
    names, classes = classes_of(examples.labels, label)
    out = folds_of(classes, examples.groups, 5, seed, names) == 0
    stacked = np.empty((len(spaces), len(examples), collection.space(spaces[0].name).dim or 0), np.float32)
    for place, space in enumerate(spaces):
        rows = states_of(collection, space.name, examples.record_ids)
        stacked[place] = Standard.of(rows[~out]).apply(rows)
    states, wanted = torch.from_numpy(stacked), torch.from_numpy(classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = torch.zeros(len(spaces), requires_grad=True)
        head = torch.nn.Linear(stacked.shape[2], len(names))
        learner = torch.optim.Adam([
            {"params": [weights], "lr": 0.05}, {"params": head.parameters(), "lr": 5e-3, "weight_decay": 1e-3},
        ])  # fmt: skip
        learned = torch.from_numpy(np.flatnonzero(~out))
        n_batches = -(-len(learned) // _BATCH)
        for _ in range(max(_LEAST_EPOCHS, _LEAST_STEPS // n_batches)):
            for some in torch.split(learned[torch.randperm(len(learned))], _BATCH):
                mixed = torch.einsum("l,lnd->nd", weights.softmax(0), states[:, some])
                loss: Any = torch.nn.functional.cross_entropy(head(mixed), wanted[some])
                learner.zero_grad()
                loss.backward()
                learner.step()
        with torch.no_grad():
            judged = torch.from_numpy(np.flatnonzero(out))
            told = head(torch.einsum("l,lnd->nd", weights.softmax(0), states[:, judged])).argmax(dim=1)
            accuracy = float((told == wanted[judged]).float().mean())
            shares = weights.softmax(0).tolist()
    by_layer = {space.layer: share for space, share in zip(spaces, shares, strict=True)}
    return ScalarMix(label, by_layer, accuracy, len(examples))
