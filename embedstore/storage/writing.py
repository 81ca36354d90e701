"""The commit protocol of one collection: what a write changes in SQL, inside one transaction.

Every commit that changes something takes the next ``change`` number of its collection; every vector takes the next
``seq`` of its space. Both are handed out inside the transaction, so their order is the order of commits. Records
that are updated or deleted, and vectors that die, are noted in two logs by which caches catch up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from embedstore.checks import shown
from embedstore.errors import CollectionNotFound, DuplicateKey, SpaceNotFound
from embedstore.failpoints import reach
from embedstore.metadata import FieldKinds
from embedstore.model import FloatMatrix, Modality, WriteReport
from embedstore.records import Batch, vector_hash
from embedstore.storage import catalog
from embedstore.storage.catalog import CollectionRow, SpaceRow
from embedstore.storage.database import FEW_ROWS, KeyTaken, RecordRows, Transaction, VectorRows
from embedstore.storage.digests import shift_digest
from embedstore.storage.existing import Existing, find_existing, find_vectors, stored_vectors
from embedstore.storage.fitted import Fitted, drop_fitted, put_fitted
from embedstore.storage.layout import ID_SHIFT

_NONE: Mapping[str, frozenset[Modality]] = {}
_NO_ENCODERS: Mapping[str, str] = {}
_CHUNK = 5000


class Raced(Exception):
    """Another writer changed a record between the planning of an encoding and its commit; plan again."""


class SpaceVectors(NamedTuple):
    """Vectors for some of a batch's records: ``matrix`` float32 (len(positions), dim), in order of positions."""

    positions: Sequence[int]
    matrix: FloatMatrix


class Derive(NamedTuple):
    """How the vectors of derived spaces are made: the names of the parents of each, and what makes them.

    ``make`` gives, of a derived space and vectors (n, d) of its parent, or of several side by side, vectors (n, dim)
    and which of them can be compared there, bool (n,).
    """

    parents: Mapping[str, Sequence[str]]
    make: Callable[[SpaceRow, FloatMatrix], tuple[FloatMatrix, np.ndarray]]


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """New metadata for a record, as canonical JSON, with its row hash before and after."""

    record_id: int
    metadata: bytes
    row_hash: bytes
    old_row_hash: bytes


