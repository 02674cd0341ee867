"""Create the schema of a new repository, and upgrade an older one with alembic's revisions."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect, text

from backyfs.errors import DatabaseError, SchemaError
from backyfs.files import make_directories, open_file, sync_directory
from backyfs.metadata.db.database import show_url, sqlite_path
from backyfs.metadata.db.engines import require_unicode
from backyfs.metadata.db.revisions import HEAD
from backyfs.metadata.db.tables import metadata

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

    from backyfs.metadata.db.database import Database


def create_file(database: Database) -> None:
    """Create the file of an SQLite database with mode 0600. Administrators create databases on servers.

    Raises:
        DatabaseError: the file cannot be created.
    """
    path = sqlite_path(database.engine.url)
    if path is None:
        return
    directory = os.path.dirname(os.path.abspath(path))
    try:
        make_directories(directory)
        os.close(open_file(path, os.O_RDWR))
        sync_directory(directory)
    except OSError as error:
        raise DatabaseError(f"cannot be created: {error.strerror}", subject=f"database file {path}") from error
    database.use_wal()


def create_tables(connection: Connection) -> None:
    """Create the tables of a new repository in the caller's transaction (on MariaDB outside of any).

    The revisions would create the same tables from backy2's; a test compares both.

    Raises:
        SchemaError: the database already contains tables.
        DatabaseError: its encoding cannot represent all text.
    """
    if inspect(connection).get_table_names():
        raise not_empty(connection.engine.url)
    require_unicode(connection)
    metadata.create_all(connection)
    stamp(connection, HEAD)


def not_empty(url: URL) -> SchemaError:
    """Return the error for a database that already contains tables."""
    return SchemaError("already contains tables", subject=show_url(url), remedy="name an empty database")


def create_unfinished_tables(connection: Connection, revision: str) -> None:
    """Drop and create the tables in a database whose revision says from the start that it is unfinished.

    Raises:
        DatabaseError: its encoding cannot represent all text.
    """
    require_unicode(connection)
    drop_tables(connection)
    stamp(connection, revision)
    metadata.create_all(connection)


def drop_tables(connection: Connection) -> None:
    """Drop the tables that `create_tables` creates."""
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


def upgrade_tables(connection: Connection, from_revision: str | None) -> None:
    """Run the revisions after `from_revision` on the caller's connection; None runs all of them."""
    from alembic import command  # noqa: PLC0415 - slow to load, rarely needed
    from alembic.config import Config  # noqa: PLC0415

    stamp(connection, from_revision)
    with as_file(files("backyfs.migrations")) as location:
        config = Config()
        config.set_main_option("script_location", str(location).replace("%", "%%"))
        config.attributes["connection"] = connection  # migrations/env.py uses it, in our transaction
        command.upgrade(config, HEAD)


def stamp(connection: Connection, revision: str | None) -> None:
    """Store a revision in alembic_version; None empties the table."""
    if not inspect(connection).has_table("alembic_version"):
        connection.execute(
            text(
                "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
                "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
            )
        )
    connection.execute(text("DELETE FROM alembic_version"))
    if revision is not None:
        connection.execute(text("INSERT INTO alembic_version VALUES (:revision)"), {"revision": revision})


def differences(connection: Connection) -> list[Any]:
    """Return the differences between the schema of a database and the tables of the program."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - slow to load
    from alembic.migration import MigrationContext  # noqa: PLC0415

    found: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
    return found
