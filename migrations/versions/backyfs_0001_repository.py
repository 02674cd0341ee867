"""Create the tables of a repository: block maps of shared pages, and blobs with reference counts.

The tables of backy2 are renamed; `backyfs.metadata.schema.adoption` takes over their rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql, postgresql

from backyfs.migrations.present import has_transactional_ddl, refuse_downgrade, tables

revision = "backyfs_0001"
down_revision = "30349b678801"
branch_labels = None
depends_on = None

downgrade = refuse_downgrade

_BACKY2 = ("versions", "blocks", "tags", "stats", "deleted_blocks")
_OWN = (  # including tables of later revisions; referring tables first
    "damaged_versions", "blob_checks", "job_versions", "jobs", "version_pages", "pages", "blob_refs", "blobs", "tags",
    "versions", "stats", "runs", "catalog_notes", "key_slots", "repository",
)  # fmt: skip
_MARIADB = ("mysql", "mariadb")
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_Time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), *_MARIADB)
_LongBlob = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), *_MARIADB)


def _uid(length: int) -> sa.String:
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return sa.String(length).with_variant(exact, *_MARIADB)


def _text(length: int) -> sa.String:
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    return sa.String(length).with_variant(exact, *_MARIADB).with_variant(ordered, "postgresql")


def _bytes(length: int) -> sa.LargeBinary:
    return sa.LargeBinary(length).with_variant(mysql.VARBINARY(length), *_MARIADB)


def upgrade() -> None:
    """Rename backy2's tables and create ours, referenced tables first."""
    if "blocks" in tables():
        _set_aside([name for name in _BACKY2 if name in tables()])
    elif "backy2_blocks" in tables():
        _drop_unfinished()
    _create_identity()
    _create_versions()
    _create_blobs_and_pages()
    _create_jobs()
    _create_stats()


def _set_aside(names: list[str]) -> None:
    if has_transactional_ddl():
        op.execute("DROP INDEX IF EXISTS ix_stats_version_uid")  # our table needs the name
        for name in names:
            op.rename_table(name, f"backy2_{name}")
    else:  # one statement: all of them or none
        op.execute("RENAME TABLE " + ", ".join(f"{name} TO backy2_{name}" for name in names))


def _drop_unfinished() -> None:
    """Drop the tables of a run on MariaDB that was killed before it had taken over any rows."""
    for name in _OWN:
        if name in tables():
            op.drop_table(name)


def _create_identity() -> None:
    op.create_table(
        "repository",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("uid", _uid(36), nullable=False),
        sa.Column("block_size", sa.Integer, nullable=False),
        sa.Column("hash_function", sa.String(32), nullable=False),
        sa.Column("wrapped_fingerprint_key", _bytes(64)),
        sa.Column("needs_release", sa.String(32), nullable=False),
        sa.Column("created_at", _Time, nullable=False),
    )
    op.create_table(
        "key_slots",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("label", _text(255), nullable=False),
        sa.Column("kdf", sa.String(32), nullable=False),
        sa.Column("kdf_parameters", sa.String(1024), nullable=False),
        sa.Column("key_check", _bytes(16), nullable=False),
        sa.Column("wrapped_key", _bytes(64), nullable=False),
        sa.Column("created_at", _Time, nullable=False),
    )


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("uid", _uid(36), nullable=False, unique=True),
        sa.Column("created_at", _Time, nullable=False),
        sa.Column("name", _text(2048), nullable=False),
        sa.Column("snapshot_name", _text(2048), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("protected", sa.Boolean, nullable=False),
        sa.Column("expire_at", _Time),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "tags",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("version_id", _Id, sa.ForeignKey("versions.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", _text(2048), nullable=False),
        sa.UniqueConstraint("version_id", "name"),
    )


def _create_blobs_and_pages() -> None:
    op.create_table(
        "blobs",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("uid", _uid(32), nullable=False, unique=True),
        sa.Column("fingerprint", _bytes(64), index=True),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stored_size", sa.BigInteger),
        sa.Column("encryption_version", sa.SmallInteger, nullable=False),
        sa.Column("wrapped_key", _bytes(64)),
        sa.Column("valid", sa.Boolean, nullable=False),
        sa.Column("created_at", _Time, nullable=False),
        sa.Column("doomed_at", _Time),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "blob_refs",
        sa.Column("blob_id", _Id, sa.ForeignKey("blobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("refs", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "pages",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("uid", _uid(36), nullable=False, unique=True),
        sa.Column("digest", _bytes(32), nullable=False, unique=True),
        sa.Column("entries", _LongBlob, nullable=False),
        sa.Column("refs", sa.BigInteger, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "version_pages",
        sa.Column("version_id", _Id, sa.ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("page_no", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("page_id", _Id, sa.ForeignKey("pages.id"), nullable=False, index=True),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("host", _text(255), nullable=False),
        sa.Column("scope", sa.String(128), nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("pid_started", sa.BigInteger, nullable=False),
        sa.Column("command", _text(1024), nullable=False),
        sa.Column("progress", _text(255), nullable=False),
        sa.Column("started_at", _Time, nullable=False),
        sa.Column("heartbeat_at", _Time, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "job_versions",
        sa.Column("job_id", _Id, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("version_id", _Id, sa.ForeignKey("versions.id", ondelete="CASCADE"), primary_key=True, index=True),
    )


def _create_stats() -> None:
    op.create_table(
        "stats",
        sa.Column("id", _Id, primary_key=True),
        sa.Column("created_at", _Time, nullable=False),
        sa.Column("version_uid", _uid(36), nullable=False, index=True),
        sa.Column("version_name", _text(2048), nullable=False),
        sa.Column("version_size_bytes", sa.BigInteger, nullable=False),
        sa.Column("version_size_blocks", sa.BigInteger, nullable=False),
        sa.Column("bytes_read", sa.BigInteger, nullable=False),
        sa.Column("blocks_read", sa.BigInteger, nullable=False),
        sa.Column("bytes_written", sa.BigInteger, nullable=False),
        sa.Column("blocks_written", sa.BigInteger, nullable=False),
        sa.Column("bytes_stored", sa.BigInteger),
        sa.Column("bytes_deduplicated", sa.BigInteger, nullable=False),
        sa.Column("blocks_deduplicated", sa.BigInteger, nullable=False),
        sa.Column("bytes_sparse", sa.BigInteger, nullable=False),
        sa.Column("blocks_sparse", sa.BigInteger, nullable=False),
        sa.Column("duration_s", sa.Double, nullable=False),
    )
