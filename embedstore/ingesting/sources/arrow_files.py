"""Records from Arrow IPC files: the file format (Feather 2) and the stream format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.arrow_rows import arrow_errors, batch_rows, check_names, guarded
from embedstore.ingesting.sources.source import OnError, SourceRow, file_fingerprint, file_status

FILE_MAGIC = b"ARROW1"
FEATHER_1_MAGIC = b"FEA1"


class ArrowFile:
    """An Arrow file, read batch by batch as it was written; every batch is validated before it is used."""

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
        with self._reader() as (reader, _):
            return check_names(list(reader.schema.names), self.name)

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order, numbered from 1."""
        number = 1
        with self._reader() as (reader, stream):
            check_names(list(reader.schema.names), self.name)
            for batch, position in guarded(self._batches(reader, stream), self.name):
                yield from batch_rows(batch, number, position, self.name, on_error)
                number += batch.num_rows

    def _batches(self, reader: Any, stream: Any) -> Iterator[tuple[Any, int]]:
        if hasattr(reader, "num_record_batches"):
            for place in range(reader.num_record_batches):
                batch = reader.get_batch(place)
                batch.validate(full=True)
                yield batch, self._size * (place + 1) // reader.num_record_batches
        else:
            for batch in reader:
                batch.validate(full=True)
                yield batch, stream.tell()

    @contextmanager
    def _reader(self) -> Iterator[tuple[Any, Any]]:
        import pyarrow as pa

        with ExitStack() as stack:
            with arrow_errors(self.name):
                if self._size == 0:
                    raise InvalidInput(f"{self.name}: the file is empty")
                stream = stack.enter_context(pa.memory_map(self._path))
                head = stream.read(len(FILE_MAGIC))
                stream.seek(0)
                if head.startswith(FEATHER_1_MAGIC):
                    raise InvalidInput(f"{self.name}: Feather 1 is not read; write the file as Feather 2 or Parquet")
                reader = pa.ipc.open_file(stream) if head == FILE_MAGIC else pa.ipc.open_stream(stream)
            yield reader, stream
