"""Database engines: which driver a URL means, and how each connection is prepared.

What differs between SQLite, PostgreSQL and MariaDB in connecting and locking stands here; queries are the
same for all.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from backyfs.config import mistake_in_url
from backyfs.errors import DatabaseError
from backyfs.metadata.db.room import lacks_room
from backyfs.metadata.db.sqlite import (
    CHECK_PATIENCE_MS,
    FULL,
    ROOM_BYTES,
    FileOpener,
    ReadingConnection,
    begin_reading,
    full_message,
    read_only_opener,
    text_or_bytes,
)

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine

_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg",
            "mysql": "mysql+pymysql", "mariadb": "mysql+pymysql"}
_EXTRAS = {"postgresql": "postgresql", "mysql": "mysql"}  # backend -> extra of this package that has its driver
_NOT_A_URL = (
    "the engine of [MetaBackend] is no URL of a database that backyfs knows; examples: "
    "sqlite:////var/lib/backyfs/backyfs.sqlite, postgresql://user:password@host/name, "
    "mysql://user:password@host/name"
)
_SHOWN_PARAMETERS = frozenset({"host", "port", "dbname", "service", "unix_socket", "sslmode", "charset"})
_PATIENCE_S = 60  # how long a statement waits for another transaction
_CONNECT_TIMEOUT_S = 15
_POSTGRESQL_LOCK_NOT_AVAILABLE = "55P03"
_POSTGRESQL_UNTRANSLATABLE = "22P05"
_MARIADB_LOCK_WAIT_TIMEOUT = 1205
_SQLITE_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
# No room: the classes of the two servers, where their own disk is full.
_POSTGRESQL_DISK_FULL = "53100"
_MARIADB_DISK_FULL = (1021, 1114)  # ER_DISK_FULL, ER_RECORD_FILE_FULL


def new_engine(url: str) -> Engine:
    """Return an engine for a URL; nothing is opened yet.

    The driver is ours whatever the URL says: those of backy2 name psycopg2, which it does not need to know of.

    Raises:
        DatabaseError: the URL is none, or its driver is not installed.
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
    """Return whether a database is an SQLite file that nobody can write: its file system was mounted read-only."""
    path = sqlite_path(url)
    if not path:
        return False
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:  # not there
        return False


def is_sqlite(engine: Engine) -> bool:
    """Return whether an engine is one of SQLite."""
    return engine.dialect.name == "sqlite"


def has_transactional_ddl(engine: Engine) -> bool:
    """Return whether CREATE, ALTER and DROP are undone by a rollback. MariaDB commits at each of them."""
    return engine.dialect.name != "mysql"


def sqlite_path(url: URL) -> str | None:
    """Return the path of the file of an SQLite URL, None for other databases."""
    return url.database if url.get_backend_name() == "sqlite" else None


def show_url(url: URL) -> str:
    """Return a URL as it may be shown: without its password; for SQLite the path of the file.

    Of its parameters those are shown that say where the database is: others can be passwords, too.
    """
    shown = {name: value for name, value in url.query.items() if name in _SHOWN_PARAMETERS}
    return sqlite_path(url) or url.set(query=shown).render_as_string(hide_password=True)


def is_busy(error: DBAPIError) -> bool:
    """Return whether a statement failed because others had something locked for too long."""
    if getattr(error.orig, "sqlite_errorname", "").startswith(_SQLITE_BUSY):
        return True
    if getattr(error.orig, "sqlstate", None) == _POSTGRESQL_LOCK_NOT_AVAILABLE:
        return True
    return error.orig is not None and error.orig.args[:1] == (_MARIADB_LOCK_WAIT_TIMEOUT,)


def explain_encoding(error: DBAPIError, place: str) -> str | None:
    """Return what to say if text does not exist in the encoding of a PostgreSQL database; None: it is another error."""
    if getattr(error.orig, "sqlstate", None) != _POSTGRESQL_UNTRANSLATABLE:
        return None
    reason = str(error.orig).splitlines()[0]
    return (
        f"{place} cannot store this text ({reason}); move it to a database with ENCODING 'UTF8', "
        "see docs/operate/upgrade.md"
    )


def explain_full(error: DBAPIError, place: str) -> str | None:
    """Return what to say if a statement failed because a disk is full; None: it failed for another reason."""
    code = None if error.orig is None else next(iter(error.orig.args), None)
    name = getattr(error.orig, "sqlite_errorname", "")
    # A quota or size limit is an I/O error to SQLite, which does not say of what kind.
    if name in FULL or (name.startswith("SQLITE_IOERR") and lacks_room(place, ROOM_BYTES)):
        return full_message(place)
    if getattr(error.orig, "sqlstate", None) == _POSTGRESQL_DISK_FULL or code in _MARIADB_DISK_FULL:
        return f"the disk of the server of {place} is full: nothing can be written; make room there"
    return None


