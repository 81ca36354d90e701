"""The tables of the first release."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSON

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
METADATA = sa.Text().with_variant(JSON(), "postgresql")


def upgrade():
    op.create_table(
        "store_info",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
    op.create_table(
        "collections",
        sa.Column("collection_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("default_space", sa.Text, nullable=False),
        sa.Column("last_change", sa.BigInteger, nullable=False),
        sa.Column("log_floor", sa.BigInteger, nullable=False),
        sa.Column("last_serial", sa.BigInteger, nullable=False),
        sa.Column("n_records", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
    )
    op.create_table(
        "spaces",
        sa.Column("space_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("dim", sa.Integer),
        sa.Column("metric", sa.Text, nullable=False),
        sa.Column("dtype", sa.Text, nullable=False),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("last_seq", sa.BigInteger, nullable=False),
        sa.Column("n_live", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("collection_id", "name"),
    )
    op.create_table(
        "records",
        sa.Column("record_id", ID, primary_key=True, autoincrement=False),
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("modality", sa.Text, nullable=False),
        sa.Column("content", sa.Text),
        sa.Column("uri", sa.Text),
        sa.Column("metadata", METADATA, nullable=False),
        sa.Column("content_hash", sa.LargeBinary),
        sa.Column("row_hash", sa.LargeBinary, nullable=False),
        sa.UniqueConstraint("collection_id", "key"),
    )
    op.create_table(
        "vectors",
        sa.Column("vector_id", ID, primary_key=True, autoincrement=False),
        sa.Column("space_id", sa.Integer, sa.ForeignKey("spaces.space_id"), nullable=False),
        sa.Column("record_id", ID, sa.ForeignKey("records.record_id"), nullable=False),
        sa.Column("row_hash", sa.LargeBinary, nullable=False),
        sa.Column("vec", sa.LargeBinary, nullable=False),
    )
    op.create_index("vectors_by_record", "vectors", ["record_id", "space_id"], unique=True)
    op.create_table(
        "commits",
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), primary_key=True),
        sa.Column("change", sa.BigInteger, primary_key=True),
        sa.Column("commit_id", sa.LargeBinary, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "changed_records",
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), primary_key=True),
        sa.Column("change", sa.BigInteger, primary_key=True),
        sa.Column("record_id", ID, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "dead_vectors",
        sa.Column("space_id", sa.Integer, sa.ForeignKey("spaces.space_id"), primary_key=True),
        sa.Column("change", sa.BigInteger, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "fields",
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), primary_key=True),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "ingest_jobs",
        sa.Column("collection_id", sa.Integer, sa.ForeignKey("collections.collection_id"), primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("cursor", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("updated_at", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE records ADD COLUMN words tsvector GENERATED ALWAYS AS"
            " (to_tsvector('english', left(coalesce(content, ''), 100000))) STORED"
        )
        op.execute("CREATE INDEX records_by_words ON records USING gin (words)")
