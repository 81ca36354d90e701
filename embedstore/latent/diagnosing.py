"""Tells what a space is like, seen through a sample of a collection's records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedstore.checks import check_whole, shown
from embedstore.errors import InvalidInput
from embedstore.filters.parse import Where
from embedstore.latent.points import MOST_CLASSES, field_of
from embedstore.reading import space_row
from embedstore.storage import catalog
from embedstore.storing.encoding import prepared_content
from embedstore.storing.layout import modalities_read

if TYPE_CHECKING:
    from embedstore.collection import Collection
    from embedstore.vae.diagnostics import Diagnosis


def diagnose_space(
    collection: Collection, *, space: str | None, label: str | None, where: Where | None, sample: int, seed: int
) -> Diagnosis:
    """See ``Collection.diagnose``."""
    with collection.store.reading() as transaction:
        row = space_row(transaction, catalog.require_collection(transaction, collection.name), space)
    encoder: Any = collection.store.encoder_of(row)
    if not hasattr(encoder, "diagnose"):
        raise InvalidInput(
            f"the encoder of {row.name!r}, {encoder.spec.name!r}, is no trained autoencoder; space.structure() tells"
            " what any space is like"
        )
    read = modalities_read(row)
    items, labels, unreadable = [], [], list[str]()
    check_whole("sample", sample, 1)
    for record in collection.sample(sample, where=where, seed=seed):
        if record.content is None or record.modality not in read:
            continue
        value = None if label is None else field_of(record.metadata, label)
        try:
            items.append(prepared_content(encoder, record.modality, record.content, record.uri))
        except InvalidInput as error:  # such as a picture whose file is gone
            unreadable.append(f"{shown(record.key)}: {error}")
            continue
        labels.append(value)
    if unreadable and not items:
        raise InvalidInput(f"none of {len(unreadable):,} records could be read; the first: {unreadable[0]}")
    if not items:
        raise InvalidInput("there is no record to look through; the space, or the filter, leaves none")
    if label is not None and all(one is None for one in labels):
        raise InvalidInput(f"no record has the field {label!r}, with a single value")
    if label is not None and len({str(one) for one in labels if one is not None}) > MOST_CLASSES:
        raise InvalidInput(f"the field {label!r} has over {MOST_CLASSES} values; give a field of classes")
    diagnosis: Diagnosis = encoder.diagnose(items, None if label is None else labels)
    diagnosis.unreadable = unreadable
    return diagnosis
