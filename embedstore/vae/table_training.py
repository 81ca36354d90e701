"""Trains a table autoencoder on a user's own table, from a file to a finished model folder."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix
from embedstore.names import check_path
from embedstore.storage.files import SCRATCH_CHARACTERS, storage_errors, write_all
from embedstore.vae.checkpoint import training_folder
from embedstore.vae.devices import torch_device
from embedstore.vae.item_feed import ItemFeed
from embedstore.vae.model_folder import CARD, REPORT, refuse_existing
from embedstore.vae.scoring import AnomalyScore, calibration
from embedstore.vae.table_columns import ColumnKind, TableSchema
from embedstore.vae.table_model import TableModel, load_table_model, save_table_model
from embedstore.vae.table_network import TableArchitecture, TableNetwork
from embedstore.vae.training import LEAST_ITEMS, Trained, TrainingSettings, bound_of, split, train

Rows = Callable[[], Iterable[Mapping[str, Any]]]
"""Gives the rows of a table from its beginning, each time that it is called."""

TABLE_SETTINGS = TrainingSettings(
    epochs=40, batch=128, learning_rate=1e-3, beta=0.3, free_nats=0.0, hidden=0.3, patience=10
)
"""How tables are trained where nothing else is asked for: a small beta, since these vectors are to tell rows apart."""

_LOOKED_AT = 50_000
_AT_ONCE = 2000
_STARTED_FROM = 20_000


@dataclass(frozen=True, slots=True)
class TableReport:
    """What a training came to.

    negative_elbo: nats a row, on what was held out. numeric_r2: by column of numbers, the share of the variance that
    decoding keeps there; categorical_accuracy: by column of categories, how often the likeliest is right.
    """

    folder: Path
    n_rows: int
    n_columns: int
    empty_columns: Sequence[str]
    negative_elbo: float
    numeric_r2: Mapping[str, float]
    categorical_accuracy: Mapping[str, float]
    active_units: int
    latent_dim: int
    trained: Trained

    def to_dict(self) -> dict[str, Any]:
        """The numbers by name."""

        def mean(found: Mapping[str, float]) -> float | None:
            return round(float(np.mean(list(found.values()))), 4) if found else None

        return {
            "model": str(self.folder), "rows": self.n_rows, "columns": self.n_columns,
            "empty_columns": list(self.empty_columns), "epochs": len(self.trained.epochs),
            "ended": self.trained.ended, "negative_elbo": round(self.negative_elbo, 3),
            "mean_numeric_r2": mean(self.numeric_r2), "mean_categorical_accuracy": mean(self.categorical_accuracy),
            "active_units": self.active_units, "latent_dim": self.latent_dim,
        }  # fmt: skip


def train_table(
    rows: Rows | Sequence[Mapping[str, Any]],
    out: str | os.PathLike[str],
    *,
    architecture: TableArchitecture | None = None,
    settings: TrainingSettings | None = None,
    device: str = "auto",
    progress: Callable[[str], None] = lambda _: None,
) -> TableReport:
    """Train a variational autoencoder on rows, and write it to the folder ``out``, which must not exist.

    rows: a list of mappings of columns to values, or what gives them anew each time that it is called. Kinds of columns
    and their scales are those of 50,000 rows drawn at random, and fixed from then on.

    A training that was interrupted goes on after its last epoch when it is called again in the same way.

    Raises InvalidInput for too few rows, such as are all the same, columns that do not match, or numbers that are not
    finite; TrainingFailed where it comes to nothing.
    """
    target = Path(os.path.abspath(out))
    check_path(target, room=SCRATCH_CHARACTERS)
    refuse_existing(target)
    torch_device(device)  # a GPU that is not there is told before anything is prepared
    chosen = settings or TABLE_SETTINGS
    chosen.check()
    made = architecture or TableArchitecture()
    made.check()
    given: Rows = rows if callable(rows) else lambda: rows
    progress("looking at the columns")
    schema = TableSchema.fit(_sampled(given(), chosen.seed), chosen.seed)
    with storage_errors(target), training_folder(target) as work:
        n_rows, digest = _write_features(work / "features", given(), schema)
        feed = ItemFeed(work / "features", (schema.width,), np.float32)
        try:
            report = _trained(feed, schema, n_rows, digest, made, chosen, target, work, device, progress)
            return replace(report, folder=Path(out))
        finally:
            feed.close()


def _sampled(rows: Iterable[Mapping[str, Any]], seed: int) -> list[Mapping[str, Any]]:
    """At most 50,000 rows drawn at random (Vitter 1985), in the order in which they came."""
    drawn = random.Random(seed)
    kept: list[tuple[int, Mapping[str, Any]]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInput(f"a row is a mapping of columns to values, not {type(row).__name__}")
        if len(kept) < _LOOKED_AT:
            kept.append((number, row))
        elif (place := drawn.randrange(number + 1)) < _LOOKED_AT:
            kept[place] = (number, row)
    if len(kept) < LEAST_ITEMS:
        raise InvalidInput(f"there are {len(kept)} rows to learn from; at least {LEAST_ITEMS} are needed")
    return [row for _, row in sorted(kept, key=lambda one: one[0])]


def _write_features(path: Path, rows: Iterable[Mapping[str, Any]], schema: TableSchema) -> tuple[int, str]:
    """Write the features of all rows into a file; their number and a digest of them."""
    hashed = blake2b(digest_size=16)
    n_rows, differ, first = 0, False, None
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        for chunk in _chunks(rows):
            for number, row in enumerate(chunk, start=n_rows + 1):
                try:
                    schema.check(row)
                except InvalidInput as error:
                    raise InvalidInput(f"row {number:,}: {error}") from None
            features, _ = schema.transform(chunk)
            body = features.tobytes()
            first = features[0] if first is None else first
            differ = differ or bool((features != first).any())
            write_all(descriptor, body)
            hashed.update(body)
            n_rows += len(chunk)
    finally:
        os.close(descriptor)
    if not differ:
        raise InvalidInput(f"all {n_rows:,} rows are the same, so there is nothing to learn")
    return n_rows, hashed.hexdigest()


def _chunks(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    waiting = iter(rows)
    while chunk := list(islice(waiting, _AT_ONCE)):
        yield chunk


def _trained(
    feed: ItemFeed, schema: TableSchema, n_rows: int, digest: str, made: TableArchitecture,
    settings: TrainingSettings, target: Path, work: Path, device: str, progress: Callable[[str], None],
) -> TableReport:  # fmt: skip
    from embedstore.vae.table_report import card, html_report

    torch.manual_seed(settings.seed)
    network = TableNetwork(made, schema.columns)
    learned, held_out = split(len(feed), settings)
    network.start_from(feed.items(learned[:: max(1, len(learned) // _STARTED_FROM)]))
    described = {name: getattr(settings, name) for name in settings.__slots__}
    identity = {"architecture": made.to_json(), "settings": described, "features": digest}
    trained = train(
        network, feed, settings, folder=work, identity=identity, device=torch_device(device), progress=progress
    )
    report = _measured(TableModel(network, schema, {}), feed, held_out, trained, target, n_rows)
    about = {
        "rows": n_rows, "features": digest, "settings": described,
        "held_out": {name: value for name, value in report.to_dict().items() if name not in ("model", "rows")},
        "anomaly": calibration({
            by: TableModel(network, schema, {}).anomaly_scores(feed.items(held_out[:5000]), by)
            for by in AnomalyScore
        }),
    }  # fmt: skip
    model = TableModel(network, schema, about)
    save_table_model(target, model, {CARD: card(model, report), REPORT: html_report(report)})
    load_table_model(target)  # what was written can be read
    return report


def _measured(
    model: TableModel, feed: ItemFeed, held_out: np.ndarray, trained: Trained, target: Path, n_rows: int
) -> TableReport:
    missed, kl = bound_of(model.network, feed, held_out)
    features = feed.items(held_out[:_AT_ONCE])
    means, _ = model.encode(features)
    with torch.inference_mode():
        decoded = model.network.decode(torch.from_numpy(means)).numpy()
    r2, accuracy = fidelity(model.schema, features, decoded)
    empty = [column.name for column in model.schema.columns if column.kind is ColumnKind.EMPTY]
    return TableReport(
        target, n_rows, len(model.schema.columns), empty, missed + kl, r2, accuracy,
        int((means.var(axis=0) > 0.01).sum()), model.network.architecture.latent_dim, trained,
    )  # fmt: skip


def fidelity(
    schema: TableSchema, features: FloatMatrix, decoded: FloatMatrix
) -> tuple[dict[str, float], dict[str, float]]:
    """How well decoding (n, width) gives back features: R2 by column of numbers, accuracy by column of categories."""
    r2, accuracy = {}, {}
    for start, column in zip(schema.starts, schema.columns, strict=False):
        if column.kind is ColumnKind.EMPTY:
            continue
        true, found = features[:, start : start + column.width], decoded[:, start : start + column.width]
        if column.kind in (ColumnKind.NUMBER, ColumnKind.DATE):
            there = true[:, column.n_gaussian] == 1
            spread = float(np.square(true[there, 0] - true[there, 0].mean()).sum()) if there.any() else 0.0
            if spread > 0:
                r2[column.name] = 1.0 - float(np.square(true[there, 0] - found[there, 0]).sum()) / spread
        elif column.kind is ColumnKind.CATEGORY:
            same = true[:, column.n_gaussian :].argmax(1) == found[:, column.n_gaussian :].argmax(1)
            accuracy[column.name] = float(same.mean())
    return r2, accuracy
