"""backy2 2.10.1: versions have an expiry date."""

from __future__ import annotations

import sqlalchemy as sa

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "828da0fbbe8d"
down_revision = "29c655b78818"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Add versions.expire."""
    add_missing_column("versions", sa.Column("expire", sa.Date))
