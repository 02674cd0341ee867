"""Know how old the repository key is; what cleanup and the catalog need."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "backyfs_0003"
down_revision = "backyfs_0002"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Make what is missing; on MariaDB a run that was killed may have made some of it."""
    add_missing_column("repository", sa.Column("key_made_at", _Time))
