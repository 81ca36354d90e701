"""The model of a trained table autoencoder: its network with the schema that turns rows into features and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedstore.errors import EncoderUnavailable
from embedstore.model import FloatMatrix
from embedstore.vae.model_folder import load_weights, read_config, write_model
from embedstore.vae.scoring import AnomalyScore, Scores, negative_elbo
from embedstore.vae.table_columns import TEXT_DIM, Column, ColumnKind, TableSchema, TextReduction
from embedstore.vae.table_network import TableArchitecture, TableNetwork

FORMAT = "embedstore-table-vae"
_PARTS = ("projection", "mean", "deviation")


@dataclass(frozen=True, slots=True)
class TableModel:
    """A trained network with its schema, and ``made``: what it was trained on, how, how well."""

    network: TableNetwork
    schema: TableSchema
    made: Mapping[str, Any]

    def encode(self, features: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix]:
        """Mean and log variance of q(z | x) of features (n, width): both float32 (n, latent_dim)."""
        with torch.inference_mode():
            mu, log_variance = self.network.encode(self.tensor(features))
        return mu.float().cpu().numpy(), log_variance.float().cpu().numpy()

    def decode(self, latents: FloatMatrix) -> list[dict[str, Any]]:
        """The rows of latent vectors (n, latent_dim)."""
        given = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self.device)
        with torch.inference_mode():
            decoded = self.network.decode(given).float().cpu().numpy()
        return self.schema.rows_of(decoded)

    def anomaly_scores(self, features: FloatMatrix, by: AnomalyScore) -> Scores:
        """How strange rows are by their features (n, width), greater for stranger: float64 (n,)."""
        items = self.tensor(features)
        if by is AnomalyScore.ELBO:
            return negative_elbo(self.network, items)
        with torch.inference_mode():
            mu, _ = self.network.encode(items)
            missed: Scores = -self.network.log_likelihood(self.network.decode(mu), items).double().cpu().numpy()
        return missed

    def flat(self, features: FloatMatrix) -> FloatMatrix:
        """Features are rows already."""
        return features

    def decode_flat(self, latents: FloatMatrix) -> FloatMatrix:
        """The mean features of latent vectors, categories as probabilities: float32 (n, width)."""
        given = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self.device)
        with torch.inference_mode():
            mean: FloatMatrix = self.network.mean_features(self.network.decode(given)).cpu().numpy()
        return mean

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def tensor(self, features: FloatMatrix) -> Tensor:
        """Features as the network takes them."""
        return torch.from_numpy(np.ascontiguousarray(features)).to(self.device)


def read_table_config(folder: Path) -> dict[str, Any]:
    """What ``config.json`` says, checked; EncoderUnavailable where it cannot be used."""

    def check(config: Mapping[str, Any]) -> None:
        TableArchitecture.from_json(config["architecture"])
        for one in config["columns"]:
            Column.from_json(one)

    return read_config(folder, FORMAT, check)


def schema_of(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> TableSchema:
    """The schema that a model's description and tensors tell of."""
    columns = [Column.from_json(one) for one in config["columns"]]
    reductions = {}
    for place, column in enumerate(columns):
        if column.kind is ColumnKind.TEXT:
            parts = [tensors[f"text.{place}.{part}"] for part in _PARTS]
            if parts[0].ndim != 2 or parts[0].shape[1] != TEXT_DIM:
                raise KeyError(f"text.{place}")
            reductions[column.name] = TextReduction(*parts)
    return TableSchema(columns, reductions)


def load_table_model(folder: Path) -> TableModel:
    """The model of a folder, on the CPU; EncoderUnavailable where its files are missing, damaged or do not match."""
    config = read_table_config(folder)
    columns = [Column.from_json(one) for one in config["columns"]]
    network = TableNetwork(TableArchitecture.from_json(config["architecture"]), columns)
    others = {name: value.numpy() for name, value in load_weights(folder, network).items()}
    try:
        schema = schema_of(config, others)
    except KeyError as error:
        raise EncoderUnavailable(f"{folder} lacks the tensor {error}; train the model again") from None
    return TableModel(network, schema, config["made"])


def save_table_model(folder: Path, model: TableModel, files: Mapping[str, str]) -> None:
    """Write a model's folder, which must not exist; it appears whole. ``files``: texts that are written beside it."""
    config = {
        "format": FORMAT, "architecture": model.network.architecture.to_json(), "columns": model.schema.to_json(),
        "made": dict(model.made),
    }  # fmt: skip
    write_model(folder, model.network, config, files, tensors_of(model.schema))


def tensors_of(schema: TableSchema) -> dict[str, Tensor]:
    """The arrays of a schema by the names that ``schema_of`` looks for."""
    tensors = {}
    for place, column in enumerate(schema.columns):
        if column.kind is ColumnKind.TEXT:
            reduction = schema.reductions[column.name]
            for part in _PARTS:
                tensors[f"text.{place}.{part}"] = torch.from_numpy(np.ascontiguousarray(getattr(reduction, part)))
    return tensors


def checked_features(schema: TableSchema, rows: Sequence[Mapping[str, Any]], *, partial: bool = False) -> FloatMatrix:
    """The features of rows, each held against the schema: float32 (n, width)."""
    for row in rows:
        schema.check(row, partial=partial)
    return schema.transform(rows)[0]
