"""The clock of the database, which all hosts that use it share."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backyfs.metadata.db.columns import UtcDateTime

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine


class DatabaseClock(FunctionElement[datetime]):
    """The time in UTC by the clock of the database, with microseconds if the database has them."""

    type: TypeEngine[datetime] = UtcDateTime()
    inherit_cache = True


@compiles(DatabaseClock, "sqlite")
def _sqlite_clock(_element: DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(DatabaseClock, "postgresql")
def _postgresql_clock(_element: DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "timezone('utc', clock_timestamp())"


@compiles(DatabaseClock, "mysql")
@compiles(DatabaseClock, "mariadb")
def _mariadb_clock(_element: DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "UTC_TIMESTAMP(6)"


def database_time(connection: Connection) -> datetime:
    """Return the time by the clock of the database."""
    moment: datetime = connection.execute(select(DatabaseClock())).scalar_one()
    return moment
