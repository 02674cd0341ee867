"""Upgrade a database to the program's schema: the SQL part. `backyfs.engine.setup.upgrade` decides when.

On SQLite and PostgreSQL this is one transaction. MariaDB commits at every CREATE, ALTER and RENAME, so each step does
only what is not done yet, and the next run continues one that was killed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy import inspect, text

from backyfs.errors import DatabaseBusyError, DatabaseError
from backyfs.files import create_file, link_durably, require_no_device_directory
from backyfs.metadata.db.database import mapped_errors
from backyfs.metadata.db.engines import has_transactional_ddl, is_sqlite, sqlite_path
from backyfs.metadata.db.revisions import (
    ASIDE,
    BACKY2_TABLES,
    CLEARING_AWAY,
    FIRST_OF_OURS,
    HEAD,
    LAST_OF_BACKY2,
    OF_BACKY2,
    holds_repository,
    is_backy2_database,
)
from backyfs.metadata.db.tables import blobs, metadata
from backyfs.metadata.records.blobs import sample_blob_uids
from backyfs.metadata.records.identity import require_release
from backyfs.metadata.records.jobs import list_live_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.schema.adoption import adopt
from backyfs.metadata.schema.backy2 import Backy2Database
from backyfs.metadata.schema.schema import differences, stamp, upgrade_tables
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from backyfs.metadata.db.database import Database
    from backyfs.metadata.records.jobs import LiveJob
    from backyfs.metadata.schema.adoption import AdoptionReport, BlockFacts
    from backyfs.model import BlobUid, Progress

_LOCK_NUMBER = 0x6261636B79  # of an advisory lock in PostgreSQL, where these locks are per database
_LOCK_PATIENCE_S = 2         # for tables in use; the caller waits longer and reports it
_CACHE_KIB = 48 << 10        # of SQLite, because rows are inserted into indexes of random uids and fingerprints
_MOSTLY_FREE = 0.5           # compact an SQLite file if a larger part of its pages is free

_log = logging.getLogger(__name__)


def old_tables(connection: Connection, block_size: int) -> Backy2Database | None:
    """Return the tables of backy2 in a database, renamed or not; None if there are none."""
    if not is_backy2_database(connection):
        return None
    prefix = ASIDE if inspect(connection).has_table(f"{ASIDE}blocks") else ""
    return Backy2Database(connection, block_size, prefix=prefix)


def known_blob_uids(connection: Connection, count: int) -> list[BlobUid]:
    """Return the uids of up to `count` blobs of a database with any schema."""
    source = old_tables(connection, 1)  # the block size does not matter here
    return sample_blob_uids(connection, count) if source is None else source.sample_blob_uids(count)


def live_jobs_of(connection: Connection) -> list[LiveJob]:
    """Return the live jobs of a database with any schema."""
    return list_live_jobs(connection, this_process()) if inspect(connection).has_table("jobs") else []


def has_transactional_upgrade(database: Database) -> bool:
    """Return whether a failed upgrade leaves no trace in the database."""
    return has_transactional_ddl(database.engine)


def is_half_done(connection: Connection) -> bool:
    """Return whether an upgrade on MariaDB was killed after it had taken over the rows."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    return bool(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == CLEARING_AWAY)


def require_unused_tables(connection: Connection) -> None:
    """Make sure that no other transaction prevents changes to the tables of backy2.

    On PostgreSQL they stay locked until the end. MariaDB releases locks when a table is renamed.

    Raises:
        DatabaseError: another transaction uses one of the tables. This waits for two seconds at most.
    """
    names = set(inspect(connection).get_table_names())
    tables = [name for name in BACKY2_TABLES if name in names]
    if not tables or is_sqlite(connection.engine):
        return
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_PATIENCE_S}s'"))
        connection.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
    else:
        connection.execute(text(f"SET SESSION lock_wait_timeout = {_LOCK_PATIENCE_S}"))
        connection.execute(text("LOCK TABLES " + ", ".join(f"{name} WRITE" for name in tables)))
        connection.execute(text("UNLOCK TABLES"))


