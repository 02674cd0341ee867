"""backy2, between releases: blocks have an encryption version and a wrapped key."""

from __future__ import annotations

import sqlalchemy as sa

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "5260034b8125"
down_revision = "85966fcda5e6"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Add blocks.enc_version and blocks.enc_envkey."""
    add_missing_column("blocks", sa.Column("enc_envkey", sa.String(80)))
    add_missing_column("blocks", sa.Column("enc_version", sa.Integer, nullable=False, server_default="0"))
