"""Writes collections to files and reads them back, losing nothing: Parquet, or JSON lines.

Both begin with a description of the spaces (in Parquet the schema's metadata, in JSON lines a first line), so that
vectors come back only to spaces of the same encoder.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import orjson

from embedstore.encoders import EncoderSpec
from embedstore.errors import EmbedstoreError, EncoderMismatch, InvalidInput, StorageFailed, StorageFull
from embedstore.filters import Node
from embedstore.filters.parse import Where
from embedstore.indexing.recipes import find_recipe
from embedstore.model import Metric, Modality, WriteReport, choose
from embedstore.names import check_collection_name, check_dim, check_path
from embedstore.reading import checked_where, stream_records, vectors_of
from embedstore.records import Preparer
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import Transaction
from embedstore.storage.files import is_full
from embedstore.storage.fitted import all_fitted, fitted_from_json, fitted_to_json, put_fitted
from embedstore.storing.committing import commit_batch
from embedstore.storing.vectors import VectorChecker
from embedstore.tables import BATCH_ROWS, EXPORT_HEADER, scan_batches
from embedstore.transforms import spec_of, transform_from
from embedstore.wording import first_line

if TYPE_CHECKING:
    import pyarrow

    from embedstore.collection import Collection

_FORMAT = 1
_SUFFIXES = (".parquet", ".jsonl")


def export_collection(
    collection: Collection, path: str, *, where: Where | None, vectors: bool, overwrite: bool = False
) -> int:
    """Write the records under a filter to ``path``; the file appears only when it is whole.

    Raises InvalidInput where there is a file that is no export, unless ``overwrite``.
    """
    target = Path(path)
    if target.suffix not in _SUFFIXES:
        raise InvalidInput(f"{path} must end in .parquet or .jsonl, which say how to write it")
    check_path(path)
    if not overwrite:
        _refuse_other_file(target)
    write: Callable[..., int] = _write_parquet if target.suffix == ".parquet" else _write_json_lines
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with collection.store.reading() as transaction:
            row = catalog.find_collection(transaction, collection.name)
            if row is None:
                raise InvalidInput(f"the collection {collection.name!r} does not exist yet")
            tree = None if where is None else checked_where(transaction, row, where)
            spaces = catalog.spaces_of(transaction, row.collection_id)
            filled = {name: space for name, space in spaces.items() if vectors and space.dim is not None}
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)  # it holds what the store does
            with os.fdopen(descriptor, "wb") as file:
                n = write(file, transaction, row, tree, spaces, filled)
                file.flush()
                os.fsync(file.fileno())
        if not overwrite:
            _refuse_other_file(target)  # which may have come meanwhile
        os.replace(temporary, target)
    except OSError as error:
        kind = StorageFull if is_full(error) else StorageFailed
        raise kind(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return n


def _header(transaction: Transaction, row: CollectionRow, spaces: Mapping[str, SpaceRow]) -> dict[str, Any]:
    return {
        "format": _FORMAT, "collection": row.name, "default_space": row.default_space,
        "spaces": [
            {
                "name": space.name, "dim": space.dim, "metric": space.metric, "encoder": space.encoder,
                "fingerprint": space.fingerprint, "recipe": space.recipe,
                "fitted": [fitted_to_json(one) for one in all_fitted(transaction, space.space_id)],
            }
            for space in spaces.values()
        ],
    }  # fmt: skip


def _write_parquet(
    file: BinaryIO,
    transaction: Transaction,
    row: CollectionRow,
    where: Node | None,
    spaces: Mapping[str, SpaceRow],
    filled: Mapping[str, SpaceRow],
) -> int:
    import pyarrow
    import pyarrow.parquet

    columns = ["key", "text", "uri", "metadata", "_modality", *(f"vector.{name}" for name in filled)]
    n = 0
    header = _header(transaction, row, spaces)
    writer: Any = None
    for batch in scan_batches(transaction, row, where, columns):
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(file, _schema(batch.schema, header), compression="zstd")
        writer.write_batch(batch)
        n += batch.num_rows
    if writer is None:
        schema = pyarrow.schema([(name, pyarrow.string()) for name in columns[:5]])
        writer = pyarrow.parquet.ParquetWriter(file, _schema(schema, header))
    writer.close()
    return n


def _schema(schema: pyarrow.Schema, header: Mapping[str, Any]) -> pyarrow.Schema:
    return schema.with_metadata({EXPORT_HEADER: json.dumps(header)})


def _write_json_lines(
    file: BinaryIO,
    transaction: Transaction,
    row: CollectionRow,
    where: Node | None,
    spaces: Mapping[str, SpaceRow],
    filled: Mapping[str, SpaceRow],
) -> int:
    options = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY
    file.write(orjson.dumps({EXPORT_HEADER: _header(transaction, row, spaces)}, option=options))
    n = 0
    stream = stream_records(transaction, row, where)
    while chunk := list(islice(stream, BATCH_ROWS)):
        ids = [record_id for record_id, _ in chunk]
        held = {name: vectors_of(transaction, space.space_id, ids) for name, space in filled.items()}
        for record_id, record in chunk:
            line: dict[str, Any] = {"key": record.key, "text": record.content, "metadata": record.metadata}
            if record.modality is not Modality.TEXT:
                line["modality"] = record.modality.value
            if record.uri is not None:
                line["uri"] = record.uri
            vectors = {
                name: np.frombuffer(found[record_id], "<f4") for name, found in held.items() if record_id in found
            }
            if vectors:
                line["vectors"] = vectors
            file.write(orjson.dumps(line, option=options))
        n += len(chunk)
    return n


# ---- import


def import_collection(collection: Collection, path: str) -> WriteReport:
    """Upsert the records of a file that ``export`` wrote, with their vectors."""
    source = Path(path)
    if not source.is_file():
        raise InvalidInput(f"there is no file {path!r}")
    if source.suffix not in _SUFFIXES:
        raise InvalidInput(f"{path} must end in .parquet or .jsonl; other files are read by ingest")
    header, records = _read(source)
    header, spaces = _checked_header(header, path)
    _check_encoder(collection, header, spaces)
    _check_records(_read(source)[1], spaces, str(header["default_space"]))
    _prepare_spaces(collection, spaces, str(header["default_space"]))
    preparer = collection.preparer(stored=True)
    report = WriteReport()
    row = 1
    while chunk := list(islice(records, BATCH_ROWS)):
        batch = preparer.prepare(chunk, first_row=row)
        report += commit_batch(
            collection.store.database, collection.name, batch, collection.store.encoder_of, replace_existing=True,
        )  # fmt: skip
        row += len(chunk)
    collection.refresh_or_warn()
    return report


def _checked_header(header: dict[str, Any] | None, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    if not isinstance(header, dict) or not isinstance(header.get("spaces"), list):
        raise InvalidInput(f"{path} was not written by export; bring it in with ingest")
    if header.get("format") != _FORMAT:
        raise InvalidInput(f"{path} has export format {header.get('format')}; this release reads {_FORMAT}")
    before: dict[str, dict[str, Any]] = {}
    try:
        for fields in header["spaces"]:
            check_collection_name(fields["name"])
            check_dim(fields["dim"])
            choose(Metric, fields["metric"], "metric")
            find_recipe(fields["recipe"])
            found = EncoderSpec.from_json(fields["encoder"]).fingerprint if fields["encoder"] else ""
            if found != fields["fingerprint"]:
                raise InvalidInput("an encoder and its fingerprint do not belong together")
            _check_fitted(fields, before)
            before[fields["name"]] = fields
        if header["default_space"] not in [fields["name"] for fields in header["spaces"]]:
            raise InvalidInput("the default space is not among the spaces")
    except (KeyError, TypeError, EmbedstoreError) as error:
        raise InvalidInput(f"{path}: what it says of its spaces cannot be used ({error})") from None
    return header, list(header["spaces"])


def _check_fitted(fields: dict[str, Any], before: Mapping[str, dict[str, Any]]) -> None:
    """InvalidInput where a space's transform or directions are not as they were written, or its parent is not there."""
    kept = [fitted_from_json(one) for one in fields.get("fitted", [])]
    spec = EncoderSpec.from_json(fields["encoder"]) if fields["encoder"] else None
    if spec is None or not spec.parents:
        return
    transforms = [transform_from(one) for one in kept if not one.name]
    if not {*spec.parents} <= before.keys() or len(transforms) != 1:
        raise InvalidInput(f"how the space {fields['name']!r} is made of {' and '.join(spec.parents)} is not told")
    found = spec_of(transforms[0], spec.name, {name: before[name]["fingerprint"] for name in spec.parents})
    dims = transforms[0].dim, transforms[0].dim_in
    dim_in = sum(int(before[name]["dim"]) for name in spec.parents)
    if found.fingerprint != fields["fingerprint"] or dims != (fields["dim"], dim_in):
        raise InvalidInput(f"how the space {fields['name']!r} is made is not what its fingerprint says")