@contextmanager
def upgrade_lock(database: Database) -> Iterator[Connection]:
    """Yield a connection in a transaction for an upgrade, with a lock against concurrent upgrades.

    The transaction is rolled back unless the caller commits.

    Raises:
        DatabaseBusyError: another command has the lock. This does not wait.
    """
    with mapped_errors(database.place):
        if is_sqlite(database.engine):
            with _locked_sqlite(database) as connection:
                yield connection
            return
        # This connection only holds the lock, and has no transaction that the server could consider idle.
        alone = {"isolation_level": "AUTOCOMMIT"}
        with (
            database.engine.connect().execution_options(**alone) as holder,
            database.engine.connect() as connection,
        ):
            if not _try_lock(holder):
                raise DatabaseBusyError("is being upgraded by another command", subject=database.place)
            try:
                yield connection
            finally:
                holder.invalidate()  # closing the connection releases the lock


@contextmanager
def _locked_sqlite(database: Database) -> Iterator[Connection]:
    options = {"sqlite_begin": "BEGIN IMMEDIATE"}
    with database.engine.connect().execution_options(**options) as connection:
        raw: Any = connection.connection.dbapi_connection
        timeout = raw.execute("PRAGMA busy_timeout").fetchone()[0]
        raw.execute("PRAGMA busy_timeout = 0")
        # Referenced tables are recreated. The pragma has no effect inside a transaction.
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        try:
            connection.begin()
        finally:
            raw.execute(f"PRAGMA busy_timeout = {timeout}")
        try:
            yield connection
            connection.rollback()  # unless the caller has committed
        finally:
            connection.invalidate()  # a connection without foreign keys must not be reused


