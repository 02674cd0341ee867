"""backy2 after 2.10.1: versions have an expiry time instead of a date."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backyfs.migrations.present import refuse_downgrade

revision = "cd3f15ae79f8"
down_revision = "828da0fbbe8d"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Turn versions.expire into a time."""
    columns = sa.inspect(op.get_bind()).get_columns("versions")
    kind = next(column["type"] for column in columns if column["name"] == "expire")
    if not isinstance(kind, sa.DateTime):
        with op.batch_alter_table("versions") as batch:
            batch.alter_column("expire", existing_type=sa.Date(), existing_nullable=True, type_=sa.DateTime())