class CollectionWriter:
    """Changes one collection within one write transaction; ``finish`` seals what was changed.

    The commit's own row tells how it leaves the collection and its spaces, so that a write touches few pages
    (docs/decisions/0008).
    """

    def __init__(self, transaction: Transaction, name: str) -> None:
        self._tx = transaction
        fresh = catalog.lock_collection(transaction, name)
        if fresh is None:
            raise CollectionNotFound(f"there is no collection {name!r}: it was deleted, or never written to")
        self._collection = fresh
        self._change = fresh.last_change + 1
        self._spaces = catalog.spaces_of(transaction, fresh.collection_id)
        self._spaces_before = {space.space_id: space for space in self._spaces.values()}
        self._logged_records: list[int] = []
        self._logged_vectors: list[tuple[int, int]] = []
        self._touched = False

    @property
    def collection(self) -> CollectionRow:
        """The collection, as it is under the lock and after what was written so far."""
        return self._collection

    @property
    def spaces(self) -> Mapping[str, SpaceRow]:
        """The collection's spaces by name, as they are under the lock and after what was written so far."""
        return self._spaces

    def upsert(
        self,
        batch: Batch,
        vectors: dict[str, SpaceVectors],
        *,
        encoded_spaces: Mapping[str, frozenset[Modality]] = _NONE,
        replace_existing: bool = True,
        derive: Derive | None = None,
    ) -> WriteReport:
        """Write a batch. ``vectors`` holds, by space, the vectors of those records that bring a new one.

        A record without a new vector in a space of ``encoded_spaces``, whose encoder reads its modality, must already
        have one made from the same content; where that is not so any more, ``Raced`` is raised. Raises DuplicateKey
        for an existing key unless ``replace_existing``.

        derive: makes the vectors of derived spaces of those of their parents that are new, but for records that bring
        one; a record whose derived vector comes to nothing loses the one that it had.
        """
        # Where all are to be new and they are few, the database's own word that a key is taken is cheaper.
        unasked = not replace_existing and len(batch) <= FEW_ROWS and self._tx.dialect.goes_on
        existing = {} if unasked else find_existing(self._tx, self._collection.collection_id, batch.keys)
        if existing and not replace_existing:
            raise _duplicate(batch, next(i for i, key in enumerate(batch.keys) if key in existing))
        try:
            record_ids, changed = self._write_records(batch, existing)
        except KeyTaken as taken:  # only where nothing was asked before, so that all records are among the rows
            raise _duplicate(batch, taken.place) from None
        hashes = {name: _vector_hashes(batch.keys, given) for name, given in vectors.items()}
        reach("write.records")
        revectored: set[int] = set()
        written: dict[str, SpaceVectors] = {}
        for name, space in list(self._spaces.items()):  # a derived one stands behind its parent
            given = vectors.get(name)
            if derive is not None:
                of = derive.parents.get(name, ())
                if any(one in written for one in of):
                    parent = written[of[0]] if len(of) == 1 else self._side_by_side(batch, of, written, record_ids)
                    given = self._derived(space, parent, given, derive, existing, record_ids)
                    hashes[name] = [] if given is None else _vector_hashes(batch.keys, given)
                if given is not None:
                    written[name] = given
            if given is not None or name in encoded_spaces:
                new = self._write_vectors(
                    space, batch, record_ids, existing, given, hashes.get(name, []), must_have=encoded_spaces.get(name)
                )
                revectored |= new
                if name in written:
                    written[name] = _only(written[name], new)
        reach("write.vectors")
        self.note_fields(batch.kinds)
        report = WriteReport(added=len(batch) - len(existing))
        if existing:
            updated = {*changed, *(position for position in revectored if batch.keys[position] in existing)}
            report.updated = len(updated)
            report.unchanged = len(existing) - len(updated)
        return report

    def _side_by_side(
        self, batch: Batch, parents: Sequence[str], written: Mapping[str, SpaceVectors], record_ids: list[int]
    ) -> SpaceVectors:
        """The vectors that several spaces have of records with a new one in any of them; those with one in each."""
        changed = sorted({position for name in parents if name in written for position in written[name].positions})
        parts: list[dict[int, np.ndarray]] = []
        for name in parents:
            new = written.get(name)
            part = {} if new is None else dict(zip(new.positions, new.matrix, strict=True))
            others = {record_ids[position]: position for position in changed if position not in part}
            keys = {record_id: batch.keys[position] for record_id, position in others.items()}
            for record_id, vector in stored_vectors(self._tx, self._spaces[name].space_id, keys).items():
                part[others[record_id]] = vector
            parts.append(part)
        whole = [position for position in changed if all(position in part for part in parts)]
        dim = sum(self._spaces[name].dim or 0 for name in parents)
        matrix = np.empty((len(whole), dim), np.float32)
        for line, position in enumerate(whole):
            matrix[line] = np.concatenate([part[position] for part in parts])
        return SpaceVectors(whole, matrix)

    def _derived(
        self,
        space: SpaceRow,
        parent: SpaceVectors,
        given: SpaceVectors | None,
        derive: Derive,
        existing: dict[str, Existing],
        record_ids: list[int],
    ) -> SpaceVectors | None:
        """The vectors that new ones of a parent become in a derived space; kills those that become nothing there."""
        brought = set() if given is None else set(given.positions)
        lines = [line for line, position in enumerate(parent.positions) if position not in brought]
        if not lines:
            return given
        made, usable = derive.make(space, parent.matrix[lines])
        positions = [parent.positions[line] for line in lines]
        if existing and not usable.all():
            nothing = [record_ids[positions[line]] for line in np.flatnonzero(~usable).tolist()]
            self._kill_derived(space.name, derive.parents, nothing)
        kept = [position for position, right in zip(positions, usable, strict=True) if right]
        if given is None:
            return SpaceVectors(kept, made[usable]) if kept else None
        return SpaceVectors([*given.positions, *kept], np.concatenate([given.matrix, made[usable]]))

    def _kill_derived(self, name: str, parents: Mapping[str, Sequence[str]], record_ids: list[int]) -> None:
        """Kill the vectors of records in a derived space, and in those that are made of it."""
        space = self._spaces[name]
        self._kill_vectors(space, list(find_vectors(self._tx, space.space_id, record_ids).values()))
        for child, made_of in parents.items():
            if name in made_of:
                self._kill_derived(child, parents, record_ids)

    def _write_records(self, batch: Batch, existing: dict[str, Existing]) -> tuple[list[int], list[int]]:
        """Insert the new records and overwrite the changed ones.

        Gives the record id of each place of the batch, and the places of those that were changed.
        """
        collection_id = self._collection.collection_id
        first = collection_id * ID_SHIFT + self._collection.last_serial + 1
        if not existing:
            record_ids = list(range(first, first + len(batch)))
            fresh: Sequence[int] = range(len(batch))
        else:
            fresh = [position for position, key in enumerate(batch.keys) if key not in existing]
            new_ids = iter(range(first, first + len(batch)))
            record_ids = [
                existing[key].record_id if key in existing else next(new_ids) for key in batch.keys
            ]
        if fresh:
            hashes = [batch.row_hashes[i] for i in fresh]
            words = [one.value for one in batch.modalities]
            self._tx.insert_records(
                RecordRows(
                    first, collection_id,
                    [
                        (batch.keys[i], batch.contents[i], batch.uris[i], batch.metadata[i].decode(), words[i])
                        for i in fresh
                    ],
                    b"".join([batch.content_hashes[i] or bytes(16) for i in fresh]), b"".join(hashes),
                )
            )  # fmt: skip
            self._note_records(added=hashes, serials=len(fresh))
        changed = [
            position
            for position, key in enumerate(batch.keys)
            if key in existing and existing[key].row_hash != batch.row_hashes[position]
        ] if existing else []  # fmt: skip
        if changed:
            self._overwrite(batch, changed, record_ids, [existing[batch.keys[i]].row_hash for i in changed])
        return record_ids, changed

    def _overwrite(
        self, batch: Batch, changed: list[int], record_ids: list[int], old_hashes: list[bytes]
    ) -> None:
        self._tx.many(
            "UPDATE records SET modality = :modality, content = :content, uri = :uri,"
            f" metadata = CAST(:metadata AS {self._tx.dialect.json_type}),"
            " content_hash = :content_hash, row_hash = :row_hash WHERE record_id = :record_id",
            [
                {
                    "modality": batch.modalities[i].value, "content": batch.contents[i], "uri": batch.uris[i],
                    "metadata": self._tx.dialect.json_text(batch.metadata[i]),
                    "content_hash": batch.content_hashes[i], "row_hash": batch.row_hashes[i],
                    "record_id": record_ids[i],
                }
                for i in changed
            ],
        )  # fmt: skip
        self._log_changed([record_ids[i] for i in changed])
        self._note_records(added=[batch.row_hashes[i] for i in changed], removed=old_hashes)

    def _write_vectors(
        self,
        space: SpaceRow,
        batch: Batch,
        record_ids: list[int],
        existing: dict[str, Existing],
        given: SpaceVectors | None,
        hashes: list[bytes],
        *,
        must_have: frozenset[Modality] | None,
    ) -> set[int]:
        """Write the new vectors of one space; the places of the batch whose vector is new.

        must_have: the modalities whose every record must have a vector here.
        """
        stored = find_vectors(
            self._tx, space.space_id, [found.record_id for found in existing.values()]
        ) if existing else {}  # fmt: skip
        positions = [] if given is None else given.positions
        if must_have:
            self._check_covered(batch, existing, record_ids, stored, set(positions), must_have)
        if given is None or not len(positions):
            return set()
        packed = _packed(given)
        lines: Sequence[int] = range(len(positions))
        if stored:
            olds = [stored.get(record_ids[position]) for position in positions]
            lines = [line for line, old in enumerate(olds) if old is None or old[1] != hashes[line]]
            self._kill_vectors(space, [old for line in lines if (old := olds[line]) is not None])
        if not lines:
            return set()
        whole = len(lines) == len(positions)
        new_hashes = hashes if whole else [hashes[line] for line in lines]
        owners = [record_ids[positions[line]] for line in lines]
        self._insert_vectors(space, owners, new_hashes, packed if whole else packed[list(lines)])
        return {positions[line] for line in lines}

    def _insert_vectors(
        self, space: SpaceRow, record_ids: Sequence[int], hashes: list[bytes], packed: FloatMatrix
    ) -> None:
        self._tx.insert_vectors(
            VectorRows(
                space.space_id * ID_SHIFT + space.last_seq + 1, space.space_id, record_ids, b"".join(hashes),
                packed.tobytes(), packed.shape[1] * 4,
            )
        )  # fmt: skip
        held = self._spaces[space.name]
        self._spaces[space.name] = SpaceRow(  # quicker than ``_replace``
            held.space_id, held.collection_id, held.name, packed.shape[1], held.metric, held.dtype, held.encoder,
            held.fingerprint, held.recipe, held.last_seq + len(record_ids), held.n_live + len(record_ids),
            shift_digest(held.digest, added=hashes),
        )  # fmt: skip
        self._touched = True

    def add_vectors(self, space_name: str, record_ids: Sequence[int], keys: Sequence[str], matrix: FloatMatrix) -> None:
        """Give records, which have no vector in a space yet, one each: float32 (len(record_ids), dim)."""
        if record_ids:
            given = SpaceVectors(range(len(keys)), matrix)
            self._insert_vectors(self._spaces[space_name], record_ids, _vector_hashes(keys, given), _packed(given))

    @staticmethod
    def _check_covered(
        batch: Batch,
        existing: dict[str, Existing],
        record_ids: list[int],
        stored: dict[int, tuple[int, bytes]],
        covered: set[int],
        must_have: frozenset[Modality],
    ) -> None:
        """Raise ``Raced`` where a record that was thought encoded has no vector of this content any more."""
        if len(covered) == len(batch):
            return
        for position, key in enumerate(batch.keys):
            if position in covered or batch.contents[position] is None or batch.modalities[position] not in must_have:
                continue
            found = existing.get(key)
            same = found is not None and found.content_hash == batch.content_hashes[position]
            if not same or record_ids[position] not in stored:
                raise Raced

    def overwrite_metadata(self, changes: Sequence[MetadataChange]) -> None:
        """Give records other metadata; texts and vectors stay as they are."""
        if not changes:
            return
        self._tx.many(
            f"UPDATE records SET metadata = CAST(:metadata AS {self._tx.dialect.json_type}), row_hash = :row_hash"
            " WHERE record_id = :record_id",
            [
                {
                    "metadata": self._tx.dialect.json_text(one.metadata), "row_hash": one.row_hash,
                    "record_id": one.record_id,
                }
                for one in changes
            ],
        )  # fmt: skip
        self._log_changed([one.record_id for one in changes])
        self._note_records(
            added=[one.row_hash for one in changes], removed=[one.old_row_hash for one in changes]
        )

    def note_fields(self, kinds: FieldKinds) -> None:
        """Note the kinds of values that were written."""
        catalog.add_field_kinds(self._tx, self._collection.collection_id, kinds)

    def delete(self, record_ids: Sequence[int]) -> int:
        """Delete records by id, with their vectors in every space; the number deleted."""
        n_deleted = 0
        ids = self._tx.dialect.members("ids", "integer")
        for start in range(0, len(record_ids), _CHUNK):
            chunk = self._tx.dialect.list_parameter(list(record_ids[start : start + _CHUNK]))
            found = self._tx.all(f"SELECT record_id, row_hash FROM records WHERE record_id IN {ids}", {"ids": chunk})
            if not found:
                continue
            for space in list(self._spaces.values()):
                vectors = self._tx.all(
                    "SELECT vector_id, row_hash FROM vectors"
                    f" WHERE space_id = :space AND record_id IN {ids}",
                    {"space": space.space_id, "ids": chunk},
                )
                self._kill_vectors(space, [(vector_id, bytes(hashed)) for vector_id, hashed in vectors])
            self._tx.run(f"DELETE FROM records WHERE record_id IN {ids}", {"ids": chunk})
            self._log_changed([record_id for record_id, _ in found])
            self._note_records(removed=[bytes(hashed) for _, hashed in found])
            n_deleted += len(found)
        return n_deleted

    def set_recipe(self, space_name: str, recipe: str) -> None:
        """Note by which recipe a space is searched."""
        self._spaces[space_name] = self._spaces[space_name]._replace(recipe=recipe)
        self._touched = True

    def set_tuning(self, space_name: str, report: dict[str, Any]) -> None:
        """Note what was measured of a space, and the settings that were chosen."""
        catalog.put_tuning(self._tx, self._spaces[space_name].space_id, report)
        self._touched = True

    def drop_space(self, space_name: str) -> SpaceRow:
        """Delete a space with its vectors; what it was. The caller leaves the collection's default space alone.

        The collection's logs go with it, since the commits that they tell of are named by what they changed in all
        spaces. Nothing else may have been changed in this transaction before.
        """
        space = self._spaces.pop(space_name)
        floor = self._collection.last_change
        catalog.forget_logs(self._tx, self._collection.collection_id, floor)
        self._collection = self._collection._replace(log_floor=floor)
        of_space = {"space": space.space_id}
        for table in ("vectors", "dead_vectors", "tunings", "fitted", "spaces"):
            self._tx.run(f"DELETE FROM {table} WHERE space_id = :space", of_space)
        self._touched = True
        return space

    def keep_fitted(self, space_name: str, fitted: Fitted) -> None:
        """Keep with a space what was fitted in it."""
        space = self._spaces.get(space_name)
        if space is None:
            raise SpaceNotFound(f"the space {space_name!r} was deleted meanwhile")
        put_fitted(self._tx, space.space_id, fitted)
        self._touched = True

    def forget_fitted(self, space_name: str, name: str) -> bool:
        """Forget what a space keeps under a name; whether there was something."""
        space = self._spaces.get(space_name)
        found = space is not None and bool(drop_fitted(self._tx, space.space_id, name))
        self._touched = self._touched or found
        return found

    def rename_space(self, old: str, new: str, encoders: Mapping[str, str] = _NO_ENCODERS) -> None:
        """Give a space another name, which no space has; ``encoders`` are those, by space, that name it newly."""
        space = self._spaces[old]
        self._tx.run(
            "UPDATE spaces SET name = :name WHERE space_id = :space", {"name": new, "space": space.space_id}
        )
        renamed = {**self._spaces, old: space._replace(name=new)}
        for name, encoder in encoders.items():
            renamed[name] = renamed[name]._replace(encoder=encoder)
            self._tx.run(
                "UPDATE spaces SET encoder = :encoder WHERE space_id = :space",
                {"encoder": encoder, "space": renamed[name].space_id},
            )
        self._spaces = {space.name: space for space in renamed.values()}
        self._touched = True

    def _kill_vectors(self, space: SpaceRow, dead: Sequence[tuple[int, bytes]]) -> None:
        if not dead:
            return
        ids = self._tx.dialect.members("ids", "integer")
        for start in range(0, len(dead), _CHUNK):
            chunk = [vector_id for vector_id, _ in dead[start : start + _CHUNK]]
            self._tx.run(
                f"DELETE FROM vectors WHERE vector_id IN {ids}", {"ids": self._tx.dialect.list_parameter(chunk)}
            )
        base = space.space_id * ID_SHIFT
        self._tx.insert(
            "dead_vectors",
            ["space_id", "change", "seq"],
            [(space.space_id, self._change, vector_id - base) for vector_id, _ in dead],
        )
        self._logged_vectors += [(space.space_id, vector_id - base) for vector_id, _ in dead]
        space = self._spaces[space.name]
        self._spaces[space.name] = space._replace(
            n_live=space.n_live - len(dead),
            digest=shift_digest(space.digest, removed=[hashed for _, hashed in dead]),
        )  # fmt: skip
        self._touched = True

    def _log_changed(self, record_ids: Sequence[int]) -> None:
        self._tx.insert(
            "changed_records",
            ["collection_id", "change", "record_id"],
            [(self._collection.collection_id, self._change, record_id) for record_id in record_ids],
        )
        self._logged_records += record_ids

    def _note_records(
        self, *, added: Sequence[bytes] = (), removed: Sequence[bytes] = (), serials: int = 0
    ) -> None:
        held = self._collection
        self._collection = CollectionRow(  # quicker than ``_replace``
            held.collection_id, held.name, held.default_space, held.last_change, held.log_floor,
            held.last_serial + serials, held.n_records + len(added) - len(removed),
            shift_digest(held.digest, added=added, removed=removed),
        )  # fmt: skip
        self._touched = True

    def finish(self) -> int:
        """Write counters, digests and the commit's identity; the collection's newest change number."""
        if not self._touched:
            return self._collection.last_change
        for space in self._spaces.values():
            before = self._spaces_before[space.space_id]
            if (space.dim, space.recipe) != (before.dim, before.recipe):
                self._tx.run(
                    "UPDATE spaces SET dim = :dim, recipe = :recipe WHERE space_id = :space",
                    {"dim": space.dim, "recipe": space.recipe, "space": space.space_id},
                )
        self._collection = self._collection._replace(last_change=self._change)
        catalog.insert_commit(self._tx, self._collection, self._spaces, self._logged_records, self._logged_vectors)
        catalog.remember(self._tx, self._collection, self._spaces)
        return self._change


