"""The encoder by a trained autoencoder of the user's own: means as vectors, and back to what they stand for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.on_demand import OnDemand
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector, choose

if TYPE_CHECKING:
    from embedstore.vae.diagnostics import Diagnosis

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is peculiar to pictures, or to rows.

    family: of the spec. what: the items in a word. decisive: the part of ``config.json`` that decides the vectors
    besides the network. read_config, load: of a folder. prepare: an item as ``arrays`` takes it, by the config and what
    gives the model; the last argument says whether a part of the item will do. arrays: prepared items as the network
    takes them, and how many values of them the model did not know. decoded: what latent vectors stand for. at_once: how
    many items the network takes in one go.
    """

    family: str
    what: str
    decisive: str
    read_config: Callable[[Path], dict[str, Any]]
    load: Callable[[Path], Any]
    prepare: Callable[[Config, Callable[[], Any], Any, bool], Any]
    arrays: Callable[[Any, Sequence[Any]], tuple[np.ndarray, int]]
    decoded: Callable[[Any, FloatMatrix], list[Any]]
    at_once: Callable[[Config], int]
    column_types: Callable[[Config], dict[str, str]] = lambda _: {}


class Autoencoder:
    """A model that ``embedstore train`` wrote, behind the ``Encoder`` protocol; threads may share it.

    The vector of an item is the mean of q(z | x).
    """

    def __init__(self, name: str, folder: Path, kind: Kind, device: Device | None = None) -> None:
        self._kind = kind
        self._folder = folder
        self._device = device or Device()
        self._config = kind.read_config(folder)
        self._spec = self._spec_of(name, self._config)
        self._at_once = kind.at_once(self._config)
        self._held: OnDemand[Any] = OnDemand(self._load)

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def model(self) -> Any:
        """The model itself, on the device that was asked for."""
        return self._held.get()

    def prepare(self, item: Any) -> Any:
        """An item as ``encode`` takes it; InvalidInput for one that is broken, or does not match the model."""
        return self._kind.prepare(self._config, self._held.get, item, False)

    def prepare_query(self, item: Any) -> Any:
        """As ``prepare``, for an item that may be known in part."""
        return self._kind.prepare(self._config, self._held.get, item, True)

    def encode(self, items: Sequence[Any]) -> Encoded:
        """Encode prepared items; none give vectors of shape (0, dim)."""
        vectors: FloatMatrix = np.empty((len(items), self._spec.dim), np.float32)
        n_unknown = 0
        for start in range(0, len(items), self._at_once):
            arrays, unknown = self._kind.arrays(self.model, items[start : start + self._at_once])
            vectors[start : start + len(arrays)] = self.model.encode(arrays)[0]
            n_unknown += unknown
        return Encoded(vectors, n_unknown=n_unknown)

    def encode_query(self, item: Any) -> FloatVector:
        """Encode one prepared item: float32 (dim,)."""
        vector: FloatVector = self.encode([item]).vectors[0]
        return vector

    def decode(self, vectors: FloatMatrix) -> list[Any]:
        """What vectors, float32 (n, dim), stand for: a Pillow image or a row each."""
        if vectors.ndim != 2 or vectors.shape[1] != self._spec.dim:
            raise InvalidInput(f"vectors of {self._spec.dim} numbers are decoded; these have shape {vectors.shape}")
        made: list[Any] = []
        for start in range(0, len(vectors), self._at_once):
            made += self._kind.decoded(self.model, vectors[start : start + self._at_once])
        return made

    def anomaly_scores(self, items: Sequence[Any], method: str) -> np.ndarray:
        """How strange prepared items are by 'reconstruction' or 'elbo', greater for stranger: float64 (n,)."""
        from embedstore.vae.scoring import AnomalyScore

        by = choose(AnomalyScore, method, "method")
        parts = [np.empty(0)]
        for start in range(0, len(items), self._at_once):
            arrays, _ = self._kind.arrays(self.model, items[start : start + self._at_once])
            parts.append(self.model.anomaly_scores(arrays, by))
        return np.concatenate(parts)

    def anomaly_quantiles(self, method: str) -> list[float]:
        """The quantiles of such scores of what was held out in training; EncoderUnavailable where none were kept."""
        try:
            return [float(one) for one in self.model.made["anomaly"][method]]
        except (KeyError, TypeError, ValueError):
            raise EncoderUnavailable(f"the model in {self._folder} keeps no scores; train it again") from None

    def diagnose(self, items: Sequence[Any], labels: Sequence[Any] | None = None) -> Diagnosis:
        """What the latent space is like, seen through prepared items; see ``vae.diagnostics.Diagnosis``."""
        from embedstore.vae.diagnostics import diagnose

        return diagnose(self.model, self._kind.arrays(self.model, items)[0], labels)

    def column_types(self) -> dict[str, str]:
        """By name of a column, 'number', 'boolean' or 'text', where the model has columns and knows."""
        return self._kind.column_types(self._config)

    def count_tokens(self, text: str) -> int:
        """What it reads has no tokens; InvalidInput."""
        raise InvalidInput(
            f"the encoder {self._spec.name!r} reads {self._kind.what}, which cannot be cut into pieces of tokens"
        )

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        self._held.close()

    def _spec_of(self, name: str, config: Config) -> EncoderSpec:
        from embedstore.vae.model_folder import WEIGHTS, decisive

        return EncoderSpec(
            name=name, family=self._kind.family, dim=int(config["architecture"]["latent_dim"]),
            weights=known_sha256(self._folder / WEIGHTS), pipeline=decisive(config, self._kind.decisive),
            location=str(self._folder),
        )  # fmt: skip

    def _load(self) -> Any:
        from embedstore.vae.devices import torch_device

        model = self._kind.load(self._folder)
        if self._spec_of(self._spec.name, self._kind.read_config(self._folder)) != self._spec:
            raise EncoderUnavailable(
                f"the model in {self._folder} was replaced since it was opened; open the store again"
            )
        model.network.to(torch_device(self._device))
        return model
