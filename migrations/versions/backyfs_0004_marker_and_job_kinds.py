"""Record whether the storage carries the repository's marker, the tag of the identity, and what each job does."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "backyfs_0004"
down_revision = "backyfs_0003"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Add the missing columns. On MariaDB, a killed run may have added some of them."""
    add_missing_column("repository", sa.Column("storage_marked", sa.Boolean))
    add_missing_column("repository", sa.Column("storage_had_objects", sa.Boolean))
    add_missing_column("jobs", sa.Column("kind", sa.String(32)))
    add_missing_column("jobs", sa.Column("writes_blobs", sa.Boolean))
    tag = sa.LargeBinary(32).with_variant(mysql.VARBINARY(32), "mysql", "mariadb")
    add_missing_column("repository", sa.Column("identity_tag", tag))
