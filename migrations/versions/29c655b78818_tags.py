"""backy2 2.9.7: versions have tags."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backyfs.migrations.present import refuse_downgrade, tables

revision = "29c655b78818"
down_revision = "bbe7904bfc3a"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Create the table of tags."""
    if "tags" not in tables():
        op.create_table(
            "tags",
            sa.Column("version_uid", sa.String(36), nullable=False),
            sa.Column("name", sa.String(255), nullable=False),
            sa.PrimaryKeyConstraint("version_uid", "name", name="backy2_pk_tags"),
            sa.ForeignKeyConstraint(["version_uid"], ["versions.uid"], name="backy2_fk_tags"),
        )
