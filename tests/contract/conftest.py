"""An empty repository's database, on each engine in turn."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backyfs.metadata.db.database import Database
from tests.support.repositories import create_schema

if TYPE_CHECKING:
    from collections.abc import Iterator



@pytest.fixture(scope="module")
def database(module_database_url: str) -> Iterator[Database]:
    with closing(Database(module_database_url)) as database:
        create_schema(database)
        yield database