def _check_records(records: Iterator[dict[str, Any]], spaces: list[dict[str, Any]], default_space: str) -> None:
    """Read a file through once, so that what is wrong with it is known before anything is written."""
    preparer = Preparer(vector_space=default_space, stored=True)
    described = {
        str(one["name"]): SpaceRow(
            0, 0, str(one["name"]), one["dim"], str(one["metric"]), "float32", "", "", "", 0, 0, catalog.EMPTY_DIGEST
        )
        for one in spaces
    }
    checker = VectorChecker(described)
    row = 1
    while chunk := list(islice(records, BATCH_ROWS)):
        checker.check(preparer.prepare(chunk, first_row=row))
        row += len(chunk)


def _check_encoder(collection: Collection, header: dict[str, Any], spaces: list[dict[str, Any]]) -> None:
    """Hold the encoder that the collection was asked for against that of the file."""
    asked = collection.defaults.encoder
    first = next((one for one in spaces if one["name"] == header["default_space"]), None)
    if asked is None or first is None:
        return
    made_by = json.loads(first["encoder"])["name"] if first["encoder"] else "none"
    if asked != made_by:
        raise EncoderMismatch(
            f"the file's vectors were made by {made_by!r}, and the collection {collection.name!r} was asked for with"
            f" {asked!r}; leave the encoder out, or import into another collection"
        )


