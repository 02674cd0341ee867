"""Take a database to the program's schema: the part that is SQL. `backyfs.engine.setup.upgrade` decides when.

SQLite and PostgreSQL do it in one transaction. MariaDB commits at every CREATE, ALTER and RENAME, so there each
step does only what is not done yet, and a run that was killed is continued by the next one.
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
from backyfs.files import create_file, give_name, require_no_device_directory
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
    is_of_backy2,
)
from backyfs.metadata.db.tables import blobs, metadata
from backyfs.metadata.records.blobs import sample_blob_uids
from backyfs.metadata.records.identity import require_release
from backyfs.metadata.records.jobs import list_live_jobs, this_process
from backyfs.metadata.schema.adoption import adopt
from backyfs.metadata.schema.backy2 import Backy2Database
from backyfs.metadata.schema.schema import differences, stamp, upgrade_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from sqlalchemy import Connection

    from backyfs.metadata.db.database import Database
    from backyfs.metadata.records.jobs import Job
    from backyfs.metadata.schema.adoption import AdoptionReport
    from backyfs.model import BlobUid, Progress

_LOCK_NUMBER = 0x6261636B79  # of an advisory lock in PostgreSQL, which has one set of them in each database
_LOCK_PATIENCE_S = 2         # for tables that others use; longer is waited elsewhere, with words
_CACHE_KIB = 48 << 10        # of SQLite: rows go to indexes by random uids and fingerprints
_MOSTLY_FREE = 0.5           # of the pages of an SQLite file: more than that is given back

_log = logging.getLogger(__name__)


def old_tables(connection: Connection, block_size: int) -> Backy2Database | None:
    """Return the tables of backy2 in a database, under their names or set aside; None: there are none."""
    if not is_of_backy2(connection):
        return None
    prefix = ASIDE if inspect(connection).has_table(f"{ASIDE}blocks") else ""
    return Backy2Database(connection, block_size, prefix=prefix)


def known_blob_uids(connection: Connection, count: int) -> list[BlobUid]:
    """Return the uids of up to `count` blobs of a database, of whatever schema."""
    source = old_tables(connection, 1)  # the size of a block is of no concern here
    return sample_blob_uids(connection, count) if source is None else source.sample_blob_uids(count)


def jobs_in(connection: Connection) -> list[Job]:
    """Return the live jobs of a database, of whatever schema."""
    return list_live_jobs(connection, this_process()) if inspect(connection).has_table("jobs") else []


def is_undone_by_rollback(database: Database) -> bool:
    """Return whether an upgrade that fails leaves no trace in the database."""
    return has_transactional_ddl(database.engine)


def is_half_way(connection: Connection) -> bool:
    """Return whether an upgrade was killed, on MariaDB, after it had taken over the rows."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    return bool(connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == CLEARING_AWAY)


