"""Connect to the metadata database: transactions, and the check of the schema.

Every transaction is explicit. Writers wait for each other from the start of their transactions, so on every engine
two of them can never interleave.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from backyfs.errors import (
    DatabaseBusyError,
    DatabaseError,
    DatabaseFullError,
    NoRepositoryError,
    SchemaError,
    SchemaOutdatedError,
)
from backyfs.metadata.db.engines import (
    disk_full_error,
    encoding_error,
    is_busy,
    is_sqlite,
    new_engine,
    on_read_only_file_system,
    show_url,
    sqlite_path,
)
from backyfs.metadata.db.oddrows import OPTION, OddRows
from backyfs.metadata.db.revisions import HEAD, OURS, RECOVERING, Schema, SchemaState, read_schema
from backyfs.metadata.db.room import keep_reserve, use_reserve
from backyfs.remedies import Advice
from backyfs.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine, Insert, Table

__all__ = ["HEAD", "Connection", "Database", "continue_ids", "insert_row", "mapped_errors", "show_url", "sqlite_path"]

_READ = {"postgresql": {"isolation_level": "REPEATABLE READ"}}  # one snapshot for all queries, as on the others
_WRITE = {"sqlite": {"sqlite_begin": "BEGIN IMMEDIATE"}}
# The lock that all writers take. SQLite has its own.
_TAKE_TURN = text("SELECT id FROM repository FOR UPDATE")


class Database:
    """An open metadata database. Any thread may use a connection, but only one at a time."""

    def __init__(self, url: str) -> None:
        """Prepare to connect; nothing is opened yet.

        Raises:
            DatabaseError: the URL is invalid, or its driver is not installed.
        """
        self._engine = new_engine(url)
        self._is_closed = False
        # Called in every `write` transaction; raises if the state read when the repository was opened is gone.
        self.precondition: Callable[[Connection], None] | None = None
        self.has_written = False   # this object wrote something, so the catalog may be out of date
        self.was_changed = False   # the same, but stays set when the catalog was updated
        self.odd_rows = OddRows()  # rows that were read and skipped

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine, through which all access goes.

        Raises:
            RuntimeError: `close` was called. SQLAlchemy would connect again, and nothing would close that connection.
        """
        if self._is_closed:
            raise RuntimeError(f"the database {self.place} is used after it was closed")
        return self._engine

    @property
    def is_read_only(self) -> bool:
        """Whether the database is a file on a read-only file system."""
        return on_read_only_file_system(self._engine.url)

    @property
    def place(self) -> str:
        """Where it is, for messages: the path of a file, or a URL without its password."""
        return show_url(self._engine.url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection with a read-only transaction that sees one consistent state.

        Raises:
            DatabaseError: the database fails.
        """
        with self._transaction(_READ) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Yield a connection with a transaction that is committed at the end, or rolled back by an exception.

        It waits for all other writers, so transactions must be short.

        Raises:
            DatabaseError: the database failed; the transaction was rolled back.
        """
        with self.begin() as connection:
            if not is_sqlite(self.engine):
                connection.execute(_TAKE_TURN)
            if self.precondition is not None:
                self.precondition(connection)
            self.has_written = self.was_changed = True
            yield connection

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a write transaction like `write`, for a database that may not have tables yet.

        Raises:
            DatabaseFullError: the disk is full; the transaction was rolled back.
            DatabaseError: the database failed; the transaction was rolled back.
        """
        if self.is_read_only:
            raise DatabaseError(
                "is on a read-only file system",
                subject=self.place,
                remedy="make it writable, or copy the file and set the copy as the engine of [MetaBackend]",
            )
        with self._transaction(_WRITE) as connection:
            yield connection

    @contextmanager
    def _transaction(self, options_of: dict[str, dict[str, str]]) -> Iterator[Connection]:
        options: dict[str, Any] = {**options_of.get(self.engine.dialect.name, {}), OPTION: self.odd_rows}
        with (
            mapped_errors(self.place),
            self.engine.connect().execution_options(**options) as connection,
            connection.begin(),
        ):
            yield connection

    def schema(self) -> Schema:
        """Return the schema of the database, with one query and without loading alembic.

        Raises:
            DatabaseError: the query fails.
        """
        with mapped_errors(self.place):
            return read_schema(self.engine)

    def check_revision(self) -> None:
        """Make sure that the database has this program's schema.

        Raises:
            SchemaOutdatedError: the schema is older; `backyfs.engine.setup.upgrade` can upgrade it.
            NoRepositoryError: the database contains no repository.
            SchemaError: the schema is of a newer release, or a recovery did not finish.
        """
        schema = self.schema()
        if schema.state is SchemaState.CURRENT:
            self.use_wal()
            return
        if schema.state is SchemaState.NONE:
            raise NoRepositoryError("holds no repository", subject=self.place, remedy=Advice.INITIALIZE_DATABASE())
        if schema.state is SchemaState.OLDER:
            raise SchemaOutdatedError("has an older schema", subject=self.place, remedy=Advice.UPGRADE_DATABASE())
        raise self._wrong_schema(schema)

    def _wrong_schema(self, schema: Schema) -> SchemaError:
        """Return the error for a schema that this program can neither use nor upgrade."""
        if schema.revision == RECOVERING:
            return SchemaError(
                "is incomplete: a recovery is still running or did not finish",
                subject=self.place,
                remedy=Advice.RECOVER_AGAIN(),
            )
        if not str(schema.revision).startswith(OURS):
            found = shown(schema.revision)
            return SchemaError(
                f"version_num in the table alembic_version is {found}, which is neither a revision of backy2 nor of "
                "backyfs",
                subject=f"{self.place}:",
                remedy="if the other tables are backy2's, delete that row and run the command again",
            )
        needed = "a newer release" if schema.needs_release is None else f"release {schema.needs_release} or later"
        return SchemaError(
            f"has schema revision {schema.revision}, which is newer than this program's, {HEAD}",
            subject=self.place,
            remedy=f"use {needed} of backyfs",
        )

    def use_wal(self) -> None:
        """Let readers and a writer of an SQLite file work at the same time. The setting is permanent.

        Call this only once the schema is ours: backy2 does not use WAL, and a refused upgrade must change nothing.
        """
        if is_sqlite(self.engine) and not self.is_read_only:
            # On a full disk the mode stays unchanged, which also works.
            with suppress(DatabaseFullError), mapped_errors(self.place), self.engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute("PRAGMA journal_mode = WAL").close()  # outside of any transaction

    def keep_reserve(self) -> None:
        """Reserve a little space next to an SQLite file for `use_reserve`, if the disk has plenty.

        The database may be closed.
        """
        path = sqlite_path(self._engine.url)
        if path is not None and not self.is_read_only:
            keep_reserve(path)

    def use_reserve(self) -> None:
        """Release the reserve next to an SQLite file if the disk is full. For commands that free space."""
        path = sqlite_path(self.engine.url)
        if path is not None and not self.is_read_only:
            use_reserve(path)

    def close(self) -> None:
        """Close all connections. Any later use of the database fails."""
        self._is_closed = True
        self._engine.pool.dispose()  # `engine.dispose` would needlessly create a new pool


def insert_row(connection: Connection, row: Insert) -> int:
    """Insert a row and return its id."""
    key = connection.execute(row).inserted_primary_key
    assert key is not None
    return int(key[0])


def continue_ids(connection: Connection, table: Table) -> None:
    """Let PostgreSQL number new rows after the highest id that was inserted. The other engines do so automatically."""
    key = table.autoincrement_column
    if connection.dialect.name != "postgresql" or key is None:
        return
    highest = connection.execute(select(func.max(key))).scalar()
    if highest is not None:
        connection.execute(
            text("SELECT setval(pg_get_serial_sequence(:table, :column), :highest)"),
            {"table": table.name, "column": key.name, "highest": highest},
        )


@contextmanager
def mapped_errors(place: str) -> Iterator[None]:
    """Turn errors of SQLAlchemy into DatabaseErrors; `place` is the place of the database, for messages."""
    try:
        yield
    except DBAPIError as error:
        if is_busy(error):
            raise DatabaseBusyError("is locked by another command", subject="the database") from error
        explained = disk_full_error(error, place) or encoding_error(error, place)
        if explained is not None:
            raise explained from error
        raise _database_error(error) from error
    except SQLAlchemyError as error:
        raise _database_error(error) from error
    except UnicodeError as error:
        raise DatabaseError(f"cannot store text that is not UTF-8: {error}", subject="the database") from error


def _database_error(error: SQLAlchemyError) -> DatabaseError:
    # Only the driver's message: SQLAlchemy adds the statement and its parameters, which include wrapped keys.
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return DatabaseError(reason.splitlines()[0] if reason else type(error).__name__, subject="database:")
