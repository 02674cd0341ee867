"""An empty repository's database, on each engine in turn."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backyfs.metadata.db.database import Database
from backyfs.metadata.schema.schema import create_file, create_tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.db.database import Connection


@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    with closing(Database(module_database_url)) as database:
        create_file(database)
        with database.begin() as connection:
            create_tables(connection)
        yield database


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Begin a transaction that is rolled back after the test."""
    with database.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()
