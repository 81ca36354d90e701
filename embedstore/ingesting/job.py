"""Notes in the store how far an ingest has come, so that an interrupted one can be told from a finished one."""

from __future__ import annotations

import logging
from hashlib import blake2b
from typing import TYPE_CHECKING

import orjson

from embedstore.ingesting.options import IngestOptions
from embedstore.ingesting.sources import Source
from embedstore.ingesting.sources.delimited import CellFormat
from embedstore.storage import catalog
from embedstore.storage.database import Transaction

if TYPE_CHECKING:
    from embedstore.collection import Collection

_LOG = logging.getLogger("embedstore")


class IngestJob:
    """The row of ``ingest_jobs`` for one input read in one way; inputs that have no identity leave none."""

    def __init__(
        self, collection: Collection, sources: list[Source], prints: list[str | None], options: IngestOptions
    ) -> None:
        """prints: the fingerprint of each source."""
        self._collection = collection
        described = [
            [source.name.encode(errors="backslashreplace").decode() for source in sources], prints, options.text,
            options.key, options.vector, options.metadata, dict(options.types), options.chunk, options.chunk_overlap,
            *((options.delimiter, options.columns, options.encoding) if options.written != CellFormat() else ()),
        ]  # fmt: skip
        self._known = all(one is not None for one in prints)
        self._fingerprint = blake2b(orjson.dumps(described, default=list), digest_size=16).hexdigest()
        self._done: dict[str, int] = {}

    def start(self) -> None:
        """Note that the job runs; tells the log where an earlier run was interrupted."""
        if not self._known:
            return
        with self._collection.store.reading() as transaction:
            row = transaction.one(
                "SELECT cursor, state FROM ingest_jobs WHERE collection_id = :collection AND source = :source",
                {"collection": self._collection_id(transaction), "source": self._fingerprint},
            )
        if row is not None and row[1] == "running":
            _LOG.info("an earlier run stopped after %s rows; what it committed is not encoded again", f"{row[0]:,}")

    def note(self, transaction: Transaction, source: str, n_rows: int) -> None:
        """Note, in the transaction that commits them, that the rows up to ``n_rows`` of a source are in."""
        self._done[source] = n_rows
        self._put(transaction, "running")

    def finish(self) -> None:
        """Note that the input is in, whole."""
        if self._known:
            with self._collection.store.database.write() as transaction:
                self._put(transaction, "done")

    def _put(self, transaction: Transaction, state: str) -> None:
        if not self._known:
            return
        transaction.run(
            "INSERT INTO ingest_jobs (collection_id, source, cursor, state, updated_at)"
            " VALUES (:collection, :source, :cursor, :state, :now)"
            " ON CONFLICT (collection_id, source) DO UPDATE SET cursor = excluded.cursor, state = excluded.state,"
            " updated_at = excluded.updated_at",
            {
                "collection": self._collection_id(transaction), "source": self._fingerprint,
                "cursor": sum(self._done.values()), "state": state, "now": catalog.now(),
            },
        )  # fmt: skip

    def _collection_id(self, transaction: Transaction) -> int:
        row = catalog.find_collection(transaction, self._collection.name)
        assert row is not None  # created before the job is
        return row.collection_id
