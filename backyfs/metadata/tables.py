"""The tables, as SQLAlchemy Core objects, in types that SQLite, PostgreSQL and MariaDB share.

What a column means stands beside it. The schema in a database is made by `backyfs.migrations`; a test
keeps both equal.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
)
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.types import TypeDecorator

from backyfs.model import NAME_LENGTH

if TYPE_CHECKING:
    from sqlalchemy import Dialect


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time in UTC; microseconds on every database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        """Ask MariaDB for microseconds, which it leaves out by default."""
        if dialect.name in {"mysql", "mariadb"}:
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime())

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Store a time without its zone, in UTC."""
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Give it its zone back."""
        return None if value is None else value.replace(tzinfo=UTC)


def _uid(length: int) -> String:
    # Uids differ in case alone; MariaDB compares text without regard to case unless it is told otherwise.
    exact = mysql.VARCHAR(length, charset="ascii", collation="ascii_bin")
    return String(length).with_variant(exact, "mysql", "mariadb")


def _ordered(length: int) -> String:
    # As a uid, and PostgreSQL orders it by its bytes as the others do.
    return _uid(length).with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")


def _bytes(length: int) -> LargeBinary:
    # MariaDB indexes VARBINARY whole, but not BLOB.
    return LargeBinary(length).with_variant(mysql.VARBINARY(length), "mysql", "mariadb")


def _text(length: int) -> String:
    # Names are compared and ordered by their bytes everywhere, as SQLite does. PostgreSQL orders them by the
    # language of the database otherwise; MariaDB disregards case, and without "nopad" spaces at the end.
    exact = mysql.VARCHAR(length, charset="utf8mb4", collation="utf8mb4_nopad_bin")
    ordered = postgresql.VARCHAR(length, collation="C")
    return String(length).with_variant(exact, "mysql", "mariadb").with_variant(ordered, "postgresql")


# SQLite gives rowids to INTEGER primary keys only.
_Id = BigInteger().with_variant(Integer, "sqlite")
_LongBlob = LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")
# sqlite_autoincrement: else SQLite gives the highest id, when its row was deleted, to the next row, and whoever
# knows the old row by its id takes the new one for it: a backup a blob, a job that was removed its own row.

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

repository = Table(
    "repository",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("uid", _uid(36), nullable=False),
    Column("block_size", Integer, nullable=False),                 # fixed when the repository is made
    Column("hash_function", String(32), nullable=False),           # likewise
    Column("wrapped_fingerprint_key", _bytes(64)),                 # NULL: fingerprints have no key
    Column("needs_release", String(32), nullable=False),           # of backyfs; older ones refuse with this number
    Column("created_at", UtcDateTime, nullable=False),
    Column("key_made_at", UtcDateTime),                            # the repository key; NULL: with the repository
    Column("storage_marked", Boolean),  # set: the storage was given this repository's marker; NULL: not yet
    # Set: the storage held objects when the repository was made. Their rows may still be imported, so they are not
    # orphans unless the user says so.
    Column("storage_had_objects", Boolean),
    Column("identity_tag", _bytes(32)),  # see keys.identity; NULL: not encrypted, or not opened since an upgrade
)

# What the catalog in the storage is to be told, and what is known of it; see `metadata.catalog`.
catalog_notes = Table(
    "catalog_notes",
    metadata,
    Column("kind", _ordered(16), primary_key=True),
    Column("uid", _ordered(36), primary_key=True),
    Column("token", BigInteger, nullable=False),  # random: another one, and it has changed
)

key_slots = Table(
    "key_slots",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("label", _text(255), nullable=False),
    Column("kdf", String(32), nullable=False),
    Column("kdf_parameters", String(1024), nullable=False),  # JSON
    Column("key_check", _bytes(16), nullable=False),
    Column("wrapped_key", _bytes(64), nullable=False),       # the repository key
    Column("created_at", UtcDateTime, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", _uid(36), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("name", _text(NAME_LENGTH), nullable=False),
    Column("snapshot_name", _text(NAME_LENGTH), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),  # model.VersionStatus
    Column("protected", Boolean, nullable=False),
    Column("expire_at", UtcDateTime),
    sqlite_autoincrement=True,
)

tags = Table(
    "tags",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("version_id", ForeignKey(versions.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", _text(NAME_LENGTH), nullable=False),
    UniqueConstraint("version_id", "name"),
)

pages = Table(
    "pages",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", _uid(36), nullable=False, unique=True),      # names the page's object in the catalog
    Column("digest", _bytes(32), nullable=False, unique=True),  # of the entries: equal pages are one row
    Column("entries", _LongBlob, nullable=False),               # see metadata.blockmap
    Column("refs", BigInteger, nullable=False),                 # rows of version_pages that name it
    Column("published", Boolean, nullable=False),               # set: the catalog has its object
    sqlite_autoincrement=True,
)

# Those that the catalog lacks, without a look at all others. MariaDB has no index of a part, and gets a whole one.
_unpublished = pages.c.published.is_(False)
Index("ix_pages_unpublished", pages.c.published, sqlite_where=_unpublished, postgresql_where=_unpublished)

version_pages = Table(
    "version_pages",
    metadata,
    Column("version_id", ForeignKey(versions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("page_no", Integer, primary_key=True, autoincrement=False),
    Column("page_id", ForeignKey(pages.c.id), nullable=False, index=True),
)

blobs = Table(
    "blobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", _uid(32), nullable=False, unique=True),
    Column("fingerprint", _bytes(64), index=True),
    Column("size", Integer, nullable=False),             # plain bytes
    Column("stored_size", BigInteger),                   # bytes of the object; NULL: not known
    Column("encryption_version", SmallInteger, nullable=False),
    Column("wrapped_key", _bytes(64)),
    Column("valid", Boolean, nullable=False),            # not set: found damaged; not for deduplication
    Column("created_at", UtcDateTime, nullable=False),
    Column("doomed_at", UtcDateTime),  # set: cleanup will delete it; deduplication no longer finds it
    sqlite_autoincrement=True,
)

# What a cleanup looks for, without a look at all others: garbage is what its cost follows.
_unused = pages.c.refs == 0
Index("ix_pages_unused", pages.c.refs, sqlite_where=_unused, postgresql_where=_unused)
_doomed = blobs.c.doomed_at.is_not(None)
Index("ix_blobs_doomed", blobs.c.doomed_at, sqlite_where=_doomed, postgresql_where=_doomed)

# Those that were found damaged, likewise.
_damaged = blobs.c.valid.is_(False)
Index("ix_blobs_damaged", blobs.c.valid, sqlite_where=_damaged, postgresql_where=_damaged)

# Apart from the blobs, because it changes so often: a backup that changes one block in a hundred counts all blobs
# anew, and rewriting their whole rows took four times as long.
blob_refs = Table(
    "blob_refs",
    metadata,
    Column("blob_id", ForeignKey(blobs.c.id, ondelete="CASCADE"), primary_key=True),  # none for a doomed blob
    Column("refs", BigInteger, nullable=False),  # pages that contain it
)

_unreferenced = blob_refs.c.refs == 0
Index("ix_blob_refs_unused", blob_refs.c.refs, sqlite_where=_unreferenced, postgresql_where=_unreferenced)

# Apart from the blobs for the same reason.
blob_checks = Table(
    "blob_checks",
    metadata,
    Column("blob_id", ForeignKey(blobs.c.id, ondelete="CASCADE"), primary_key=True),  # none: never read by a scrub
    Column("checked_at", UtcDateTime, nullable=False),  # when a scrub last read it, whole or not
)

# Versions that were valid until a scrub found damage in them: they are valid again when it is gone. Others are
# invalid because of what backy2 says, and that can mean that their backup never ended.
damaged_versions = Table(
    "damaged_versions",
    metadata,
    Column("version_id", ForeignKey(versions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("found_at", UtcDateTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("host", _text(255), nullable=False),      # for people
    Column("scope", String(128), nullable=False),    # machine, boot and pid namespace: where the pid means something
    Column("pid", Integer, nullable=False),
    Column("pid_started", BigInteger, nullable=False),  # clock ticks after boot: pids are used again
    Column("command", _text(1024), nullable=False),  # for people
    Column("progress", _text(255), nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),  # the database's clock
    Column("kind", String(32)),       # the command's name, as in `backup`
    Column("writes_blobs", Boolean),  # set or NULL: it may store objects that have no row yet; they are not orphans
    sqlite_autoincrement=True,
)

job_versions = Table(  # which versions a job holds: none of them is removed while the job lives
    "job_versions",
    metadata,
    Column("job_id", ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("version_id", ForeignKey(versions.c.id, ondelete="CASCADE"), primary_key=True, index=True),
)

stats = Table(  # one row for each finished backup; it outlives its version
    "stats",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("version_uid", _uid(36), nullable=False, index=True),
    Column("version_name", _text(NAME_LENGTH), nullable=False),
    Column("version_size_bytes", BigInteger, nullable=False),
    Column("version_size_blocks", BigInteger, nullable=False),
    Column("bytes_read", BigInteger, nullable=False),
    Column("blocks_read", BigInteger, nullable=False),
    Column("bytes_written", BigInteger, nullable=False),    # plain bytes of new blobs
    Column("blocks_written", BigInteger, nullable=False),
    Column("bytes_stored", BigInteger),                     # the same after sealing; NULL: not known
    Column("bytes_deduplicated", BigInteger, nullable=False),
    Column("blocks_deduplicated", BigInteger, nullable=False),
    Column("bytes_sparse", BigInteger, nullable=False),
    Column("blocks_sparse", BigInteger, nullable=False),
    Column("duration_s", Double, nullable=False),
)
