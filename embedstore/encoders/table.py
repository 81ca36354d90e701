"""The encoder of table rows by a trained autoencoder of the user's own: means as vectors, and back to rows."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedstore.devices import Device
from embedstore.encoders.cache import known_sha256
from embedstore.encoders.protocol import Encoded
from embedstore.encoders.spec import TABLE_VAE, EncoderSpec
from embedstore.errors import EncoderUnavailable, InvalidInput
from embedstore.model import FloatMatrix, FloatVector, choose

if TYPE_CHECKING:
    from embedstore.vae.diagnostics import Diagnosis
    from embedstore.vae.table_model import TableModel

_AT_ONCE = 4096


class TableEncoder:
    """A trained table autoencoder behind the ``Encoder`` protocol; threads may share it.

    The vector of a row is the mean of q(z | x). A row to be stored has all columns; one to be searched for, any.
    """

    def __init__(self, name: str, folder: Path, device: Device | None = None) -> None:
        from embedstore.vae.model_folder import WEIGHTS, decisive
        from embedstore.vae.table_model import read_table_config

        config = read_table_config(folder)
        self._folder = folder
        self._device = device or Device()
        self._spec = EncoderSpec(
            name=name, family=TABLE_VAE, dim=int(config["architecture"]["latent_dim"]),
            weights=known_sha256(folder / WEIGHTS), pipeline=decisive(config, "columns"), location=str(folder),
        )  # fmt: skip
        self._lock = threading.Lock()
        self._model: TableModel | None = None

    @property
    def spec(self) -> EncoderSpec:
        """What decides the vectors."""
        return self._spec

    @property
    def model(self) -> TableModel:
        """The model itself, on the device that was asked for."""
        with self._lock:
            if self._model is None:
                from embedstore.vae.devices import torch_device
                from embedstore.vae.model_folder import WEIGHTS
                from embedstore.vae.table_model import load_table_model

                model = load_table_model(self._folder)
                if known_sha256(self._folder / WEIGHTS) != self._spec.weights:
                    raise EncoderUnavailable(
                        f"the model in {self._folder} was replaced since it was opened; open the store again"
                    )
                model.network.to(torch_device(self._device))
                self._model = model
            return self._model

    def prepare(self, item: Any) -> dict[str, Any]:
        """A whole row, checked; InvalidInput for other columns than the model's, or values of other types."""
        return self._checked(item, partial=False)

    def prepare_query(self, item: Any) -> dict[str, Any]:
        """A row of which columns may be missing, checked."""
        return self._checked(item, partial=True)

    def _checked(self, item: Any, *, partial: bool) -> dict[str, Any]:
        if not isinstance(item, Mapping):
            raise InvalidInput(f"a row is a mapping of columns to values, not {type(item).__name__}")
        row = dict(item)
        self.model.schema.check(row, partial=partial)
        return row

    def encode(self, items: Sequence[Any]) -> Encoded:
        """Encode rows that were prepared; none give vectors of shape (0, dim)."""
        vectors: FloatMatrix = np.empty((len(items), self._spec.dim), np.float32)
        for start in range(0, len(items), _AT_ONCE):
            features, _ = self.model.schema.transform(items[start : start + _AT_ONCE])
            vectors[start : start + len(features)] = self.model.encode(features)[0]
        return Encoded(vectors)

    def encode_query(self, item: Any) -> FloatVector:
        """Encode one row, of which columns may be missing: float32 (dim,)."""
        vector: FloatVector = self.encode([item]).vectors[0]
        return vector

    def decode(self, vectors: FloatMatrix) -> list[dict[str, Any]]:
        """The rows of vectors, float32 (n, dim): means of numbers, the likeliest categories, null for free text."""
        if vectors.ndim != 2 or vectors.shape[1] != self._spec.dim:
            raise InvalidInput(f"vectors of {self._spec.dim} numbers are decoded; these have shape {vectors.shape}")
        return self.model.decode(vectors)

    def anomaly_scores(self, items: Sequence[Any], method: str) -> np.ndarray:
        """How strange prepared items are by 'reconstruction' or 'elbo', greater for stranger: float64 (n,)."""
        from embedstore.vae.scoring import AnomalyScore

        by = choose(AnomalyScore, method, "method")
        parts = []
        for start in range(0, len(items), _AT_ONCE):
            chunk = items[start : start + _AT_ONCE]
            parts.append(self.model.anomaly_scores(self.model.schema.transform(chunk)[0], by))
        return np.concatenate(parts) if parts else np.empty(0)

    def anomaly_quantiles(self, method: str) -> list[float]:
        """The quantiles of such scores of what was held out in training; EncoderUnavailable where none were kept."""
        try:
            return [float(one) for one in self.model.made["anomaly"][method]]
        except (KeyError, TypeError, ValueError):
            raise EncoderUnavailable(f"the model in {self._folder} keeps no scores; train it again") from None

    def diagnose(self, items: Sequence[Any], labels: Sequence[Any] | None = None) -> Diagnosis:
        """What the latent space is like, seen through prepared items; see ``vae.diagnostics.Diagnosis``."""
        from embedstore.vae.diagnostics import diagnose

        return diagnose(self.model, self.model.schema.transform(items)[0], labels)

    def count_tokens(self, text: str) -> int:
        """Rows have no tokens; InvalidInput."""
        raise InvalidInput(f"the encoder {self._spec.name!r} reads rows, which cannot be cut into pieces of tokens")

    def close(self) -> None:
        """Let go of the memory that the model holds; the next call loads it again."""
        with self._lock:
            self._model = None
