"""Probes that are kept with the space of their layer, and score what comes later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.errors import InvalidInput, RecordNotFound
from embedstore.model import FloatMatrix
from embedstore.probing.learners import Probe, Standard
from embedstore.probing.softmax import Softmax
from embedstore.reading import space_row
from embedstore.storage import catalog
from embedstore.storage.catalog import now
from embedstore.storage.fitted import PROBE, Fitted, all_fitted, fitted_of
from embedstore.storage.writing import CollectionWriter

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.space import Space

_PREFIX = "probe:"


@dataclass(frozen=True, slots=True)
class KeptProbe:
    """A linear probe of a space: its classes by name, and how it was fitted."""

    space: Space
    name: str
    classes: list[str]
    about: Mapping[str, Any]
    probe: Probe

    def probabilities(self, items: Sequence[str] | FloatMatrix) -> np.ndarray:
        """How likely each class is, float64 (n, k), of texts or of vectors (n, dim)."""
        if isinstance(items, str):
            raise InvalidInput("a probe scores a list of texts, or a matrix; this is one text: put it into a list")
        rows = items if isinstance(items, np.ndarray) else np.stack([self.space.encode(one).array for one in items])
        if rows.ndim != 2 or rows.shape[1] != self.space.dim:
            raise InvalidInput(f"a probe of {self.space} scores vectors of {self.space.dim} numbers, not {rows.shape}")
        found: np.ndarray = np.exp(self.probe.log_probabilities(np.ascontiguousarray(rows, np.float32)))
        return found

    def predict(self, items: Sequence[str] | FloatMatrix) -> list[str]:
        """The likeliest class of each text or vector."""
        return [self.classes[place] for place in self.probabilities(items).argmax(axis=1).tolist()]


def keep_probe(
    collection: Collection, space: str, name: str, probe: Probe, classes: Sequence[str], about: Mapping[str, Any]
) -> None:
    """Keep a linear probe with a space, in the place of one that has its name."""
    if not isinstance(probe.model, Softmax):
        raise InvalidInput("only linear and mass-mean probes can be kept (store_as)")
    arrays = {
        "weights": probe.model.weights.astype(np.float32), "bias": probe.model.bias.astype(np.float32),
        "mean": probe.standard.mean.astype(np.float32), "scale": probe.standard.scale.astype(np.float32),
    }  # fmt: skip
    described = {**about, "classes": list(classes), "fitted_at": now()}
    with collection.store.database.write() as transaction:
        writer = CollectionWriter(transaction, collection.name)
        writer.keep_fitted(space, Fitted(f"{_PREFIX}{name}", PROBE, described, arrays))
        writer.finish()


def probe(space: Space, name: str) -> KeptProbe:
    """A probe that is kept with a space; RecordNotFound where there is none of that name."""
    collection = space.collection
    with collection.store.reading() as transaction:
        row = space_row(transaction, catalog.require_collection(transaction, collection.name), space.name)
        kept = fitted_of(transaction, row.space_id, f"{_PREFIX}{name}")
        if kept is None:
            kept_here = [one for one in all_fitted(transaction, row.space_id) if one.kind == PROBE]
            held = [one.name.removeprefix(_PREFIX) for one in kept_here]
            raise RecordNotFound(f"{space} has no probe {name!r}; it has: {', '.join(held) or 'none yet'}")
    arrays = kept.arrays
    made = Probe(
        Standard(arrays["mean"].astype(np.float64), arrays["scale"].astype(np.float64)),
        Softmax(arrays["weights"].astype(np.float64), arrays["bias"].astype(np.float64)),
    )
    return KeptProbe(space, name, list(kept.description["classes"]), kept.description, made)
