"""Create database engines: choose the driver for a URL and prepare each connection.

This module handles the differences between SQLite, PostgreSQL and MariaDB in connecting and locking. Queries are the
same for all of them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from backyfs.config import mistake_in_url
from backyfs.errors import DatabaseError, DatabaseFullError
from backyfs.metadata.db.room import lacks_room
from backyfs.metadata.db.sqlite import (
    CHECK_PATIENCE_MS,
    FULL,
    ROOM_BYTES,
    FileOpener,
    ReadingConnection,
    begin_reading,
    full_error,
    read_only_opener,
    text_or_bytes,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg",
            "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}
_EXTRAS = {"postgresql": "postgresql", "mysql": "mysql"}  # backend -> extra of this package with its driver
_EXAMPLES = (
    "examples: sqlite:////var/lib/backyfs/backyfs.sqlite, postgresql://user:password@host/name, "
    "mysql://user:password@host/name"
)
_SHOWN_PARAMETERS = frozenset({"host", "port", "dbname", "service", "unix_socket", "sslmode", "charset"})
_PATIENCE_S = 60  # a statement waits this long for another transaction
_CONNECT_TIMEOUT_S = 15
_POSTGRESQL_LOCK_NOT_AVAILABLE = "55P03"
_POSTGRESQL_UNTRANSLATABLE = "22P05"
_MARIADB_LOCK_WAIT_TIMEOUT = 1205
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
# The disk of the server is full.
_POSTGRESQL_DISK_FULL = "53100"
_MARIADB_DISK_FULL = (1021, 1114)  # ER_DISK_FULL, ER_RECORD_FILE_FULL


def new_engine(url: str) -> Engine:
    """Return an engine for a URL; nothing is opened yet.

    A driver in the URL is replaced by ours: URLs of backy2 may name psycopg2, which need not be installed.

    Raises:
        DatabaseError: the URL is invalid, or its driver is not installed.
    """
    parsed = _parse(url)
    try:
        engine = create_engine(parsed, **_options(parsed))
    except ImportError as error:
        raise _driver_missing(parsed, error) from error
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, NoSuchModuleError) and "plugin" not in parsed.query:
            raise _driver_missing(parsed, error) from error
        raise _wrong_parameter(parsed) from None
    event.listen(engine, "do_connect", _connect)
    if is_sqlite(engine):
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        event.listen(engine, "checkin", _close_reading)
    elif engine.dialect.name == "mysql":
        event.listen(engine, "connect", _prepare_mariadb)
    else:
        event.listen(engine, "connect", _refuse_sql_ascii, insert=True)  # before SQLAlchemy asks for anything
        event.listen(engine, "connect", _give_odd_times_as_text)
    return engine


def on_read_only_file_system(url: URL) -> bool:
    """Return whether a database is an SQLite file on a read-only file system."""
    path = sqlite_path(url)
    if not path:
        return False
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:  # the file does not exist
        return False


def is_sqlite(engine: Engine) -> bool:
    """Return whether an engine is for SQLite."""
    return engine.dialect.name == "sqlite"


def has_transactional_ddl(engine: Engine) -> bool:
    """Return whether a rollback undoes CREATE, ALTER and DROP. MariaDB commits at each of them."""
    return engine.dialect.name != "mysql"


def sqlite_path(url: URL) -> str | None:
    """Return the path of the file of an SQLite URL; None for other databases."""
    return url.database if url.get_backend_name() == "sqlite" else None


def show_url(url: URL) -> str:
    """Return a URL for display, without its password; for SQLite, the path of the file.

    Only parameters that describe where the database is are shown, because others can be passwords too.
    """
    shown = {name: value for name, value in url.query.items() if name in _SHOWN_PARAMETERS}
    return sqlite_path(url) or url.set(query=shown).render_as_string(hide_password=True)


def is_busy(error: DBAPIError) -> bool:
    """Return whether a statement failed because another transaction held a lock for too long."""
    if getattr(error.orig, "sqlite_errorname", "").startswith(_SQLITE_BUSY):
        return True
    if getattr(error.orig, "sqlstate", None) == _POSTGRESQL_LOCK_NOT_AVAILABLE:
        return True
    return error.orig is not None and error.orig.args[:1] == (_MARIADB_LOCK_WAIT_TIMEOUT,)


def encoding_error(error: DBAPIError, place: str) -> DatabaseError | None:
    """Return an error of ours if the encoding of a PostgreSQL database lacks a character; None for other errors."""
    if getattr(error.orig, "sqlstate", None) != _POSTGRESQL_UNTRANSLATABLE:
        return None
    reason = str(error.orig).splitlines()[0]
    return DatabaseError(
        f"cannot store this text ({reason})",
        subject=place,
        remedy="move it to a database with ENCODING 'UTF8', see docs/operate/upgrade.md",
    )


def disk_full_error(error: DBAPIError, place: str) -> DatabaseFullError | None:
    """Return an error of ours if a statement failed because a disk is full; None for other errors."""
    code = None if error.orig is None else next(iter(error.orig.args), None)
    name = getattr(error.orig, "sqlite_errorname", "")
    # SQLite reports an exceeded quota or size limit as an I/O error without details.
    if name in FULL or (name.startswith("SQLITE_IOERR") and lacks_room(place, ROOM_BYTES)):
        return full_error(place)
    if getattr(error.orig, "sqlstate", None) == _POSTGRESQL_DISK_FULL or code in _MARIADB_DISK_FULL:
        return DatabaseFullError("the server's disk is full", subject=f"{place}:", remedy="free some space there")
    return None


def _parse(url: str) -> URL:
    """Parse a URL. It may contain a password, so errors do not quote it and are not chained to ones that do.

    Raises:
        DatabaseError: the URL is not that of a database.
    """
    mistake = mistake_in_url(url)
    if mistake is not None:
        raise DatabaseError(mistake.fact, subject="the database URL", remedy=mistake.remedy)
    try:
        parsed = make_url(url)
        backend = parsed.drivername.partition("+")[0]
        parsed = parsed.set(drivername=_DRIVERS[backend])
    except (ArgumentError, KeyError, ValueError):
        raise DatabaseError(
            "is not a URL of a database that backyfs supports",
            subject="the engine of [MetaBackend]",
            remedy=_EXAMPLES,
        ) from None
    if backend == "sqlite" and (parsed.host or parsed.username or parsed.password or parsed.port):
        raise DatabaseError(
            "has a host or user, which SQLite does not use", subject="the database URL", remedy="write sqlite:////path"
        )
    return parsed


def _driver_missing(url: URL, error: Exception) -> DatabaseError:
    extra = _EXTRAS[url.get_backend_name()]
    return DatabaseError(
        f"needs a driver that is not installed ({error})",
        subject=f"database {show_url(url)}",
        remedy=f"install it: pip install 'backyfs[{extra}]'",
    )


def _wrong_parameter(url: URL) -> DatabaseError:
    return DatabaseError(
        "the URL has a parameter that the driver does not accept",
        subject=f"database {show_url(url)}:",
        remedy="check the part after the ?",
    )


def _connect(dialect: Any, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> Any:
    """Connect. Drivers take the parameters of the URL as function arguments, and reject them with a TypeError.

    Raises:
        DatabaseError: the driver does not accept a parameter.
    """
    try:
        return dialect.connect(*arguments, **parameters)
    except (TypeError, ValueError):  # neither message may be shown: a UnicodeError quotes the password
        raise DatabaseError(
            "does not accept the URL",
            subject="the database driver",
            remedy="check the part after the ?, and the characters of user and password",
        ) from None


def _options(url: URL) -> dict[str, Any]:
    match url.get_backend_name():
        case "postgresql":
            arguments: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "backyfs"}
            # Overrides PGCLIENTENCODING and the server: with SQL_ASCII, text would arrive as bytes.
            arguments["client_encoding"] = "UTF8"
        case "mysql":
            arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, "charset": "utf8mb4"}
        case _:
            path = sqlite_path(url)
            if not path:
                return {}
            return {"creator": read_only_opener(path) if on_read_only_file_system(url) else FileOpener(path)}
    # A mount runs for weeks, and servers close connections that are idle for hours.
    return {"pool_pre_ping": True, "connect_args": arguments}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.text_factory = text_or_bytes
    connection.isolation_level = None  # otherwise sqlite3 commits implicitly, for example before every DDL statement
    if isinstance(connection, ReadingConnection):
        return  # the rest is for writers
    cursor = connection.cursor()
    # The first pragma reads the file. If the file is locked for long, `read_schema` reports why.
    cursor.execute(f"PRAGMA busy_timeout = {CHECK_PATIENCE_MS}")
    cursor.execute("PRAGMA synchronous = FULL")  # a commit survives power loss
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute(f"PRAGMA busy_timeout = {_PATIENCE_S * 1000}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    raw = connection.connection.dbapi_connection
    statement = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    if isinstance(raw, ReadingConnection):
        begin_reading(raw, statement, connection.exec_driver_sql)
    else:
        connection.exec_driver_sql(statement)


def _close_reading(connection: Any, record: Any) -> None:
    """Discard a read-only connection: the disk may have space again when the next one is opened."""
    if isinstance(connection, ReadingConnection):
        record.invalidate()


def _refuse_sql_ascii(connection: Any, _record: object) -> None:
    """Refuse a database with the encoding SQL_ASCII: it stores bytes of any encoding as text, which others misread.

    Raises:
        DatabaseError: the database has this encoding.
    """
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise wrong_encoding(connection.info.dbname, "SQL_ASCII")


def _give_odd_times_as_text(connection: Any, _record: object) -> None:
    """Return times that Python cannot represent, such as `infinity`, as text. The driver would fail the whole query."""
    from psycopg import DataError  # noqa: PLC0415 - only with that engine
    from psycopg.types.datetime import TimestampLoader  # noqa: PLC0415 - only with that engine

    class Lenient(TimestampLoader):
        def load(self, data: Any) -> Any:
            try:
                return super().load(data)
            except DataError:
                return bytes(data).decode("ascii", "replace")

    connection.adapters.register_loader("timestamp", Lenient)


def wrong_encoding(name: str, encoding: str) -> DatabaseError:
    """Return the error for a PostgreSQL database whose encoding cannot hold all text."""
    return DatabaseError(
        f"has the encoding {encoding}, but backyfs needs UTF8",
        subject=f"the PostgreSQL database {name!r}",
        remedy=(
            "create another with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0 and set it as the engine of "
            "[MetaBackend]; docs/operate/upgrade.md describes how to move an existing database there"
        ),
    )


def require_unicode(connection: Connection) -> None:
    """Make sure that a database can store all text, before tables are created in it.

    Raises:
        DatabaseError: its encoding is not UTF8.
    """
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise wrong_encoding(str(connection.engine.url.database), encoding)


def _prepare_mariadb(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {_PATIENCE_S}")
    cursor.execute("SET SESSION default_storage_engine = InnoDB")  # other storage engines cannot roll back
    # A value that does not fit is an error, as on the other engines, and is never truncated.
    cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'")
    cursor.close()
