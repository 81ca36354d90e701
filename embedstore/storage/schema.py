"""The tables of a store, as SQLAlchemy describes them.

Ids are composed: ``record_id = collection_id * 2**40 + serial`` and ``vector_id = space_id * 2**40 + seq``, so that
the rows of one collection, and of one space in commit order, lie together in the table's primary key.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSON

from embedstore.storage.layout import APPLICATION, SCHEMA_REVISION

__all__ = ["APPLICATION", "CREATE_REVISION", "SCHEMA_REVISION", "tables"]

CREATE_REVISION = (
    "CREATE TABLE alembic_version"
    " (version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
)
"""Alembic's own table, as Alembic makes it."""

tables = MetaData()

# SQLite gives an INTEGER PRIMARY KEY (and only that spelling) the table's own B-tree.
_Id = BigInteger().with_variant(Integer(), "sqlite")
# JSON, not JSONB: the text comes back as it was hashed.
_Json = Text().with_variant(JSON(), "postgresql")

store_info = Table(
    "store_info",
    tables,
    Column("name", String, primary_key=True),
    Column("value", Text, nullable=False),
)

collections = Table(
    "collections",
    tables,
    Column("collection_id", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False, unique=True),
    Column("default_space", Text, nullable=False),
    Column("log_floor", BigInteger, nullable=False),  # changes up to here are no longer in the logs
    Column("created_at", Text, nullable=False),
)

spaces = Table(
    "spaces",
    tables,
    Column("space_id", Integer, primary_key=True, autoincrement=False),
    Column("collection_id", Integer, ForeignKey("collections.collection_id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("dim", Integer),  # NULL until the first vector fixes it
    Column("metric", Text, nullable=False),
    Column("dtype", Text, nullable=False),
    Column("encoder", Text, nullable=False),  # specification as JSON; '' where vectors are computed elsewhere
    Column("fingerprint", Text, nullable=False),
    Column("recipe", Text, nullable=False),
    UniqueConstraint("collection_id", "name"),
)

records = Table(
    "records",
    tables,
    Column("record_id", _Id, primary_key=True, autoincrement=False),
    Column("collection_id", Integer, ForeignKey("collections.collection_id"), nullable=False),
    Column("key", Text, nullable=False),
    Column("modality", Text, nullable=False),
    Column("content", Text),
    Column("uri", Text),
    Column("metadata", _Json, nullable=False),
    Column("content_hash", LargeBinary),
    Column("row_hash", LargeBinary, nullable=False),
    UniqueConstraint("collection_id", "key"),
)

vectors = Table(
    "vectors",
    tables,
    Column("vector_id", _Id, primary_key=True, autoincrement=False),
    Column("space_id", Integer, ForeignKey("spaces.space_id"), nullable=False),
    Column("record_id", _Id, ForeignKey("records.record_id"), nullable=False),
    Column("row_hash", LargeBinary, nullable=False),
    Column("vec", LargeBinary, nullable=False),  # little-endian numbers of the space's dtype
    Index("vectors_by_record", "record_id", "space_id", unique=True),
)

commits = Table(
    "commits",
    tables,
    Column("commit_key", _Id, primary_key=True, autoincrement=False),  # collection_id * 2**40 + change
    Column("commit_id", LargeBinary, nullable=False),  # tells one history from another
    Column("number", BigInteger, nullable=False),  # of the commit in its store; SQLite only
    Column("last_serial", BigInteger, nullable=False),  # of record ids
    Column("n_records", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # sum of the records' row hashes
    Column("spaces", Text, nullable=False),  # JSON: by space id its last seq, number of vectors and their digest
)

changed_records = Table(
    "changed_records",
    tables,
    Column("collection_id", Integer, ForeignKey("collections.collection_id"), primary_key=True),
    Column("change", BigInteger, primary_key=True),
    Column("record_id", _Id, primary_key=True, autoincrement=False),  # updated or deleted by that change
    sqlite_with_rowid=False,
)

dead_vectors = Table(
    "dead_vectors",
    tables,
    Column("space_id", Integer, ForeignKey("spaces.space_id"), primary_key=True),
    Column("change", BigInteger, primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

fields = Table(
    "fields",
    tables,
    Column("collection_id", Integer, ForeignKey("collections.collection_id"), primary_key=True),
    Column("path", Text, primary_key=True),  # JSON list of names
    Column("kind", Text, primary_key=True),  # integer, real, text, boolean or list
    sqlite_with_rowid=False,
)

tunings = Table(
    "tunings",
    tables,
    Column("space_id", Integer, ForeignKey("spaces.space_id"), primary_key=True, autoincrement=False),
    Column("report", Text, nullable=False),  # JSON: the settings that were chosen, and what was measured
    Column("row_hash", LargeBinary, nullable=False),
)

fitted = Table(
    "fitted",
    tables,
    Column("space_id", Integer, ForeignKey("spaces.space_id"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),  # '' for how the space itself is made of another one
    Column("kind", Text, nullable=False),  # transform or direction
    Column("description", Text, nullable=False),  # JSON: how it was fitted, and what it is worth
    Column("body", LargeBinary, nullable=False),  # arrays, as safetensors
    Column("row_hash", LargeBinary, nullable=False),
)

ingest_jobs = Table(
    "ingest_jobs",
    tables,
    Column("collection_id", Integer, ForeignKey("collections.collection_id"), primary_key=True),
    Column("source", Text, primary_key=True),  # fingerprint of the input and how it is read, or name: and its name
    Column("cursor", BigInteger, nullable=False),  # rows of the input that are committed
    Column("state", Text, nullable=False),  # running or done, or the path of what has a name
    Column("updated_at", Text, nullable=False),
    sqlite_with_rowid=False,
)
