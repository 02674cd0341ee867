"""backy2 2.9.6: versions have the name of the snapshot that was backed up."""

from __future__ import annotations

import sqlalchemy as sa

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "bbe7904bfc3a"
down_revision = "backy2_2_9_5"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Add versions.snapshot_name."""
    add_missing_column("versions", sa.Column("snapshot_name", sa.String(255), nullable=False, server_default=""))
