"""Record the age of the repository key, and add what cleanup and the catalog need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from backyfs.migrations.present import add_missing_column, indexes, refuse_downgrade, tables

revision = "backyfs_0003"
down_revision = "backyfs_0002"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_MARIADB = ("mysql", "mariadb")
_Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), *_MARIADB)


def _ordered(length: int) -> sa.String:
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(exact, *_MARIADB).with_variant(ordered, "postgresql")


def upgrade() -> None:
    """Create what is missing. On MariaDB, a killed run may have created some of it."""
    add_missing_column("repository", sa.Column("key_made_at", _Time))
    if "catalog_notes" not in tables():
        op.create_table(
            "catalog_notes",
            sa.Column("kind", _ordered(16), primary_key=True),
            sa.Column("uid", _ordered(36), primary_key=True),
            sa.Column("token", sa.BigInteger, nullable=False),
        )
    for name, table, column, sqlite_part, postgresql_part in (
        ("ix_pages_unpublished", "pages", "published", "published IS 0", "published IS false"),
        ("ix_pages_unused", "pages", "refs", "refs = 0", "refs = 0"),
        ("ix_blobs_doomed", "blobs", "doomed_at", "doomed_at IS NOT NULL", "doomed_at IS NOT NULL"),
        ("ix_blob_refs_unused", "blob_refs", "refs", "refs = 0", "refs = 0"),
    ):
        if name not in indexes(table):
            op.create_index(
                name, table, [column], sqlite_where=sa.text(sqlite_part), postgresql_where=sa.text(postgresql_part)
            )
    # The catalog does not contain any of the existing versions yet.
    for kind, uid, table in (("version", "uid", "versions"), ("repository", "''", "repository")):
        op.execute(
            f"INSERT INTO catalog_notes SELECT '{kind}', {uid}, 1 FROM {table} "  # noqa: S608 - constants
            f"WHERE {uid} NOT IN (SELECT noted.uid FROM catalog_notes noted WHERE noted.kind = '{kind}')"
        )
