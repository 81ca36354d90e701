"""What the store asks of a SQL database: snapshots to read, one writer at a time, and bulk inserts.

Statements are plain SQL text with ``:name`` parameters, which SQLite takes as it is and PostgreSQL through
SQLAlchemy's ``text()``. What the two dialects say differently is in ``Dialect``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from embedstore.errors import StoreDamaged

Row = tuple[Any, ...]
PackedRecord = list[Any]
"""Id, key, content, metadata as text, modality, uri, and the row's hash in hex."""
Mark = tuple[Any, ...]
"""What tells one state of a collection, and of the catalog, from every other."""
Memory = dict[tuple[str, Any], Any]
"""By kind of row and its owner, what ``storage.catalog`` made of it."""
Parameters = Mapping[str, Any]
FEW_ROWS = 8
"""So few rows are inserted one by one, and it is the database that says whether a key is taken (KeyTaken)."""


class KeyTaken(Exception):
    """A record was to be inserted under a key that another record has; ``place`` is the record's place among rows."""

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.place = place


class Dialect(Protocol):
    """The few pieces of SQL that SQLite and PostgreSQL spell differently."""

    name: str
    json_type: str
    for_update: str  # behind a SELECT, makes writers of its rows queue up
    goes_on: bool  # whether a transaction can go on after a statement that failed

    def members(self, parameter: str, kind: str) -> str:
        """A subquery or array of the values of a list parameter, to stand after IN; kind is 'integer' or 'text'."""

    def list_parameter(self, values: Sequence[Any]) -> Any:
        """A Python list as the value of a list parameter."""

    def json_text(self, value: bytes) -> Any:
        """Canonical JSON in the form that the metadata column takes."""

    def metadata_out(self, value: Any) -> dict[str, Any]:
        """What the metadata column gives back, as a dictionary."""


class RecordRows(NamedTuple):
    """New records of one collection with consecutive ids.

    rows: key, content, uri, metadata (JSON text) and modality of each. content_hashes: 16 bytes each, of no meaning
    where a record has no content; row_hashes: 16 bytes each.
    """

    first_record_id: int
    collection_id: int
    rows: Sequence[tuple[str, str | None, str | None, str, str]]
    content_hashes: bytes
    row_hashes: bytes

    def halves(self) -> tuple[RecordRows, RecordRows]:
        """The first and the second half of the rows."""
        middle = len(self.rows) // 2
        return (
            RecordRows(
                self.first_record_id, self.collection_id, self.rows[:middle],
                self.content_hashes[: 16 * middle], self.row_hashes[: 16 * middle],
            ),
            RecordRows(
                self.first_record_id + middle, self.collection_id, self.rows[middle:],
                self.content_hashes[16 * middle :], self.row_hashes[16 * middle :],
            ),
        )  # fmt: skip


class VectorRows(NamedTuple):
    """Vectors of one space with consecutive ids: each has ``n_bytes`` in ``vecs`` and 16 in ``row_hashes``."""

    first_vector_id: int
    space_id: int
    record_ids: Sequence[int]
    row_hashes: bytes
    vecs: bytes
    n_bytes: int


class Transaction(Protocol):
    """One open transaction."""

    @property
    def dialect(self) -> Dialect:
        """How its SQL is spelled."""

    @property
    def memory(self) -> Memory | None:
        """What was read of the catalog in this very state of the database; None where nothing may be kept."""

    def commit_number(self, name: bytes) -> int:
        """The number that this transaction's commit takes in its store; its name is noted with it.

        Numbers are counted where the store keeps a note of its newest commit beside the database; else it is 0.
        """

    def vouch(self) -> None:
        """Say that ``memory`` tells what this transaction changed; without that it is forgotten at the commit."""

    def all(self, sql: str, parameters: Parameters | None = None) -> list[Row]:
        """Every row of the answer."""

    def stream(self, sql: str, parameters: Parameters | None = None) -> Iterator[Row]:
        """The rows of the answer, fetched as they are consumed."""

    def one(self, sql: str, parameters: Parameters | None = None) -> Row | None:
        """The first row of the answer, or None."""

    def run(self, sql: str, parameters: Parameters | None = None) -> int:
        """Execute a statement; returns the number of rows it changed."""

    def many(self, sql: str, parameters: Sequence[Parameters]) -> None:
        """Execute a statement once for each set of parameters."""

    def records_packed(self, record_ids: Sequence[int]) -> list[PackedRecord] | None:
        """Records by id, in any order, in one piece; None where this is not quicker, or a row cannot be packed."""

    def mark(self, collection_id: int) -> Mark | None:
        """What tells this state of a collection and of the catalog from every other; None where nothing does."""

    def alone(self) -> None:
        """Wait until no other transaction is creating collections or spaces, and keep others from it."""

    def insert_records(self, records: RecordRows) -> None:
        """Insert rows of ``records``; KeyTaken where the database itself finds a key twice, and says so at once."""

    def insert_vectors(self, vectors: VectorRows) -> None:
        """Insert rows of ``vectors``."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
        """Insert ``rows``, tuples in the order of ``columns``."""


class Database(Protocol):
    """A SQL database that holds, or will hold, one store."""

    @property
    def dialect(self) -> Dialect:
        """How its SQL is spelled."""

    @property
    def address(self) -> str:
        """Where it is, for messages; without a password."""

    def exists(self) -> bool:
        """Whether there is a store in it."""

    def create(self, fill: Callable[[Transaction], None]) -> None:
        """Create the tables, if they are not there; ``fill`` writes their first rows in the same transaction."""

    def read(self) -> AbstractContextManager[Transaction]:
        """A snapshot: every statement inside sees the same commits."""

    def records_and_mark(
        self, collection_id: int, record_ids: Sequence[int]
    ) -> tuple[list[PackedRecord], Mark] | None:
        """Records by id and the mark of the state that they were read in, by one statement; None where it fails."""

    def write(self, timeout: float | None = None) -> AbstractContextManager[Transaction]:
        """The one writing transaction; committed durably when the block ends, rolled back when it raises.

        Raises StoreLocked after ``timeout`` seconds (None: the store's own setting) of waiting for another writer.
        """

    def refuse_writes_after_loss(self) -> None:
        """Warn where commits that were acknowledged are missing, and refuse writes from then on; reading goes on."""

    def damage(self, what: str) -> StoreDamaged:
        """The error for damage that is found in rows of this database, with its place and what to do."""

    def n_bytes(self) -> int:
        """How much room the store's tables take."""

    def vacuum(self) -> None:
        """Give unused room back to the system; waits for other writers."""

    def close(self) -> None:
        """Give back connections and locks."""
