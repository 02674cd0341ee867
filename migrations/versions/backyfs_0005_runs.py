"""Keep a row of each command that has ended; record the progress of running ones as numbers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from backyfs.migrations.present import add_missing_column, create_missing_index, refuse_downgrade, tables

revision = "backyfs_0005"
down_revision = "backyfs_0004"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_MARIADB = ("mysql", "mariadb")
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), *_MARIADB)
_Long = sa.Text().with_variant(mysql.MEDIUMTEXT(charset="utf8mb4", collation="utf8mb4_nopad_bin"), *_MARIADB)


def _text(length: int) -> sa.String:
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(exact, *_MARIADB).with_variant(ordered, "postgresql")


def upgrade() -> None:
    """Create what is missing. On MariaDB, a killed run may have created some of it."""
    add_missing_column("jobs", sa.Column("names", _text(4096)))
    add_missing_column("jobs", sa.Column("progress_done", sa.BigInteger))
    add_missing_column("jobs", sa.Column("progress_total", sa.BigInteger))
    add_missing_column("jobs", sa.Column("progress_unit", sa.String(16)))
    add_missing_column("jobs", sa.Column("progress_s", sa.Double))
    if "runs" not in tables():
        op.create_table(
            "runs",
            sa.Column("id", _Id, primary_key=True),
            sa.Column("kind", sa.String(32)),
            sa.Column("command", _text(1024), nullable=False),
            sa.Column("names", _text(4096), nullable=False),
            sa.Column("host", _text(255), nullable=False),
            sa.Column("started_at", _Time, nullable=False),
            sa.Column("ended_at", _Time, nullable=False),
            sa.Column("outcome", sa.String(16), nullable=False),
            sa.Column("exit_status", sa.Integer),
            sa.Column("error_class", sa.String(64)),
            sa.Column("error", _text(4096)),
            sa.Column("report", _Long),
            sqlite_autoincrement=True,
        )
    create_missing_index("ix_runs_ended_at", "runs", "ended_at")
