"""Define the tables as SQLAlchemy Core objects, with types that SQLite, PostgreSQL and MariaDB share.

The meaning of a column is documented next to it, and the rules for its values are in `backyfs.values`. Older databases
get the same schema from `backyfs.migrations`; a test compares both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    UniqueConstraint,
    event,
)

from backyfs import values
from backyfs.metadata.db.columns import (
    CheckedType,
    MariadbType,
    TrueOrFalse,
    UtcDateTime,
    WholeNumber,
    json_text,
    large,
    number,
    ordered,
    raw,
    reference,
    short,
    text,
    uid,
)
from backyfs.model import NAME_LENGTH

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

# SQLite gives rowids to INTEGER primary keys only.
_Id = BigInteger().with_variant(Integer, "sqlite")
_LongBlob = CheckedType(LargeBinary().with_variant(MariadbType("MEDIUMBLOB"), "mysql", "mariadb"), None)
# sqlite_autoincrement: without it, SQLite reuses the highest id after its row was deleted. A command that remembers the
# id would mistake the new row for the old one: a backup for its blob, a removed job for its own row.

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _index_part(name: str, column: Column[Any], condition: ColumnElement[bool]) -> None:
    """Index only the rows that meet a condition. MariaDB has no partial indexes and gets a full one."""
    index = Index(name, column)

    # As arguments of Index, these options would load the dialects of engines that are not used.
    @event.listens_for(index, "before_create")
    def restrict(index: Index, connection: Connection, **_: object) -> None:
        if connection.dialect.name in {"sqlite", "postgresql"}:
            index.dialect_kwargs[f"{connection.dialect.name}_where"] = condition


repository = Table(
    "repository",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # always 1: there is only one row
    Column("uid", uid(36, values.REPOSITORY_UID), nullable=False),
    Column("block_size", number(values.BLOCK_SIZE), nullable=False),  # fixed when the repository is created
    Column("hash_function", short(32, values.HASH_FUNCTION), nullable=False),  # likewise
    Column("wrapped_fingerprint_key", raw(64, values.FINGERPRINT_KEY)),  # NULL: fingerprints have no key
    # Of backyfs; older releases name it in their error.
    Column("needs_release", short(32, values.RELEASE), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("key_made_at", UtcDateTime),       # when the repository key was created; NULL: with the repository
    Column("storage_marked", TrueOrFalse()),  # set: the storage has this repository's marker; NULL: not yet
    # Set: the storage had objects when the repository was created. Their rows may still be imported, so they are not
    # orphans unless the user says so.
    Column("storage_had_objects", TrueOrFalse()),
    Column("identity_tag", raw(32, values.IDENTITY_TAG)),  # see keys.identity; NULL: none yet, or not encrypted
)

# Changes that the catalog in the storage lacks, and its state; see `metadata.catalog.notes`.
catalog_notes = Table(
    "catalog_notes",
    metadata,
    Column("kind", ordered(16), primary_key=True),
    Column("uid", ordered(36), primary_key=True),
    Column("token", large(None), nullable=False),  # random; it differs after each change
)

key_slots = Table(
    "key_slots",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("label", text(255), nullable=False),
    Column("kdf", short(32, values.KDF), nullable=False),
    Column("kdf_parameters", short(1024, values.KDF_PARAMETERS), nullable=False),  # JSON
    Column("key_check", raw(16, values.KEY_CHECK), nullable=False),
    Column("wrapped_key", raw(64, values.WRAPPED_KEY), nullable=False),       # the repository key
    Column("created_at", UtcDateTime, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", uid(36, values.VERSION_UID), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("name", text(NAME_LENGTH), nullable=False),
    Column("snapshot_name", text(NAME_LENGTH), nullable=False),
    Column("size_bytes", large(values.SIZE), nullable=False),
    Column("status", short(16, values.STATUS), nullable=False),  # model.VersionStatus
    Column("protected", TrueOrFalse(), nullable=False),
    Column("expire_at", UtcDateTime(values.EXPIRY)),
    sqlite_autoincrement=True,
)

tags = Table(
    "tags",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("version_id", reference(), ForeignKey(versions.c.id, ondelete="CASCADE"), nullable=False),
    Column("name", text(NAME_LENGTH), nullable=False),
    UniqueConstraint("version_id", "name"),
)

pages = Table(
    "pages",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", uid(36, values.PAGE_UID), nullable=False, unique=True),  # in the name of the page's catalog object
    Column("digest", raw(32, None), nullable=False, unique=True),  # of the entries: equal pages are one row
    Column("entries", _LongBlob, nullable=False),               # see metadata.maps.blockmap
    Column("refs", large(None), nullable=False),               # rows of version_pages that refer to it
    Column("published", TrueOrFalse(), nullable=False),        # set: the catalog has its object
    sqlite_autoincrement=True,
)

# An index of only the pages that the catalog lacks.
_unpublished = pages.c.published.is_(False)
_index_part("ix_pages_unpublished", pages.c.published, _unpublished)

version_pages = Table(
    "version_pages",
    metadata,
    Column("version_id", reference(), ForeignKey(versions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("page_no", number(values.PAGE_NUMBER), primary_key=True, autoincrement=False),
    Column("page_id", reference(), ForeignKey(pages.c.id), nullable=False, index=True),
)

blobs = Table(
    "blobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("uid", uid(32, values.BLOB_UID), nullable=False, unique=True),
    Column("fingerprint", raw(64, values.FINGERPRINT), index=True),
    Column("size", number(values.BLOB_SIZE), nullable=False),  # plain bytes
    Column("stored_size", large(values.SIZE)),                 # bytes of the object; NULL: unknown
    Column("encryption_version", WholeNumber(SmallInteger(), values.ENCRYPTION_VERSION), nullable=False),
    Column("wrapped_key", raw(64, values.WRAPPED_KEY)),
    Column("valid", TrueOrFalse(), nullable=False),            # not set: found damaged; deduplication does not use it
    Column("created_at", UtcDateTime, nullable=False),
    Column("doomed_at", UtcDateTime),  # set: cleanup will delete it; deduplication no longer finds it
    sqlite_autoincrement=True,
)

# Indexes of only the garbage, so that the cost of a cleanup grows with the garbage and not with the repository.
_unused = pages.c.refs == 0
_index_part("ix_pages_unused", pages.c.refs, _unused)
_doomed = blobs.c.doomed_at.is_not(None)
_index_part("ix_blobs_doomed", blobs.c.doomed_at, _doomed)

# An index of only the damaged blobs.
_damaged = blobs.c.valid.is_(False)
_index_part("ix_blobs_damaged", blobs.c.valid, _damaged)

# A separate table, because it changes so often: a backup that changes one block in a hundred updates the counts of all
# blobs, and rewriting their whole rows took four times as long.
blob_refs = Table(
    "blob_refs",
    metadata,
    Column("blob_id", ForeignKey(blobs.c.id, ondelete="CASCADE"), primary_key=True),  # none for a doomed blob
    Column("refs", large(None), nullable=False),  # number of pages that contain it
)

_unreferenced = blob_refs.c.refs == 0
_index_part("ix_blob_refs_unused", blob_refs.c.refs, _unreferenced)

# A separate table for the same reason.
blob_checks = Table(
    "blob_checks",
    metadata,
    Column("blob_id", ForeignKey(blobs.c.id, ondelete="CASCADE"), primary_key=True),  # none: never read by a scrub
    Column("checked_at", UtcDateTime, nullable=False),  # when a scrub last read it, whole or not
)

# Versions that were valid until a scrub found damage in them. They become valid again when the damage is gone. Other
# invalid versions were marked by backy2, which can mean that their backup never finished.
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
    Column("host", text(255), nullable=False),      # for people
    Column("scope", short(128, values.Text(128)), nullable=False),  # machine, boot and pid namespace
    Column("pid", number(values.PID), nullable=False),
    Column("pid_started", large(values.COUNT), nullable=False),  # ticks after boot, because pids are reused
    Column("command", text(1024), nullable=False),  # for people
    Column("progress", text(255), nullable=False),  # for people: the step it is at; empty: none
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),  # the database's clock
    Column("kind", short(32, values.Text(32))),  # model.JobKind, or that of a later release; NULL: an older release
    Column("writes_blobs", TrueOrFalse()),  # set or NULL: it may store objects that have no row yet
    Column("names", text(4096, values.NAMES)),  # JSON: of the backups it works on; NULL: an older release
    # Of the step; all NULL: there is none.
    Column("progress_done", large(values.COUNT)),
    Column("progress_total", large(values.COUNT)),  # 0: unknown
    Column("progress_unit", short(16, values.UNIT)),
    Column("progress_s", CheckedType(Double(), values.DURATION)),  # how long it has taken so far
    sqlite_autoincrement=True,
)

job_versions = Table(  # versions that a job holds: they are not removed while the job lives
    "job_versions",
    metadata,
    Column("job_id", reference(), ForeignKey(jobs.c.id, ondelete="CASCADE"), primary_key=True),
    Column("version_id", reference(), ForeignKey(versions.c.id, ondelete="CASCADE"), primary_key=True, index=True),
)

# Finished jobs. A job that ends writes its run in the transaction that removes its row.
runs = Table(
    "runs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("kind", short(32, values.Text(32))),  # of the job
    Column("command", text(1024), nullable=False),  # for people
    Column("names", text(4096, values.NAMES), nullable=False),  # JSON: of the backups it worked on
    Column("host", text(255), nullable=False),  # for people
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime, nullable=False, index=True),  # killed or lost: the last heartbeat
    Column("outcome", short(16, values.OUTCOME), nullable=False),  # model.RunOutcome
    Column("exit_status", number(values.EXIT_STATUS)),  # NULL: unknown
    Column("error_class", short(64, values.Text(64))),  # of backyfs.errors, or of Python
    Column("error", text(4096)),
    Column("report", json_text(values.REPORT)),  # what the command reports with --json; NULL: nothing
    sqlite_autoincrement=True,  # a report that is added later must not get into another run
)

stats = Table(  # one row for each finished backup; it outlives its version
    "stats",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("version_uid", uid(36, values.VERSION_UID), nullable=False, index=True),
    Column("version_name", text(NAME_LENGTH), nullable=False),
    Column("version_size_bytes", large(values.COUNT), nullable=False),
    Column("version_size_blocks", large(values.COUNT), nullable=False),
    Column("bytes_read", large(values.COUNT), nullable=False),
    Column("blocks_read", large(values.COUNT), nullable=False),
    Column("bytes_written", large(values.COUNT), nullable=False),    # plain bytes of new blobs
    Column("blocks_written", large(values.COUNT), nullable=False),
    Column("bytes_stored", large(values.COUNT)),                     # the same after sealing; NULL: not known
    Column("bytes_deduplicated", large(values.COUNT), nullable=False),
    Column("blocks_deduplicated", large(values.COUNT), nullable=False),
    Column("bytes_sparse", large(values.COUNT), nullable=False),
    Column("blocks_sparse", large(values.COUNT), nullable=False),
    Column("duration_s", CheckedType(Double(), values.DURATION), nullable=False),
)

for _table in metadata.sorted_tables:
    for _column in _table.columns:
        if isinstance(_column.type, CheckedType):
            _column.type.place = (_table.name, _column.name)
