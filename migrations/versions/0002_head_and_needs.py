"""The store notes its newest commit, and the oldest release that can open it."""

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


def downgrade():
    op.execute(store_info.delete().where(store_info.c.name.in_(["head", "needs"])))
