"""List the schema revisions, and find out which one a database has: with one cheap query, without alembic.

The first revisions are those of backy2, with its identifiers. A test compares the list with the migrations.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text
from sqlalchemy.exc import DBAPIError

from backyfs.metadata.db.backy2_values import text_of
from backyfs.metadata.db.engines import sqlite_path
from backyfs.metadata.db.sqlite import CHECK_PATIENCE_MS

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

BEFORE_ALEMBIC = "backy2_2_9_5"  # up to that release, backy2 stored no revision
LAST_OF_BACKY2 = "30349b678801"
OF_BACKY2 = (
    BEFORE_ALEMBIC,
    "bbe7904bfc3a",
    "29c655b78818",
    "828da0fbbe8d",
    "cd3f15ae79f8",
    "9e0939e3bc6d",
    "85966fcda5e6",
    "5260034b8125",
    LAST_OF_BACKY2,
)
FIRST_OF_OURS = "backyfs_0001"
HISTORY = (*OF_BACKY2, FIRST_OF_OURS, "backyfs_0002", "backyfs_0003", "backyfs_0004", "backyfs_0005")
HEAD = HISTORY[-1]  # the revision that this program needs
HEAD_RELEASE = "0.1.0"  # the oldest release that supports HEAD; older releases print it

# The revision while the last tables of backy2 are dropped, when everything else is done.
CLEARING_AWAY = "backyfs_clearing"

# The revision while a database is filled from the catalog, and after a recovery that did not finish.
RECOVERING = "backyfs_recovering"

OURS = "backyfs_"  # prefix of all our revisions

ASIDE = "backy2_"  # prefix of backy2's renamed tables while their rows are taken over
BACKY2_TABLES = ("blocks", "tags", "stats", "stats_old", "deleted_blocks", "versions")  # referenced tables last


class SchemaState(Enum):
    """How the schema of a database compares with the program's."""

    NONE = "none"        # there is no repository
    CURRENT = "current"
    OLDER = "older"      # needs an upgrade
    NEWER = "newer"      # from a newer release of backyfs


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The schema found in a database."""

    state: SchemaState
    revision: str | None  # from alembic_version
    needs_release: str | None = None  # for NEWER: the oldest release that supports it, if known


def read_schema(engine: Engine) -> Schema:
    """Return the schema of a database.

    Raises:
        DBAPIError: the query fails.
    """
    path = sqlite_path(engine.url)
    if path is not None and not os.path.exists(path):  # connecting would create an empty file
        return Schema(state=SchemaState.NONE, revision=None)
    with engine.connect() as connection:
        if path is not None:
            # During an upgrade, give up soon: the caller reports the upgrade and does the waiting.
            connection.connection.cursor().execute(f"PRAGMA busy_timeout = {CHECK_PATIENCE_MS}")
            connection.detach()
        revision = _read_revision(connection)
        if revision == HEAD:
            return Schema(state=SchemaState.CURRENT, revision=revision)
        if revision in HISTORY or revision == CLEARING_AWAY:
            return Schema(state=SchemaState.OLDER, revision=revision)
        if revision is not None:
            return Schema(state=SchemaState.NEWER, revision=revision, needs_release=_needed_release(connection))
        found = is_backy2_database(connection) or holds_repository(connection)
        state = SchemaState.OLDER if found else SchemaState.NONE
        return Schema(state=state, revision=None)


def _read_revision(connection: Connection) -> str | None:
    """Return the revision in alembic_version; None if the table is missing or empty."""
    try:
        with connection.begin():
            # SQLite stores any type, and text that is not UTF-8. '' means the same as no row.
            column = "CAST(version_num AS BLOB)" if connection.dialect.name == "sqlite" else "version_num"
            revision = connection.execute(text(f"SELECT {column} FROM alembic_version")).scalar()  # noqa: S608
            return text_of(revision) or None
    except DBAPIError as error:
        if "alembic_version" in str(error.orig):  # no such table
            return None
        raise


def is_backy2_database(connection: Connection) -> bool:
    """Return whether the tables are backy2's, judging by their columns: failed upgrades left wrong revisions behind."""
    if holds_repository(connection):
        return False
    inspector = inspect(connection)
    names = set(inspector.get_table_names())
    if f"{ASIDE}blocks" in names:  # an upgrade that was killed on MariaDB
        return True
    if not {"versions", "blocks"} <= names:
        return False
    return {"version_uid", "checksum"} <= {column["name"] for column in inspector.get_columns("blocks")}


def holds_repository(connection: Connection) -> bool:
    """Return whether the database contains a repository of ours. An adopted one counts once its row is written."""
    if not inspect(connection).has_table("repository"):
        return False
    return connection.execute(text("SELECT 1 FROM repository")).first() is not None


def _needed_release(connection: Connection) -> str | None:
    try:
        with connection.begin():
            release: str | None = connection.execute(text("SELECT needs_release FROM repository")).scalar()
            return release
    except DBAPIError:
        return None