def take_tables(connection: Connection) -> None:
    """Make sure that no transaction of others stands in the way of changing the tables of backy2.

    On PostgreSQL they stay locked until the end. MariaDB lets go of locks when a table is renamed.

    Raises:
        DatabaseError: some transaction has one of them; nothing was waited for longer than a moment.
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
    """Give a connection in a transaction, for an upgrade that no other one does at the same time.

    It is rolled back unless the caller commits.

    Raises:
        DatabaseBusyError: another command has the lock; nothing was waited for.
    """
    with mapped_errors(database.place):
        if is_sqlite(database.engine):
            with _locked_sqlite(database) as connection:
                yield connection
            return
        # Nothing but the lock is in this connection, and no transaction that a server could find idle.
        alone = {"isolation_level": "AUTOCOMMIT"}
        with (
            database.engine.connect().execution_options(**alone) as holder,
            database.engine.connect() as connection,
        ):
            if not _try_lock(holder):
                raise DatabaseBusyError(f"{database.place} is being upgraded by another command")
            try:
                yield connection
            finally:
                holder.invalidate()  # the lock goes with the connection


@contextmanager
def _locked_sqlite(database: Database) -> Iterator[Connection]:
    options = {"sqlite_begin": "BEGIN IMMEDIATE"}
    with database.engine.connect().execution_options(**options) as connection:
        raw: Any = connection.connection.dbapi_connection
        timeout = raw.execute("PRAGMA busy_timeout").fetchone()[0]
        raw.execute("PRAGMA busy_timeout = 0")
        # Tables that others refer to are made anew; nothing can be switched within a transaction.
        raw.execute("PRAGMA foreign_keys = OFF")
        raw.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        try:
            connection.begin()
        finally:
            raw.execute(f"PRAGMA busy_timeout = {timeout}")
        try:
            yield connection
            connection.rollback()  # what the caller has not committed
        finally:
            connection.invalidate()  # without foreign keys it is of no use to anybody else


def _try_lock(connection: Connection) -> bool:
    if connection.dialect.name == "postgresql":
        return bool(connection.execute(text("SELECT pg_try_advisory_lock(:number)"), {"number": _LOCK_NUMBER}).scalar())
    # Names of locks are those of the whole server.
    query = "SELECT GET_LOCK(CONCAT('backyfs upgrade ', LEFT(DATABASE(), 40)), 0)"
    return connection.execute(text(query)).scalar() == 1


def upgrade_schema(
    connection: Connection,
    *,
    block_size: int,
    hash_function: str,
    digest_bytes: int,
    now: datetime,
    opens: Callable[[bytes], bool] | None,
    progress: Progress,
) -> AdoptionReport | None:
    """Take the database to HEAD, check it, and commit. Return what was taken over from backy2, if anything was.

    Where this raises, the program that used the database before can use it as before.

    Raises:
        SchemaError: configuration and rows contradict each other.
        DatabaseError: a step failed, or the result is not right.
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
            report = _run(connection, before, block_size, hash_function, digest_bytes, now, opens, progress)
            _require_own_schema(connection)
            if not has_transactional_ddl(connection.engine):
                stamp(connection, CLEARING_AWAY)
                connection.commit()  # all that was taken over, at once
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
    """Write a copy of an SQLite database to a new file, mode 0600, and sync it. Others may use the database.

    Raises:
        DatabaseError: that failed; there is no such file.
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
            give_name(draft, target)
        finally:
            os.close(fd)
            os.unlink(draft)
    except (OSError, sqlite3.Error) as error:
        raise DatabaseError(
            f"the metadata cannot be copied to {target}: {error}; nothing was changed. Name another directory with "
            "`backyfs upgrade --copy-to`"
        ) from error


def give_back_space(database: Database) -> None:
    """Make an SQLite file smaller whose rows have become few. Without this it works as well."""
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
                _log.info("the file of the database stays as large as it is: %s", error)


def _run(
    connection: Connection,
    before: str | None,
    block_size: int,
    hash_function: str,
    digest_bytes: int,
    now: datetime,
    opens: Callable[[bytes], bool] | None,
    progress: Progress,
) -> AdoptionReport | None:
    if holds_repository(connection):
        if before is None or before in OF_BACKY2:
            # As `backy2 initdb` leaves it. Its revisions are not to be run on our tables.
            _log.warning("the database holds a repository of backyfs and says revision %s; that is put right", before)
            before = FIRST_OF_OURS  # at least; those that follow do only what is not done
        upgrade_tables(connection, before)
        require_release(connection)
        return None
    is_aside = inspect(connection).has_table(f"{ASIDE}blocks")  # a run was killed on MariaDB
    # Every revision looks what there is, so all of them are run: the one recorded is not to be relied on.
    upgrade_tables(connection, LAST_OF_BACKY2 if is_aside else None)
    with _without_fingerprint_index(connection):
        return adopt(
            connection,
            Backy2Database(connection, block_size, prefix=ASIDE),
            block_size=block_size,
            hash_function=hash_function,
            digest_bytes=digest_bytes,
            now=now,
            opens=opens,
            progress=progress,
        )


@contextmanager
def _without_fingerprint_index(connection: Connection) -> Iterator[None]:
    """Make the index of random values after its rows: that takes a tenth of the time. On MariaDB it would commit."""
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
            f"the schema would not be the one it should be: {found}; nothing was changed. Was another program used "
            "on this database? If not, please report this"
        )


def _is_of_others(difference: Any) -> bool:
    """Return whether a difference is only a table that is not ours, or one of backy2 that was set aside."""
    if not isinstance(difference, tuple) or difference[0] not in ("remove_table", "remove_index"):
        return False
    table = str((difference[1] if difference[0] == "remove_table" else difference[1].table).name)
    return table not in metadata.tables and table not in BACKY2_TABLES


def _check_sqlite(connection: Connection) -> None:
    broken = connection.execute(text("PRAGMA foreign_key_check")).first()
    if broken is not None:
        raise DatabaseError(f"a row of {broken[0]} refers to nothing after the upgrade; please report this")
    result = connection.execute(text("PRAGMA integrity_check(1)")).scalar()
    if result != "ok":
        raise DatabaseError(f"the database is damaged: {result}")


def _put_back(connection: Connection, tables: frozenset[str], revision: str | None) -> None:
    """Undo on MariaDB what no rollback undoes there, so that the program of before finds its tables.

    `tables` and `revision` are those of before. Columns and tables that were added stay: backy2 does not mind them.
    """
    names = set(inspect(connection).get_table_names())
    if f"{ASIDE}blocks" in names:  # there was no repository of ours before: the caller has looked
        for table in reversed(metadata.sorted_tables):
            connection.execute(text(f"DROP TABLE IF EXISTS {table.name}"))
        back = ", ".join(f"{ASIDE}{name} TO {name}" for name in BACKY2_TABLES if f"{ASIDE}{name}" in names)
        connection.execute(text(f"RENAME TABLE {back}"))
    elif "stats_old" in names - tables:  # between two revisions; all rows are in it still
        connection.execute(text("DROP TABLE IF EXISTS stats"))
        connection.execute(text("RENAME TABLE stats_old TO stats"))
    if "alembic_version" in tables:
        stamp(connection, revision)
    else:
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))
    connection.commit()
