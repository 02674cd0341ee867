"""Make the schema of a new repository, by running alembic's revisions from the first to the last."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

from alembic import command
from alembic.config import Config
from sqlalchemy import inspect

from backyfs.errors import DatabaseError, SchemaError
from backyfs.metadata.database import HEAD, show_url, sqlite_path

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from backyfs.metadata.database import Database


def create_file(database: Database) -> None:
    """Make the file of an SQLite database, mode 0600; other databases are made by their administrators.

    Raises:
        DatabaseError: it cannot be made.
    """
    path = sqlite_path(database.engine.url)
    if path is None:
        return
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise DatabaseError(f"database file {path} cannot be made: {error.strerror}") from error


def create_tables(connection: Connection) -> None:
    """Make the tables of a new repository, within the caller's transaction.

    Raises:
        SchemaError: the database holds tables already.
    """
    if inspect(connection).get_table_names():
        place = show_url(connection.engine.url)
        raise SchemaError(f"{place} holds tables already; name an empty database")
    _run(connection)


def _run(connection: Connection) -> None:
    with as_file(files("backyfs.migrations")) as location:
        config = Config()
        config.set_main_option("script_location", str(location).replace("%", "%%"))
        config.attributes["connection"] = connection  # migrations/env.py uses it, in our transaction
        command.upgrade(config, HEAD)
