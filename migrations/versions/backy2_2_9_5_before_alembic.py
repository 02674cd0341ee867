"""The schema of backy2 before it used alembic: releases 2.2 to 2.9.5.

Releases 2.5.1 and 2.9.0 extended it without a revision; this revision adds what is missing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from backyfs.migrations.present import add_missing_column, create_missing_index, refuse_downgrade, tables

revision = "backy2_2_9_5"
down_revision = None
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_NAME_LENGTH = 255  # backy2 had no limit, but MariaDB requires one


def upgrade() -> None:
    """Create the missing tables."""
    present = tables()
    if "versions" not in present:
        _create_versions()
    add_missing_column("versions", sa.Column("protected", sa.Integer, nullable=False, server_default="0"))
    if "blocks" not in present:
        _create_blocks()
    if not {"stats", "stats_old"} & present:
        _create_stats()
    if "deleted_blocks" not in present:
        _create_deleted_blocks()
    create_missing_index("ix_deleted_blocks_uid", "deleted_blocks", "uid")


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("uid", sa.String(36), nullable=False),
        sa.Column("date", sa.DateTime, nullable=False),
        sa.Column("name", sa.String(_NAME_LENGTH), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("valid", sa.Integer, nullable=False),
        sa.Column("protected", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("uid", name="backy2_pk_versions"),
    )


def _create_blocks() -> None:
    op.create_table(
        "blocks",
        sa.Column("uid", sa.String(32)),
        sa.Column("version_uid", sa.String(36), nullable=False),
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("date", sa.DateTime, nullable=False),
        sa.Column("checksum", sa.String(128)),
        sa.Column("size", sa.BigInteger),
        sa.Column("valid", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("version_uid", "id", name="backy2_pk_blocks"),
        sa.ForeignKeyConstraint(["version_uid"], ["versions.uid"], name="backy2_fk_blocks"),
    )
    op.create_index("ix_blocks_uid", "blocks", ["uid"])
    op.create_index("ix_blocks_checksum", "blocks", ["checksum"])


def _create_stats() -> None:
    op.create_table(
        "stats",
        sa.Column("date", sa.DateTime, nullable=False),
        sa.Column("version_uid", sa.String(36), nullable=False),
        sa.Column("version_name", sa.String(_NAME_LENGTH), nullable=False),
        sa.Column("version_size_bytes", sa.BigInteger, nullable=False),
        sa.Column("version_size_blocks", sa.BigInteger, nullable=False),
        sa.Column("bytes_read", sa.BigInteger, nullable=False),
        sa.Column("blocks_read", sa.BigInteger, nullable=False),
        sa.Column("bytes_written", sa.BigInteger, nullable=False),
        sa.Column("blocks_written", sa.BigInteger, nullable=False),
        sa.Column("bytes_found_dedup", sa.BigInteger, nullable=False),
        sa.Column("blocks_found_dedup", sa.BigInteger, nullable=False),
        sa.Column("bytes_sparse", sa.BigInteger, nullable=False),
        sa.Column("blocks_sparse", sa.BigInteger, nullable=False),
        sa.Column("duration_seconds", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("version_uid", name="backy2_pk_stats_old"),
    )


def _create_deleted_blocks() -> None:
    op.create_table(
        "deleted_blocks",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uid", sa.String(32)),
        sa.Column("size", sa.BigInteger),
        sa.Column("delete_candidate", sa.Integer, nullable=False),
        sa.Column("time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="backy2_pk_deleted_blocks"),
    )
