"""Any type in any column of backy2's tables, as SQLite keeps it: taken over, or refused with its place. Never a TypeError."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from backyfs.blocks import load_block
from backyfs.engine.upgrade import plan_upgrade, upgrade
from backyfs.errors import BackyfsError, DatabaseError, IntegrityError, StorageError, VersionError
from backyfs.geometry import block_count
from backyfs.metadata.blockmap import references_add_up
from backyfs.metadata.stats import newest_statistics
from backyfs.metadata.versions import list_versions
from backyfs.model import BlockIndex, VersionStatus
from backyfs.mount.image import Image
from backyfs.repository import open_repository
from tests.upgrade.reference import FIXTURES, SQLITE_NAMES, Reference

if TYPE_CHECKING:
    from backyfs.repository import Repository

TABLES = ("versions", "blocks", "tags", "stats", "deleted_blocks", "alembic_version")
NOT_UTF8 = "CAST(x'80FF' AS TEXT)"
# Literals of SQL. None of them could be the name of a stored object.
VALUES = (
    "NULL", "''", "' '", "0", "1", "-1", "7", "4711", "9223372036854775807", "-9223372036854775808", "1.5", "-0.0",
    "1e30", "9e999", "'7'", "'1.5'", "'x'", "'../../x'", "'2026-01-02'", "'0000-00-00'", "x''", "x'00'", "x'80FF'",
    "x'31'", NOT_UTF8, "CAST('a' || char(0) || 'b' AS TEXT)", "'\N{FLOPPY DISK}'", "hex(zeroblob(3000))",
)  # fmt: skip


def columns() -> list[tuple[str, str, str]]:
    """Return all columns of all tables of the fixtures of SQLite, with the fixture."""
    found = []
    for name in SQLITE_NAMES:
        with closing(sqlite3.connect(FIXTURES / name / "backy.sqlite")) as connection:
            for table in TABLES:
                found += [(name, table, row[1]) for row in connection.execute(f"PRAGMA table_info({table})")]
    return found


def allow_anything(connection: sqlite3.Connection) -> None:
    """Take away what keeps NULL out."""
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '')")
    connection.execute("PRAGMA writable_schema = OFF")


def content(file: Path) -> list[object]:
    with closing(sqlite3.connect(file)) as connection:
        connection.text_factory = bytes
        tables = [name.decode() for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [(table, connection.execute(f"SELECT * FROM {table}").fetchall()) for table in sorted(tables)]


def change(file: Path, table: str, column: str, value: str, *, every: bool) -> bool:
    """Change a column of a row, or of all of them; return False where the file does not permit it."""
    with closing(sqlite3.connect(file)) as connection:
        allow_anything(connection)
        connection.commit()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        if table == "deleted_blocks":
            connection.execute("INSERT INTO deleted_blocks VALUES (1, 'abcdeWaiting', 65536, 0, 1700000000)")
        where = "" if every else f"WHERE rowid = (SELECT max(rowid) FROM {table})"
        try:
            connection.execute(f"UPDATE {table} SET {column} = {value} {where}")
        except sqlite3.IntegrityError:  # a key that is there twice, or a rowid that is no number
            return False
    return True


def look_at_everything(repository: Repository) -> None:
    """Read each version to its end. What cannot be read is an error of ours."""
    with repository.database.read() as connection:
        versions = list_versions(connection)
        newest_statistics(connection, [version.uid for version in versions])
        assert references_add_up(connection)
    for version in versions:
        assert isinstance(version.name, str)
        image = Image(repository, version)
        for index in range(block_count(version.size_bytes, repository.block_size)):
            try:
                blob = image.blob(BlockIndex(index))
                if blob is not None:
                    load_block(repository.blocks, blob)
            except (IntegrityError, StorageError, VersionError):
                assert version.status is not VersionStatus.VALID or blob is not None


def upgrade_or_refuse(reference: Reference, table: str, column: str) -> None:
    """Upgrade; if that is refused, the message names the place and the old program finds everything as it was."""
    before = content(reference.sqlite_file)
    try:
        plan_upgrade(reference.config)
        assert upgrade(reference.config) is not None
    except DatabaseError as error:
        message = str(error)
        assert "please report" not in message
        if "set hash_function" not in message and "set block_size" not in message:
            assert table in message and (column in message or "revision" in message), message
        assert content(reference.sqlite_file) == before
        return
    with open_repository(reference.config) as repository:
        look_at_everything(repository)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(columns()), value=st.sampled_from(VALUES), every=st.booleans())
def test_any_value_is_taken_over_or_refused(place: tuple[str, str, str], value: str, every: bool) -> None:
    name, table, column = place
    logging.getLogger("backyfs").setLevel(logging.CRITICAL)
    with TemporaryDirectory() as directory:
        reference = Reference(name, Path(directory))
        if change(reference.sqlite_file, table, column, value, every=every):
            upgrade_or_refuse(reference, table, column)
