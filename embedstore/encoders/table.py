"""What is peculiar to autoencoders of table rows, as encoders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedstore.devices import Device
from embedstore.encoders.autoencoder import Autoencoder, Config, Kind
from embedstore.encoders.spec import TABLE_VAE
from embedstore.errors import InvalidInput
from embedstore.model import FloatMatrix

if TYPE_CHECKING:
    from embedstore.vae.table_model import TableModel

_AT_ONCE = 4096


def table_encoder(name: str, folder: Path, device: Device | None = None) -> Autoencoder:
    """The encoder of rows by a model's folder. A row to be stored has all columns; one to be searched for, any."""
    from embedstore.vae.table_model import load_table_model, read_table_config

    kind = Kind(
        TABLE_VAE, "rows", "columns", read_table_config, load_table_model, _prepare, _arrays, _decoded,
        lambda _: _AT_ONCE, _column_types,
    )  # fmt: skip
    return Autoencoder(name, folder, kind, device)


def _column_types(config: Config) -> dict[str, str]:
    types = {str(one["name"]): list(one["types"]) for one in config["columns"]}
    return {name: found[0] for name, found in types.items() if found in (["number"], ["boolean"], ["text"])}


def _prepare(_config: Config, model: Callable[[], TableModel], item: Any, partial: bool) -> dict[str, Any]:
    """A row, checked; InvalidInput for other columns than the model's, or values of other types."""
    if not isinstance(item, Mapping):
        raise InvalidInput(f"a row is a mapping of columns to values, not {type(item).__name__}")
    row = dict(item)
    model().schema.check(row, partial=partial)
    return row


def _arrays(model: TableModel, items: Sequence[Mapping[str, Any]]) -> tuple[FloatMatrix, int]:
    """Features of rows, and how many of their values were of no category that was seen."""
    return model.schema.transform(items)


def _decoded(model: TableModel, latents: FloatMatrix) -> list[dict[str, Any]]:
    """Means of numbers, the likeliest categories, null for free text."""
    return model.decode(latents)
