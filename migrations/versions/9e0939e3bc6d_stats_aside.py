"""backy2 2.11.8, first step: rename the table of statistics, which had one row for each version."""

from __future__ import annotations

from alembic import op

from backyfs.migrations.present import columns, refuse_downgrade, tables

revision = "9e0939e3bc6d"
down_revision = "cd3f15ae79f8"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Rename stats, unless it is the new one."""
    present = tables()
    if "stats_old" not in present and "stats" in present and "id" not in columns("stats"):
        op.rename_table("stats", "stats_old")