def _try_lock(connection: Connection) -> bool:
    if connection.dialect.name == "postgresql":
        return bool(connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": _LOCK_NUMBER}).scalar())
    # Lock names are shared by the whole server.
    query = "SELECT GET_LOCK(CONCAT('backyfs upgrade ', LEFT(DATABASE(), 40)), 0)"
    return connection.execute(text(query)).scalar() == 1


def upgrade_schema(
    connection: Connection,
    facts: BlockFacts,
    *,
    now: datetime,
    opens: Callable[[bytes], bool] | None,
    progress: Progress,
) -> AdoptionReport | None:
    """Upgrade the database to HEAD, check it, and commit. Return what was taken over from backy2, if anything was.

    If this raises, the program that used the database before can still use it.

    Raises:
        SchemaError: configuration and rows contradict each other.
        DatabaseError: a step failed, or the result is wrong.
    """
    tables = frozenset(inspect(connection).get_table_names())
    before = None
    if "alembic_version" in tables:
        before = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    taken_over = before == CLEARING_AWAY or holds_repository(connection)
    clears = before == CLEARING_AWAY
    try:
        report = None
        if not clears:
            report = _run(connection, before, facts, now, opens, progress)
            _require_own_schema(connection)
            if not has_transactional_ddl(connection.engine):
                stamp(connection, CLEARING_AWAY)
                connection.commit()  # all rows in one transaction
                taken_over = True
        for name in BACKY2_TABLES:
            connection.execute(text(f"DROP TABLE IF EXISTS {ASIDE}{name}"))
        stamp(connection, HEAD)
        if is_sqlite(connection.engine):
            _check_sqlite(connection)
        connection.commit()
    except BaseException:
        connection.rollback()
        if not has_transactional_ddl(connection.engine) and not taken_over:
            _put_back(connection, tables, before)
        raise
    return report


def copy_sqlite(database: Database, target: str) -> None:
    """Copy an SQLite database to a new file with mode 0600, and sync it. Others may use the database at the same time.

    Raises:
        DatabaseError: the copy failed, and was not created.
    """
    path = sqlite_path(database.engine.url)
    draft = f"{target}.new"
    try:
        require_no_device_directory(target)
        fd = create_file(draft)
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as source, closing(
                sqlite3.connect(draft)
            ) as copy:
                source.backup(copy)
            os.fsync(fd)
            link_durably(draft, target)
        finally:
            os.close(fd)
            os.unlink(draft)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseError(
            f"cannot be copied to {target}: {error}. Nothing was changed",
            subject="the metadata",
            remedy=Advice.COPY_ELSEWHERE(),
        ) from error


def compact_file(database: Database) -> None:
    """Compact an SQLite file that has become mostly empty. This is optional."""
    if not is_sqlite(database.engine):
        return
    database.use_wal()
    with database.engine.connect() as connection:
        raw: Any = connection.connection.dbapi_connection
        pages = raw.execute("PRAGMA page_count").fetchone()[0]
        free = raw.execute("PRAGMA freelist_count").fetchone()[0]
        if free > pages * _MOSTLY_FREE:
            try:
                raw.execute("VACUUM")
                raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
            except sqlite3.Error as error:
                _log.info("the file of the database cannot be compacted: %s", error)


def _run(
    connection: Connection,
    before: str | None,
    facts: BlockFacts,
    now: datetime,
    opens: Callable[[bytes], bool] | None,
    progress: Progress,
) -> AdoptionReport | None:
    if holds_repository(connection):
        if before is None or before in OF_BACKY2:
            # `backy2 initdb` was run on it. Its revisions must not be run on our tables.
            _log.warning("the database contains a repository of backyfs but has revision %s; correcting it", before)
            before = FIRST_OF_OURS  # at least; later revisions only do what is missing
        upgrade_tables(connection, before)
        require_release(connection)
        return None
    is_aside = inspect(connection).has_table(f"{ASIDE}blocks")  # a run was killed on MariaDB
    # Run all revisions, because the recorded one is unreliable. Each of them checks what exists already.
    upgrade_tables(connection, LAST_OF_BACKY2 if is_aside else None)
    with _without_fingerprint_index(connection):
        source = Backy2Database(connection, facts.block_size, prefix=ASIDE)
        return adopt(connection, source, facts, now=now, opens=opens, progress=progress)


@contextmanager
def _without_fingerprint_index(connection: Connection) -> Iterator[None]:
    """Create the index of random values after the rows, in a tenth of the time. On MariaDB that would commit."""
    if not has_transactional_ddl(connection.engine):
        yield
        return
    (index,) = (index for index in blobs.indexes if index.columns.keys() == ["fingerprint"])
    index.drop(connection)
    yield
    index.create(connection)


def _require_own_schema(connection: Connection) -> None:
    found = [difference for difference in differences(connection) if not _is_of_others(difference)]
    if found:
        raise DatabaseError(
            f"would be wrong: {found}. Nothing was changed",
            subject="the upgraded schema",
            remedy="if no other program has used this database, please report this",
        )


def _is_of_others(difference: Any) -> bool:
    """Return whether a difference is only a table that is not ours, or a renamed table of backy2."""
    if not isinstance(difference, tuple) or difference[0] not in ("remove_table", "remove_index"):
        return False
    table = str((difference[1] if difference[0] == "remove_table" else difference[1].table).name)
    return table not in metadata.tables and table not in BACKY2_TABLES


def _check_sqlite(connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).first()
    if broken is not None:
        raise DatabaseError(
            f"a row of {broken[0]} refers to nothing after the upgrade", remedy="please report this"
        )
    result = connection.execute(text("PRAGMA integrity_check(1)")).scalar()
    if result != "ok":
        raise DatabaseError(f"is damaged: {result}", subject="the database")


def _put_back(connection: Connection, tables: frozenset[str], revision: str | None) -> None:
    """Undo the changes that MariaDB cannot roll back, so that the previous program finds its tables.

    `tables` and `revision` are from before the upgrade. Added columns and tables stay: backy2 ignores them.
    """
    names = set(inspect(connection).get_table_names())
    if f"{ASIDE}blocks" in names:  # the caller has made sure that there was no repository of ours
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE IF EXISTS {table.name}"))
        back = ", ".join(f"{ASIDE}{name} TO {name}" for name in BACKY2_TABLES if f"{ASIDE}{name}" in names)
        connection.execute(text(f"RENAME TABLE {back}"))
    elif "stats_old" in names - tables:  # between two revisions; it still contains all rows
        connection.execute(text("DROP TABLE IF EXISTS stats"))
        connection.execute(text("RENAME TABLE stats_old TO stats"))
    if "alembic_version" in tables:
        stamp(connection, revision)
    else:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    connection.commit()
