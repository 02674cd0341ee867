"""Databases of PostgreSQL whose encoding is not UTF8: refused with a way out, or used where possible."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from backyfs.engine.setup.upgrade import upgrade
from backyfs.engine.transfer.database_copy import copy_database
from backyfs.errors import DatabaseError
from backyfs.metadata.records.versions import create_version, list_versions
from backyfs.repository import open_repository
from tests.support.repositories import make_repository, opened
from tests.support.services.postgresql import program
from tests.upgrade.reference import Reference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.metadata.db.database import Connection
    from tests.support.services.mariadb import MariadbServer
    from tests.support.services.postgresql import PostgresqlServer

MOMENT = datetime(2024, 1, 1, tzinfo=UTC)
OTHERS = ["SQL_ASCII", "LATIN1", "EUC_JP", "WIN1252"]


@pytest.fixture
def server(postgresql_server: PostgresqlServer) -> Iterator[PostgresqlServer]:
    """Give the server; databases that tests make with `database` are dropped."""
    yield postgresql_server
    for encoding in [*OTHERS, "UTF8"]:
        postgresql_server.execute(postgresql_server.drop_statement(f"encoded_{encoding.lower()}"))


def database(server: PostgresqlServer, encoding: str) -> str:
    name = f"encoded_{encoding.lower()}"
    provider = "locale_provider libc locale 'C' TEMPLATE template0"
    server.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' {provider}")
    return server.url(name)


def add(connection: Connection, name: str) -> None:
    create_version(connection, name=name, snapshot_name="", size_bytes=0, created_at=MOMENT)


def pipe_dump(old: str, new: str) -> None:
    """Do what docs/operate/upgrade.md says."""
    dump = subprocess.run([program("pg_dump"), "-E", "UTF8", old], check=True, capture_output=True).stdout
    subprocess.run([program("psql"), "-q", "-X", "-v", "ON_ERROR_STOP=1", new], input=dump, check=True)


@pytest.mark.parametrize("encoding", OTHERS)
def test_no_repository_is_made_where_not_all_text_can_be_stored(
    encoding: str, server: PostgresqlServer, tmp_path: Path
) -> None:
    with pytest.raises(DatabaseError) as caught:
        make_repository(tmp_path, database=database(server, encoding))
    assert f"has the encoding {encoding}, but backyfs needs UTF8; create another with CREATE DATABASE" in str(
        caught.value
    )


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_no_repository_is_copied_there(encoding: str, server: PostgresqlServer, tmp_path: Path) -> None:
    make_repository(tmp_path)
    with pytest.raises(DatabaseError, match=f"has the encoding {encoding}, but backyfs needs UTF8"):
        copy_database(f"sqlite:///{tmp_path}/backyfs.sqlite", database(server, encoding))


def test_a_backy2_database_in_sql_ascii_is_refused_and_moved_as_the_manual_says(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    reference = Reference("v1-sqlite", tmp_path)
    moved = database(server, "UTF8")
    reference.move_to(moved)
    old = database(server, "SQL_ASCII")
    pipe_dump(moved, old)
    server.execute(server.drop_statement(str(make_url(moved).database)))
    reference.change_config(moved, old)
    with pytest.raises(DatabaseError, match="has the encoding SQL_ASCII, but backyfs needs UTF8"):
        upgrade(reference.config)
    new = database(server, "UTF8")
    pipe_dump(old, new)
    reference.change_config(old, new)
    assert upgrade(reference.config) is not None
    with open_repository(reference.config) as repository, repository.database.read() as connection:
        assert {version.uid for version in list_versions(connection)} == set(reference.expected["versions"])


def test_a_backy2_database_in_latin1_is_taken_over_and_says_what_it_cannot_store(
    server: PostgresqlServer, tmp_path: Path
) -> None:
    reference = Reference("v1-sqlite", tmp_path)
    reference.move_to(database(server, "LATIN1"))
    assert upgrade(reference.config) is not None
    with open_repository(reference.config) as repository:
        with repository.database.write() as connection:
            add(connection, "\N{LATIN SMALL LETTER A WITH DIAERESIS}")
        with (
            pytest.raises(DatabaseError, match=r"cannot store this text .* move it to a database with ENCODING 'UTF8'"),
            repository.database.write() as connection,
        ):
            add(connection, "\N{FLOPPY DISK}")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_the_encoding_of_the_environment_changes_nothing(
    encoding: str, server: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = database(server, "UTF8")
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    config = make_repository(tmp_path, database=url)
    with opened(config) as repository, repository.database.write() as connection:
        add(connection, "\N{FLOPPY DISK}")
        assert [version.name for version in list_versions(connection)] == ["\N{FLOPPY DISK}"]


@pytest.mark.parametrize("charset", ["latin1", "utf8mb3", "ucs2"])
def test_the_default_character_set_of_mariadb_changes_nothing(
    charset: str, mariadb_server: MariadbServer, tmp_path: Path
) -> None:
    server = mariadb_server
    server.execute(f"CREATE DATABASE set_{charset} CHARACTER SET {charset}")
    try:
        config = make_repository(tmp_path, database=server.url(f"set_{charset}"))
        with opened(config) as repository, repository.database.write() as connection:
            add(connection, "\N{FLOPPY DISK}")
            assert [version.name for version in list_versions(connection)] == ["\N{FLOPPY DISK}"]
    finally:
        server.execute(server.drop_statement(f"set_{charset}"))
