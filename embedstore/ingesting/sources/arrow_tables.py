"""Records from Arrow data in memory: tables, batches, readers and whatever speaks Arrow's C stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from embedstore.errors import InvalidInput
from embedstore.ingesting.sources.arrow_rows import arrow_errors, batch_rows, check_names, guarded
from embedstore.ingesting.sources.source import OnError, SourceRow


def arrow_table(given: Any) -> ArrowTable:
    """A source from a Table, a RecordBatch, a RecordBatchReader or another object that Arrow can take in."""
    import pyarrow as pa

    name = type(given).__name__
    with arrow_errors(name), _no_table(name):
        if isinstance(given, pa.RecordBatch):
            given = pa.Table.from_batches([given])
        elif not isinstance(given, (pa.Table, pa.RecordBatchReader)):
            streamed = hasattr(given, "__arrow_c_stream__")
            given = pa.RecordBatchReader.from_stream(given) if streamed else pa.table(given)
    return ArrowTable(name, given)


@contextmanager
def _no_table(name: str) -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise InvalidInput(f"{name} is no table of records: {error}") from None


class ArrowTable:
    """The rows of a Table, which can be read again, or of a RecordBatchReader, which cannot."""

    unit = "rows"

    def __init__(self, name: str, table: Any) -> None:
        import pyarrow as pa

        self.name = name
        self.rereadable = isinstance(table, pa.Table)
        self.total: int | None = table.num_rows if self.rereadable else None
        self._table = table
        self._columns = check_names(list(table.schema.names), name)

    def fingerprint(self) -> None:
        """None: objects in memory have no lasting identity."""

    def columns(self) -> list[str]:
        """The schema's names."""
        return list(self._columns)

    def rows(self, on_error: OnError | None = None) -> Iterator[SourceRow]:
        """The rows in order, numbered from 1."""
        number = 1
        batches = self._table.to_batches() if self.rereadable else self._table
        for batch in guarded(batches, self.name):
            for row in batch_rows(batch, number, 0, self.name, on_error):
                yield row._replace(position=row.number)
            number += batch.num_rows
