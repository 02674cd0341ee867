"""Record when each blob was last checked and which versions were valid until damage was found; index damaged blobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

from backyfs.migrations.present import indexes, refuse_downgrade, tables

revision = "backyfs_0002"
down_revision = "backyfs_0001"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")


def upgrade() -> None:
    """Create the missing tables. On MariaDB, a killed run may have created one."""
    present = tables()
    if "blob_checks" not in present:
        op.create_table(
            "blob_checks",
            sa.Column("blob_id", _Id, sa.ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("checked_at", _Time, nullable=False),
        )
    if "damaged_versions" not in present:
        op.create_table(
            "damaged_versions",
            sa.Column("version_id", _Id, sa.ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
            sa.Column("found_at", _Time, nullable=False),
        )
    if "ix_blobs_damaged" not in indexes("blobs"):
        op.create_index(
            "ix_blobs_damaged",
            "blobs",
            ["valid"],
            sqlite_where=sa.text("valid IS 0"),
            postgresql_where=sa.text("valid IS false"),
        )
