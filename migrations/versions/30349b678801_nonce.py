"""backy2 2.12.1: store the nonce of a blob next to its key. This is the last revision of backy2."""

from __future__ import annotations

import sqlalchemy as sa

from backyfs.migrations.present import add_missing_column, refuse_downgrade

revision = "30349b678801"
down_revision = "5260034b8125"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade


def upgrade() -> None:
    """Add blocks.enc_nonce."""
    add_missing_column("blocks", sa.Column("enc_nonce", sa.String(32)))