def _duplicate(batch: Batch, position: int) -> DuplicateKey:
    """The error for a record of a batch whose key is taken."""
    return DuplicateKey(
        f"key {shown(batch.keys[position])} is in the collection already; upsert overwrites",
        row=batch.row_numbers[position], field="key",
    )  # fmt: skip


def _only(given: SpaceVectors, positions: set[int]) -> SpaceVectors:
    """Those vectors whose places of the batch are among ``positions``."""
    if len(positions) == len(given.positions):
        return given
    lines = [line for line, position in enumerate(given.positions) if position in positions]
    return SpaceVectors([given.positions[line] for line in lines], given.matrix[lines])


def _packed(given: SpaceVectors) -> FloatMatrix:
    """Vectors as they are stored: little-endian float32, one after the other."""
    return np.ascontiguousarray(given.matrix, dtype="<f4")


def _vector_hashes(keys: Sequence[str], given: SpaceVectors) -> list[bytes]:
    """The row hash of each given vector."""
    packed = _packed(given)
    if len(given.positions) == 1:
        return [vector_hash(keys[given.positions[0]], packed.data)]
    n_bytes = packed.shape[1] * 4
    view = packed.data.cast("B")
    return [
        vector_hash(keys[position], view[line * n_bytes : (line + 1) * n_bytes])
        for line, position in enumerate(given.positions)
    ]
