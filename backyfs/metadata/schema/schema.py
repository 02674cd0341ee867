"""Make the schema: of a new repository at once, of an older one by alembic's revisions from where it stands."""

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
    from sqlalchemy import Connection

    from backyfs.metadata.db.database import Database


def create_file(database: Database) -> None:
    """Make the file of an SQLite database, mode 0600; other databases are made by their administrators.

    Raises:
        DatabaseError: it cannot be made.
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
        raise DatabaseError(f"database file {path} cannot be made: {error.strerror}") from error
    database.use_wal()


def create_tables(connection: Connection) -> None:
    """Make the tables of a new repository, within the caller's transaction (on MariaDB none).

    The revisions would make the same ones, by way of backy2's; a test compares both.

    Raises:
        SchemaError: the database holds tables already.
        DatabaseError: its encoding cannot hold all text.
    """
    if inspect(connection).get_table_names():
        place = show_url(connection.engine.url)
        raise SchemaError(f"{place} holds tables already; name an empty database")
    require_unicode(connection)
    metadata.create_all(connection)
    stamp(connection, HEAD)


def create_unfinished_tables(connection: Connection, revision: str) -> None:
    """Make the tables again in a database that says from the beginning on that they are not finished.

    Raises:
        DatabaseError: its encoding cannot hold all text.
    """
    require_unicode(connection)
    drop_tables(connection)
    stamp(connection, revision)
    metadata.create_all(connection)


def drop_tables(connection: Connection) -> None:
    """Drop what `create_tables` has made."""
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


def upgrade_tables(connection: Connection, from_revision: str | None) -> None:
    """Run the revisions after `from_revision`, None for all of them, on the caller's connection."""
    from alembic import command  # noqa: PLC0415 - slow to load, and hardly any command needs it
    from alembic.config import Config  # noqa: PLC0415

    stamp(connection, from_revision)
    with as_file(files("backyfs.migrations")) as location:
        config = Config()
        config.set_main_option("script_location", str(location).replace("%", "%%"))
        config.attributes["connection"] = connection  # migrations/env.py uses it, in our transaction
        command.upgrade(config, HEAD)


def stamp(connection: Connection, revision: str | None) -> None:
    """Make alembic_version say this revision; None: that there is none."""
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
    """Return what a database has otherwise than the tables of the program say; nothing, if all is well."""
    from alembic.autogenerate import compare_metadata  # noqa: PLC0415 - slow to load
    from alembic.migration import MigrationContext  # noqa: PLC0415

    found: list[Any] = compare_metadata(MigrationContext.configure(connection), metadata)
    return found