def _prepare_spaces(collection: Collection, spaces: list[dict[str, Any]], default_space: str) -> None:
    """Make the spaces that the file describes, or hold those there are against them."""
    store = collection.store
    store.ensure()
    with store.database.write() as transaction:
        transaction.alone()
        row = catalog.find_collection(transaction, collection.name)
        new = row is None
        if row is None:
            row = catalog.create_collection(transaction, collection.name, default_space)
        held = catalog.spaces_of(transaction, row.collection_id)
        for fields in spaces:
            name = str(fields["name"])
            if name not in held and not new:
                raise InvalidInput(
                    f"the file has a space {name!r}, which {collection.name!r} has not (it has {', '.join(held)});"
                    " import into a new collection, or add the space first"
                )
            if name not in held:
                Metric(fields["metric"])
                made = catalog.create_space(
                    transaction, row.collection_id, name, dim=fields["dim"], metric=fields["metric"],
                    encoder=fields["encoder"], fingerprint=fields["fingerprint"], recipe=fields["recipe"],
                )  # fmt: skip
                for one in fields.get("fitted", []):
                    put_fitted(transaction, made.space_id, fitted_from_json(one))
            elif (held[name].fingerprint, held[name].metric) != (fields["fingerprint"], fields["metric"]):
                raise EncoderMismatch(
                    f"the space {name!r} of {collection.name!r} was made by another encoder or for another metric than"
                    " that of the file; import into another collection"
                )
            else:
                _keep_fitted(transaction, held[name], fields)


def _keep_fitted(transaction: Transaction, space: SpaceRow, fields: Mapping[str, Any]) -> None:
    """Give a space that is there already what the file has fitted in it under names that it does not have."""
    there = {one.name for one in all_fitted(transaction, space.space_id)}
    for one in map(fitted_from_json, fields.get("fitted", [])):
        if one.name and one.name not in there:
            put_fitted(transaction, space.space_id, one)


def _refuse_other_file(target: Path) -> None:
    """Raise InvalidInput where something is there that is neither an export nor an empty file."""
    if not os.path.lexists(target) or (target.is_file() and (not target.stat().st_size or _is_export(target))):
        return
    raise InvalidInput(
        f"{target} is there, and is no export; give another file, or overwrite it (--overwrite, overwrite=True)"
    )


def _is_export(path: Path) -> bool:
    """Whether a file was written by ``export``."""
    try:
        return _read(path)[0] is not None
    except (InvalidInput, OSError):
        return False


def _read(path: Path) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
    """The description with which a file begins, None where it is no export, and what yields its records."""
    return _read_parquet(path) if path.suffix == ".parquet" else _read_json_lines(path)


def _read_parquet(path: Path) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InvalidInput(f"{path} cannot be read as Parquet: {first_line(error)}") from None
    text = (file.schema_arrow.metadata or {}).get(EXPORT_HEADER.encode())

    def records() -> Iterator[dict[str, Any]]:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            named = {name: batch.column(name) for name in batch.schema.names}
            plain = {name: named[name].to_pylist() for name in ("key", "text", "uri", "metadata")}
            words = named["_modality"].to_pylist() if "_modality" in named else [None] * batch.num_rows
            vectors = {name[7:]: column for name, column in named.items() if name.startswith("vector.")}
            matrices = {name: _matrix(column) for name, column in vectors.items()}
            for line in range(batch.num_rows):
                record = {"key": plain["key"][line], "text": plain["text"][line], "uri": plain["uri"][line]}
                record["metadata"] = orjson.loads(plain["metadata"][line])
                record["modality"] = words[line]
                record["vectors"] = {
                    name: matrix[line] for name, matrix in matrices.items() if vectors[name][line].is_valid
                }
                yield record

    try:
        return None if text is None else json.loads(text), records()
    except ValueError as error:
        raise InvalidInput(f"{path} has a description that cannot be read: {first_line(error)}") from None


def _matrix(column: pyarrow.Array) -> np.ndarray:
    """A column of lists as float32 (n, dim)."""
    flat = column.values if column.null_count else column.flatten()
    values: np.ndarray = flat.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    offset = column.offset * column.type.list_size if column.null_count else 0
    return values[offset : offset + len(column) * column.type.list_size].reshape(len(column), -1)


def _read_json_lines(path: Path) -> tuple[dict[str, Any] | None, Iterator[dict[str, Any]]]:
    with path.open("rb") as file:
        first = file.readline()
    try:
        header = orjson.loads(first).get(EXPORT_HEADER) if first.strip() else None
    except (orjson.JSONDecodeError, AttributeError):
        header = None

    def records() -> Iterator[dict[str, Any]]:
        with path.open("rb") as lines:
            lines.readline()
            for number, line in enumerate(lines, start=2):
                try:
                    record = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise InvalidInput(f"{path}, line {number}: {error}") from None
                if not isinstance(record, dict):
                    raise InvalidInput(f"{path}, line {number}: a record must be an object")
                yield record

    return header, records()


