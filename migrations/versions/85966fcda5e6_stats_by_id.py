"""backy2 2.11.8, second step: statistics can have several rows for a version.

Before 2.11, a backup inserted all rows of a version at its start, so an interrupted one has them all, with wrong
content. Only statistics, written at the end, show that a backup finished. This revision records that, because it is the
last one in which such databases still have them.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backyfs.migrations.present import add_missing_column, create_missing_index, refuse_downgrade, tables

revision = "85966fcda5e6"
down_revision = "9e0939e3bc6d"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_COPIED = (
    "date", "version_uid", "version_name", "version_size_bytes", "version_size_blocks", "bytes_read", "blocks_read",
    "bytes_written", "blocks_written", "bytes_found_dedup", "blocks_found_dedup", "bytes_sparse", "blocks_sparse",
    "duration_seconds",
)  # fmt: skip


def upgrade() -> None:
    """Create stats again, with the rows of stats_old."""
    if "stats_old" in tables():
        _note_finished()
    if "stats" not in tables():
        _create_stats()
    create_missing_index("ix_stats_version_uid", "stats", "version_uid")
    if "stats_old" in tables():
        _copy()
        op.drop_table("stats_old")


def _note_finished() -> None:
    add_missing_column("versions", sa.Column("backyfs_ended", sa.Integer))
    op.execute(
        "UPDATE versions SET backyfs_ended = 1 WHERE valid <> 0 OR EXISTS "
        "(SELECT 1 FROM stats_old WHERE stats_old.version_uid = versions.uid)"
    )


def _create_stats() -> None:
    numbers = [sa.Column(name, sa.BigInteger, nullable=False) for name in _COPIED[3:]]
    op.create_table(
        "stats",
        sa.Column("date", sa.DateTime, nullable=False),
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("version_uid", sa.String(36)),
        sa.Column("version_name", sa.String(2048), nullable=False),
        *numbers,
        sa.PrimaryKeyConstraint("id", name="backy2_pk_stats"),
    )


def _copy() -> None:
    names = ", ".join(_COPIED)
    op.execute(
        f"INSERT INTO stats ({names}) SELECT {names} FROM stats_old WHERE NOT EXISTS "  # noqa: S608 - our own names
        "(SELECT 1 FROM stats WHERE stats.version_uid = stats_old.version_uid AND stats.date = stats_old.date) "
        "ORDER BY date, version_uid"
    )
