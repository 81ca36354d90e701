"""The store notes its newest commit, and the oldest release that can open it; commit ids cover the logs.

The names of older commits do not cover what they wrote to the logs, so the logs are emptied: caches that lag behind are
made anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

store_info = sa.table("store_info", sa.column("name", sa.String), sa.column("value", sa.Text))


def upgrade():
    op.bulk_insert(
        store_info,
        [{"name": "head", "value": "0 -"}, {"name": "needs", "value": "0.1.0"}],
    )
    op.execute("DELETE FROM changed_records")
    op.execute("DELETE FROM dead_vectors")
    op.execute(
        "DELETE FROM commits WHERE change < (SELECT last_change FROM collections"
        " WHERE collections.collection_id = commits.collection_id)"
    )
    op.execute("UPDATE collections SET log_floor = last_change")


def downgrade():
    op.execute(store_info.delete().where(store_info.c.name.in_(["head", "needs"])))
