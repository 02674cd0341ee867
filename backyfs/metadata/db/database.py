"""The connection to the metadata: transactions, and the check of the schema.

Every transaction is explicit, and writers wait for each other from their beginning: no two of them can take
turns half way, on any engine.
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
    explain_encoding,
    explain_full,
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
from backyfs.values import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine, Insert, Table

__all__ = ["HEAD", "Connection", "Database", "continue_ids", "insert_row", "mapped_errors", "show_url", "sqlite_path"]

_READ = {"postgresql": {"isolation_level": "REPEATABLE READ"}}  # one state for all queries, as the others have
_WRITE = {"sqlite": {"sqlite_begin": "BEGIN IMMEDIATE"}}
# The one lock that writers take. SQLite has its own.
_TAKE_TURN = text("SELECT id FROM repository FOR UPDATE")


class Database:
    """An open metadata database. Connections may be used from any thread, each from one at a time."""

    def __init__(self, url: str) -> None:
        """Prepare to connect; nothing is opened yet.

        Raises:
            DatabaseError: the URL is none, or its driver is not installed.
        """
        self._engine = new_engine(url)
        self._is_closed = False
        # Called in every transaction of `write`; raises where what was read when the repository was opened is gone.
        self.precondition: Callable[[Connection], None] | None = None
        self.has_written = False  # something, by this object: the catalog may have to be told
        self.was_changed = False  # likewise; stays set when the catalog was told
        self.odd_rows = OddRows()  # that were read and left out

    @property
    def engine(self) -> Engine:
        """The engine of SQLAlchemy, through which everything reaches the database.

        Raises:
            RuntimeError: `close` was called. SQLAlchemy itself would connect again, and nothing would close that.
        """
        if self._is_closed:
            raise RuntimeError(f"the database {self.place} was closed and is used again")
        return self._engine

    @property
    def is_read_only(self) -> bool:
        """Whether nobody can write to it: it is a file, and its file system is read-only."""
        return on_read_only_file_system(self._engine.url)

    @property
    def place(self) -> str:
        """What may be shown of where it is: the path of a file, or a URL without its password."""
        return show_url(self._engine.url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection with a transaction that only reads, and sees one state all the time.

        Raises:
            DatabaseError: the database fails.
        """
        with self._transaction(_READ) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection with a transaction that is committed at the end, or rolled back by an exception.

        It begins when no other writer is at work: transactions are to be short.

        Raises:
            DatabaseError: the database fails; nothing of the transaction was done.
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
        """Give a writing transaction as `write` does, where there may be no tables yet.

        Raises:
            DatabaseFullError: there is no room on the disk; nothing of the transaction was done.
            DatabaseError: the database fails; likewise.
        """
        if self.is_read_only:
            raise DatabaseError(
                f"{self.place} is on a read-only file system; make that writable, or copy the file and let the engine "
                "of [MetaBackend] name the copy"
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
        """Look which schema there is: one query, and alembic stays unloaded.

        Raises:
            DatabaseError: the database cannot be asked.
        """
        with mapped_errors(self.place):
            return read_schema(self.engine)

    def check_revision(self) -> None:
        """Make sure that the schema is the program's.

        Raises:
            SchemaOutdatedError: it is older; `backyfs.engine.setup.upgrade` changes that.
            NoRepositoryError: it holds no repository.
            SchemaError: it is of a newer release, or a recovery has not ended.
        """
        schema = self.schema()
        if schema.state is SchemaState.CURRENT:
            self.use_wal()
            return
        if schema.state is SchemaState.NONE:
            raise NoRepositoryError(f"{self.place} holds no repository; run `backyfs initdb` to make one")
        if schema.state is SchemaState.OLDER:
            raise SchemaOutdatedError(f"{self.place} has an older schema; run `backyfs upgrade`")
        if schema.revision == RECOVERING:
            raise SchemaError(
                f"{self.place} is being rebuilt by `backyfs recover`, or was and that did not end; run it again"
            )
        if not str(schema.revision).startswith(OURS):
            found = shown(schema.revision)
            raise SchemaError(
                f"{self.place}: the column version_num of the table alembic_version has {found}, a revision of neither "
                "backy2 nor backyfs; if the other tables are those of backy2, delete that row and run the command again"
            )
        needed = "a newer release" if schema.needs_release is None else f"release {schema.needs_release} or a newer one"
        raise SchemaError(
            f"{self.place} has schema revision {schema.revision}, which is newer than this program's, {HEAD}; "
            f"use {needed} of backyfs"
        )

    def use_wal(self) -> None:
        """Let readers and a writer of an SQLite file work at the same time; it stays so, and else nothing happens.

        Not before the schema is ours: backy2 does not do it, and an upgrade that is refused changes nothing.
        """
        if is_sqlite(self.engine) and not self.is_read_only:
            # On a full disk it stays as it is, and works that way too.
            with suppress(DatabaseFullError), mapped_errors(self.place), self.engine.connect() as connection:
                raw: Any = connection.connection.dbapi_connection
                raw.execute("PRAGMA journal_mode = WAL").close()  # outside of any transaction

    def keep_reserve(self) -> None:
        """Keep a little room beside an SQLite file for `use_reserve`, where the disk has plenty of it.

        The database may be closed.
        """
        path = sqlite_path(self._engine.url)
        if path is not None and not self.is_read_only:
            keep_reserve(path)

    def use_reserve(self) -> None:
        """Use the room that was kept beside an SQLite file if the disk is full. For commands that make room."""
        path = sqlite_path(self.engine.url)
        if path is not None and not self.is_read_only:
            use_reserve(path)

    def close(self) -> None:
        """Close all connections. What uses the database afterwards fails."""
        self._is_closed = True
        self._engine.pool.dispose()  # `engine.dispose` would make a new pool, for nothing


def insert_row(connection: Connection, row: Insert) -> int:
    """Insert a row and return the number that the database gave it."""
    key = connection.execute(row).inserted_primary_key
    assert key is not None
    return int(key[0])


def continue_ids(connection: Connection, table: Table) -> None:
    """Let PostgreSQL number new rows after those that came with their ids; the others do so by themselves."""
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
    """Make DatabaseErrors of what SQLAlchemy raises; `place` is that of the database, for messages."""
    try:
        yield
    except DBAPIError as error:
        if is_busy(error):
            raise DatabaseBusyError("the database is in use by another command that does not let others in") from error
        if (full := explain_full(error, place)) is not None:
            raise DatabaseFullError(full) from error
        if (encoding := explain_encoding(error, place)) is not None:
            raise DatabaseError(encoding) from error
        raise _database_error(error) from error
    except SQLAlchemyError as error:
        raise _database_error(error) from error
    except UnicodeError as error:
        raise DatabaseError(f"text that is not UTF-8 cannot be stored: {error}") from error


def _database_error(error: SQLAlchemyError) -> DatabaseError:
    # The driver's words alone: SQLAlchemy adds the statement and its parameters, among them wrapped keys.
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return DatabaseError(f"database: {reason.splitlines()[0] if reason else type(error).__name__}")
