"""Cuts long texts into overlapping pieces, each a record of its own that names the text it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from embedstore.checks import MAX_KEY_BYTES, shown
from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.model import Modality
from embedstore.records import Batch, Preparer
from embedstore.storage import catalog
from embedstore.storage.database import Transaction
from embedstore.storage.writing import CollectionWriter

if TYPE_CHECKING:
    from embedstore.collection import Collection

CHUNK_FIELDS = ("chunk_of", "chunk", "chunk_start", "chunk_end")
_NUMBER_BYTES = 9  # of "#" and the number of a piece


def check_parents(batch: Batch) -> None:
    """Refuse texts whose pieces could not be stored: keys without room for a number, fields that pieces have."""
    for position, key in enumerate(batch.keys):
        fault = _parent_fault(key, batch.metadata[position], batch.row_numbers[position])
        if fault is not None:
            raise fault


def _parent_fault(key: str, metadata: bytes, row: int) -> InvalidRecord | None:
    if len(key.encode()) > MAX_KEY_BYTES - _NUMBER_BYTES:
        return InvalidRecord(
            f"the key {shown(key)} has no room for the number of a piece; with chunk, keys have at most"
            f" {MAX_KEY_BYTES - _NUMBER_BYTES} bytes", row=row, field="key",
        )  # fmt: skip
    taken = [name for name in CHUNK_FIELDS if name in orjson.loads(metadata)]
    if taken:
        return InvalidRecord("is a field that every piece of a text has; rename it", row=row, field=taken[0])
    return None


class ChunkCutter:
    """Cuts by the tokens of the collection's encoder."""

    def __init__(self, collection: Collection, n_tokens: int, overlap: int) -> None:
        if Modality.TEXT not in collection.modalities_read():
            raise InvalidInput("chunk counts the encoder's tokens, and this collection has no encoder of texts")
        self._encoder = collection.encoder()
        self._n_tokens = n_tokens
        self._overlap = overlap

    def cut(self, batch: Batch, preparer: Preparer) -> tuple[Batch, list[str]]:
        """The pieces of a batch's texts as a batch of their own, and the keys of the texts.

        A piece's key is ``KEY#N`` with N from 0; its metadata is the text's, with ``chunk_of`` (the text's key),
        ``chunk`` (N), ``chunk_start`` and ``chunk_end`` (characters of the text).
        """
        from embedstore.encoders.chunking import split

        pieces = []
        for position, key in enumerate(batch.keys):
            fault = _parent_fault(key, batch.metadata[position], batch.row_numbers[position])
            if fault is None and any(column[position] is not None for column in batch.vectors.values()):
                what = "its vectors are of the whole text, which chunk cuts into pieces; give one or the other"
                fault = InvalidRecord(what, row=batch.row_numbers[position], field="vectors")
            if fault is not None:
                preparer.refuse(fault, {"key": key, "text": batch.contents[position]})
                continue
            text = batch.contents[position] or ""
            metadata = orjson.loads(batch.metadata[position])
            for number, chunk in enumerate(
                split(text, n_tokens=self._n_tokens, overlap=self._overlap, count_tokens=self._encoder.count_tokens)
            ):
                place = {"chunk_of": key, "chunk": number, "chunk_start": chunk.start, "chunk_end": chunk.end}
                record = {
                    "key": f"{key}#{number}", "text": chunk.text, "uri": batch.uris[position],
                    "metadata": {**metadata, **place},
                }  # fmt: skip
                pieces.append((batch.row_numbers[position], record))
        return preparer.prepare_numbered(pieces), list(batch.keys)


def drop_stale_chunks(transaction: Transaction, collection: str, batch: Batch, parents: list[str]) -> None:
    """Delete pieces of these texts that are no longer cut from them, in the transaction that wrote the new ones."""
    row = catalog.find_collection(transaction, collection)
    assert row is not None  # the batch was just written to it
    current = set(batch.keys)
    stale: list[int] = []
    for key in parents:
        # '#' is followed by '$' in the order of keys, so this range holds every KEY#N and little else.
        found = transaction.all(
            "SELECT record_id, key, metadata FROM records WHERE collection_id = :collection"
            " AND key > :low AND key < :high",
            {"collection": row.collection_id, "low": f"{key}#", "high": f"{key}$"},
        )
        for record_id, piece, metadata in found:
            if piece not in current and transaction.dialect.metadata_out(metadata).get("chunk_of") == key:
                stale.append(record_id)
    if stale:
        writer = CollectionWriter(transaction, row.name)
        writer.delete(stale)
        writer.finish()