def _parse(url: str) -> URL:
    """Divide a URL. Errors quote nothing of it, and are not chained to others that do: it can hold a password.

    Raises:
        DatabaseError: it is not a URL of a database.
    """
    mistake = mistake_in_url(url)
    if mistake is not None:
        raise DatabaseError(f"the URL of the database {mistake}")
    try:
        parsed = make_url(url)
        backend = parsed.drivername.partition("+")[0]
        parsed = parsed.set(drivername=_DRIVERS[backend])
    except (ArgumentError, KeyError, ValueError):
        raise DatabaseError(_NOT_A_URL) from None
    if backend == "sqlite" and (parsed.host or parsed.username or parsed.password or parsed.port):
        raise DatabaseError("the URL of the database has a host or user, and SQLite knows none; write sqlite:////path")
    return parsed


def _driver_missing(url: URL, error: Exception) -> DatabaseError:
    extra = _EXTRAS[url.get_backend_name()]
    return DatabaseError(
        f"database {show_url(url)} needs a driver that is not installed ({error}); install it: "
        f"pip install 'backyfs[{extra}]'"
    )


def _wrong_parameter(url: URL) -> DatabaseError:
    return DatabaseError(
        f"database {show_url(url)}: its URL has a parameter that the driver does not know, or a wrong value of one; "
        "see what stands after the ? in it"
    )


def _connect(dialect: Any, _record: object, arguments: list[Any], parameters: dict[str, Any]) -> Any:
    """Connect. Drivers take parameters of the URL as arguments of a function, and complain as functions do.

    Raises:
        DatabaseError: there is one that it does not know.
    """
    try:
        return dialect.connect(*arguments, **parameters)
    except (TypeError, ValueError):  # the words of neither can be shown: a UnicodeError quotes a password
        raise DatabaseError(
            "the driver of the database does not take a part of its URL: look at what stands after the ? in it, and "
            "at the characters of user and password"
        ) from None


def _options(url: URL) -> dict[str, Any]:
    match url.get_backend_name():
        case "postgresql":
            arguments: dict[str, Any] = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "backyfs"}
            # Whatever PGCLIENTENCODING or the server say: with SQL_ASCII text would come as bytes.
            arguments["client_encoding"] = "UTF8"
        case "mysql":
            arguments = {"connect_timeout": _CONNECT_TIMEOUT_S, "charset": "utf8mb4"}
        case _:
            path = sqlite_path(url)
            if not path:
                return {}
            return {"creator": read_only_opener(path) if on_read_only_file_system(url) else FileOpener(path)}
    # A mount runs for weeks; servers close connections that were idle for hours.
    return {"pool_pre_ping": True, "connect_args": arguments}


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.text_factory = text_or_bytes
    connection.isolation_level = None  # else sqlite3 commits behind our back, for one before every DDL
    if isinstance(connection, ReadingConnection):
        return  # the rest is for writers
    cursor = connection.cursor()
    # The first pragma reads the file: who is kept out of it for long is to be told why, see read_schema.
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
    """Keep no connection that can only read: there may be room when the next one is needed."""
    if isinstance(connection, ReadingConnection):
        record.invalidate()


def _refuse_sql_ascii(connection: Any, _record: object) -> None:
    """Refuse a database that stores bytes of unknown encodings as text: what one program writes another misreads.

    Raises:
        DatabaseError: it is one.
    """
    if connection.info.parameter_status("server_encoding") == "SQL_ASCII":
        raise wrong_encoding(connection.info.dbname, "SQL_ASCII")


def _give_odd_times_as_text(connection: Any, _record: object) -> None:
    """Let times that Python does not have, such as `infinity`, come as text; the driver refuses the whole result."""
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
        f"the PostgreSQL database {name!r} has the encoding {encoding}, and backyfs needs UTF8; make another one with "
        f"CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0 and name it in [MetaBackend] engine; "
        "docs/operate/upgrade.md says how to move an existing one there"
    )


def require_unicode(connection: Connection) -> None:
    """Make sure that a database in which tables are to be made can hold all text.

    Raises:
        DatabaseError: it cannot.
    """
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise wrong_encoding(str(connection.engine.url.database), encoding)


def _prepare_mariadb(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"SET SESSION innodb_lock_wait_timeout = {_PATIENCE_S}")
    cursor.execute("SET SESSION default_storage_engine = InnoDB")  # others roll nothing back
    # What does not fit is an error, as it is elsewhere, and never cut off.
    cursor.execute("SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'")
    cursor.close()
