"""The connection to the metadata: engines, transactions, and the check of the schema's revision.

Every transaction is explicit. On SQLite a write takes its lock when it begins (BEGIN IMMEDIATE), so that
two writers wait for each other instead of failing half way.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from backyfs.errors import DatabaseError, SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Engine, Insert

__all__ = ["HEAD", "Connection", "Database", "insert_row", "show_url", "sqlite_path"]

HEAD = "backyfs_0001"  # the revision this program works with; a test compares it with the migrations
_BUSY_TIMEOUT_MS = 60_000
_WRITE = {"sqlite_begin": "BEGIN IMMEDIATE"}


class Database:
    """An open metadata database. Connections may be used from any thread, each from one at a time."""

    def __init__(self, url: str) -> None:
        """Prepare to connect; nothing is opened yet.

        Raises:
            DatabaseError: the URL is none, or its driver is not installed.
        """
        self.engine = _create_engine(url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection with a transaction that only reads.

        Raises:
            DatabaseError: the database fails.
        """
        with _mapped_errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection with a transaction that is committed at the end, or rolled back by an exception.

        Raises:
            DatabaseError: the database fails; nothing of the transaction was done.
        """
        with (
            _mapped_errors(),
            self.engine.connect().execution_options(**_WRITE) as connection,
            connection.begin(),
        ):
            yield connection

    def check_revision(self) -> None:
        """Compare the schema's revision with the program's: one query, and alembic stays unloaded.

        Raises:
            SchemaError: there is no repository here, or it is of another release.
        """
        found = self._revision()
        if found == HEAD:
            return
        place = show_url(self.engine.url)
        if found is None:
            raise SchemaError(f"{place} holds no repository; run `backyfs init` to make one")
        raise SchemaError(
            f"{place} has schema revision {found}, this program works with {HEAD}; "
            "use the release of backyfs that belongs to it"
        )

    def _revision(self) -> str | None:
        path = sqlite_path(self.engine.url)
        if path is not None and not os.path.exists(path):  # connecting would make an empty file
            return None
        try:
            with self.engine.connect() as connection:
                return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
        except DBAPIError as error:
            if "alembic_version" in str(error.orig):  # no such table
                return None
            raise _database_error(error) from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.pool.dispose()  # `engine.dispose` would make a new pool, for nothing


def insert_row(connection: Connection, row: Insert) -> int:
    """Insert a row and return the number that the database gave it."""
    key = connection.execute(row).inserted_primary_key
    assert key is not None
    return int(key[0])


def sqlite_path(url: URL) -> str | None:
    """Return the path of the file of an SQLite URL, None for other databases."""
    return url.database if url.get_backend_name() == "sqlite" else None


def show_url(url: URL) -> str:
    """Return a URL as it may be shown: without its password; for SQLite the path of the file."""
    return sqlite_path(url) or url.render_as_string(hide_password=True)


def _create_engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise DatabaseError(
            "the engine of [MetaBackend] is no database URL; example: sqlite:///backyfs.sqlite"
        ) from error
    try:
        engine = create_engine(parsed)
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseError(
            f"database {show_url(parsed)} needs a driver that is not installed: {error}"
        ) from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # else sqlite3 commits behind our back, for one before every DDL
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {_BUSY_TIMEOUT_MS}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives power loss
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("sqlite_begin", "BEGIN"))


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        raise _database_error(error) from error


def _database_error(error: SQLAlchemyError) -> DatabaseError:
    # The driver's words alone: SQLAlchemy adds the statement and its parameters, among them wrapped keys.
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return DatabaseError(f"database: {reason.splitlines()[0] if reason else type(error).__name__}")
