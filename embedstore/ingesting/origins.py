"""Remembers where records with keys of an input's making came from, so that no other input overwrites them.

A key such as ``data.csv:1``, or a file's path below a folder, says nothing of the folder it was found in. So that is
noted in the store: by the name in the keys the path of the file, and every folder whose files were brought in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from embedstore.checks import shown
from embedstore.errors import InvalidInput, InvalidRecord
from embedstore.ingesting.sources import ImageFiles, Source, TextFiles
from embedstore.reading import uris_by_key
from embedstore.records import Batch
from embedstore.storage import catalog
from embedstore.storage.database import Transaction

if TYPE_CHECKING:
    from embedstore.collection import Collection

_NAME, _FOLDER = "name:", "folder:"
OnError = Callable[[InvalidRecord, Mapping[str, Any]], None]


class Origins:
    """What one run brings in under keys of its own making."""

    def __init__(self, collection: Collection, *, replaces: bool) -> None:
        """replaces: whether records that the input does not hold are deleted, so that overwriting is what is asked."""
        self._collection = collection
        self._replaces = replaces
        self._names: dict[str, tuple[str, str]] = {}  # by source, the name in its keys and the path of the file
        self._paths: dict[str, dict[str, str]] = {}  # by source, by key of a file its path
        self._others: dict[str, list[str]] = {}
        self._expected: dict[str, str | None] = {}
        self._noted: set[str] = set()

    def expect_rows(self, source: Source, label: str) -> None:
        """A file whose keys are ``label`` and a row; InvalidInput where such keys are another file's, still there."""
        self._names[source.name] = (label, os.path.abspath(source.name))
        if self._collection.store.exists():
            with self._collection.store.reading() as transaction:
                noted = self._expected[source.name] = self._noted_path(transaction, label)
                if noted is not None and self._holds(transaction, f"{label}:"):
                    self._refuse_other(source.name, noted)

    def _noted_path(self, transaction: Transaction, label: str) -> str | None:
        """The file that keys of that name are of."""
        row = catalog.find_collection(transaction, self._collection.name)
        noted = None if row is None else transaction.one(
            "SELECT state FROM ingest_jobs WHERE collection_id = :collection AND source = :source",
            {"collection": row.collection_id, "source": _NAME + label},
        )  # fmt: skip
        return None if noted is None else str(noted[0])

    def _holds(self, transaction: Transaction, prefix: str) -> bool:
        """Whether there is a record whose key begins so."""
        row = catalog.find_collection(transaction, self._collection.name)
        return row is not None and transaction.one(
            "SELECT 1 FROM records WHERE collection_id = :collection AND substr(key, 1, :n) = :prefix LIMIT 1",
            {"collection": row.collection_id, "n": len(prefix), "prefix": prefix},
        ) is not None  # fmt: skip

    def _refuse_other(self, source: str, noted: str) -> None:
        label, path = self._names[source]
        if not self._replaces and _are_two_files(noted, path):
            raise InvalidInput(
                f"{path} has no key field, and keys such as '{label}:1' are those of {noted}, which would be"
                " overwritten; name a field with --key (key=...), or rename the file"
            )

    def without_other_files(self, source: Source, batch: Batch, on_error: OnError | None) -> Batch:
        """A batch without files whose keys are those of files in other folders, which are still there.

        on_error: is told of them; without it the first raises InvalidRecord.
        """
        if not isinstance(source, (TextFiles, ImageFiles)):
            return batch
        mine = self._paths_of(source)
        if self._replaces or not self._collection.store.exists():
            return batch
        taken = {
            place: other for place, key in enumerate(batch.keys)
            if key in mine and (other := self._other_file(source, key, mine[key])) is not None
        }  # fmt: skip
        if not taken:
            return batch
        with self._collection.store.reading() as transaction:
            row = catalog.find_collection(transaction, self._collection.name)
            keys = [batch.keys[place] for place in taken]
            held = {} if row is None else uris_by_key(transaction, row, [*keys, *(f"{key}#0" for key in keys)])
        for place in list(taken):
            key = batch.keys[place]
            there = held.keys() & {key, f"{key}#0"}  # the record of a whole text, or of its first piece
            if not there or all(_is_file(held[one], mine[key]) for one in there):
                del taken[place]
        for place, other in taken.items():
            error = InvalidRecord(
                f"the key {shown(batch.keys[place])} is that of {shown(other, 200)}, whose record would be overwritten;"
                " give the folder above both, or take another collection", row=batch.row_numbers[place], field="key",
            )  # fmt: skip
            if on_error is None:
                raise error
            on_error(error, {"key": batch.keys[place], "uri": mine[batch.keys[place]]})
        return batch.subset([place for place in range(len(batch)) if place not in taken]) if taken else batch

    def _other_file(self, source: TextFiles | ImageFiles, key: str, path: str) -> str | None:
        """The file of that key in another folder that was brought in."""
        others = (os.path.join(root, key) for root in self._other_roots(source))
        return next((other for other in others if os.path.isfile(other) and _are_two_files(other, path)), None)

    def _other_roots(self, source: TextFiles | ImageFiles) -> list[str]:
        if source.name not in self._others:
            own = _roots(self._paths_of(source))
            with self._collection.store.reading() as transaction:
                row = catalog.find_collection(transaction, self._collection.name)
                noted = [] if row is None else transaction.all(
                    "SELECT state FROM ingest_jobs WHERE collection_id = :collection AND substr(source, 1, 7) = :kind",
                    {"collection": row.collection_id, "kind": _FOLDER},
                )  # fmt: skip
            self._others[source.name] = [root for (root,) in noted if root not in own]
        return self._others[source.name]

    def _paths_of(self, source: TextFiles | ImageFiles) -> dict[str, str]:
        if source.name not in self._paths:
            self._paths[source.name] = {file.key: os.path.abspath(file.path) for file in source.files}
        return self._paths[source.name]

    def note(self, transaction: Transaction, source: str) -> None:
        """Note where a source's records come from, in the transaction that commits the first of them."""
        if source in self._noted:
            return
        if source in self._names:
            label, path = self._names[source]
            if (noted := self._noted_path(transaction, label)) != self._expected.get(source):
                self._refuse_other(source, noted or path)  # another run was quicker
            self._set(transaction, _NAME + label, path)
        for root in _roots(self._paths.get(source, {})):
            self._set(transaction, _FOLDER + root, root)
        self._noted.add(source)

    def _set(self, transaction: Transaction, source: str, state: str) -> None:
        row = catalog.require_collection(transaction, self._collection.name)
        transaction.run(
            "INSERT INTO ingest_jobs (collection_id, source, cursor, state, updated_at)"
            " VALUES (:collection, :source, 0, :state, :now)"
            " ON CONFLICT (collection_id, source)"
            " DO UPDATE SET state = excluded.state, updated_at = excluded.updated_at",
            {"collection": row.collection_id, "source": source, "state": state, "now": catalog.now()},
        )


def _roots(paths: Mapping[str, str]) -> set[str]:
    """The folders that files lie below by their keys."""
    below = {path.removesuffix(key.replace("/", os.sep)) for key, path in paths.items()}
    return {os.path.normpath(root) for root in below if root}


def _is_file(uri: str | None, path: str) -> bool:
    """Whether a record's address is that very file; one that depends on the working folder may be any."""
    return uri is not None and os.path.isabs(uri) and os.path.exists(uri) and os.path.samefile(uri, path)


def _are_two_files(one: str, other: str) -> bool:
    try:
        return os.path.exists(one) and not os.path.samefile(one, other)
    except (OSError, ValueError):  # one of them is not there any more
        return False
