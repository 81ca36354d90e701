"""Records from Parquet files, in batches that stay small whatever the file unpacks to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.arrow_rows import arrow_errors, batch_rows, check_names, guarded
from embedstore.ingesting.sources.source import (
    OnError,
    SourceRow,
    exported,
    file_fingerprint,
    file_status,
)
from embedstore.tables import EXPORT_HEADER

BATCH_BYTES = 32 << 20
BATCH_ROWS = 2048
PROBE_ROWS = 16
BUFFER_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 256 << 20
MAX_UNPACKED_RATIO = 100

_TEXT_TYPES = ("string", "large_string", "binary", "large_binary")
_UNNAMED_INDEX = re.compile(r"__index_level_[0-9]+__").fullmatch


class ParquetTable:
    """The rows of a Parquet file. What pandas saved of an index without a name is left out."""

    rereadable = True
    unit = "bytes"

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = path
        self._size = file_status(path).st_size
        self.total: int | None = self._size

    def fingerprint(self) -> str:
        """From absolute path, size and modification time."""
        return file_fingerprint([self._path])

    def columns(self) -> list[str]:
        """The schema's names."""
        with self._file() as file:
            return self._names(file.schema_arrow)

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order, numbered from 1."""
        with self._file() as file:
            names = self._names(file.schema_arrow)
            n_rows = file.metadata.num_rows
            number = 1
            for batch in guarded(self._batches(file, names), self.name):
                position = self._size * (number - 1 + batch.num_rows) // n_rows
                yield from batch_rows(batch, number, position, self.name, on_error)
                number += batch.num_rows

    def _batches(self, file: Any, names: list[str]) -> Iterator[Any]:
        wanted = names if len(names) < len(file.schema_arrow) else None
        for group in range(file.num_row_groups):
            self._check_unpacked(file.metadata.row_group(group))
            yield from _group_batches(file, group, wanted)

    def _names(self, schema: Any) -> list[str]:
        if EXPORT_HEADER.encode() in (schema.metadata or {}):
            raise exported(self.name)
        names = check_names(list(schema.names), self.name)
        if b"pandas" in (schema.metadata or {}):
            names = [name for name in names if not _UNNAMED_INDEX(name)]
        return names

    def _check_unpacked(self, group: Any) -> None:
        """Refuse columns whose pages may unpack to far more than memory; a page cannot be read in parts."""
        for place in range(group.num_columns):
            chunk = group.column(place)
            unpacked, packed = chunk.total_uncompressed_size, max(1, chunk.total_compressed_size)
            if unpacked > MAX_UNPACKED_BYTES and unpacked > MAX_UNPACKED_RATIO * packed:
                raise InvalidInput(
                    f"{self.name}: column {chunk.path_in_schema!r} unpacks {packed:,} bytes to {unpacked:,} "
                    "in one row group; write the file with a dictionary for it, or with smaller row groups"
                )

    @contextmanager
    def _file(self) -> Iterator[Any]:
        """The open file; texts come as dictionaries, so that a value shared by many rows is there once."""
        import pyarrow.parquet as pq

        options: dict[str, Any] = {
            "pre_buffer": False,
            "buffer_size": BUFFER_BYTES,
            "page_checksum_verification": True,
        }
        with ExitStack() as stack:
            with arrow_errors(self.name):
                with pq.ParquetFile(self._path, **options) as file:
                    texts = [field.name for field in file.schema_arrow if str(field.type) in _TEXT_TYPES]
                file = stack.enter_context(pq.ParquetFile(self._path, read_dictionary=texts, **options))
            yield file


def _group_batches(file: Any, group: int, names: list[str] | None) -> Iterator[Any]:
    """The batches of a row group; their size follows what the rows before took.

    A batch's size is fixed once its iterator runs: another size means to start again and skip what was given.
    """
    n_rows = file.metadata.row_group(group).num_rows
    n_given = 0
    n_batch = PROBE_ROWS
    while n_given < n_rows:
        to_skip = n_given
        for batch in file.iter_batches(batch_size=n_batch, row_groups=[group], columns=names):
            if to_skip >= batch.num_rows:
                to_skip -= batch.num_rows
                continue
            batch = batch.slice(to_skip)
            to_skip = 0
            yield batch
            n_given += batch.num_rows
            fitting = _fitting_rows(batch)
            if fitting < n_batch // 2 or (fitting > n_batch and n_batch == PROBE_ROWS):
                n_batch = fitting
                break
        else:
            if n_given < n_rows:
                raise ValueError(f"row group {group} should hold {n_rows} rows and holds {n_given}")


def _fitting_rows(batch: Any) -> int:
    """How many rows like those of ``batch`` have 32 MiB; dictionaries larger than it are not counted."""
    n_bytes = batch.nbytes
    for column in batch.columns:
        if str(column.type).startswith("dictionary") and len(column.dictionary) > batch.num_rows:
            n_bytes -= column.dictionary.nbytes
    per_row = max(1, n_bytes // max(1, batch.num_rows))
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES // per_row)))
