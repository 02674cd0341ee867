"""Any type in any column of backy2's tables, as SQLite keeps it: taken over, or refused with its place."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backyfs.blocks import load_block
from backyfs.engine.setup.upgrade import plan_upgrade, upgrade
from backyfs.errors import DatabaseError, IntegrityError, StorageError, VersionIncompleteError
from backyfs.geometry import block_count
from backyfs.images.image import Image
from backyfs.metadata.maps.blockmap import references_add_up
from backyfs.metadata.records.stats import newest_statistics
from backyfs.metadata.records.versions import list_versions
from backyfs.model import BlockIndex, VersionStatus
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
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        tables = [name.decode() for (name,) in rows]
        return [(table, connection.execute(f"SELECT * FROM {table}").fetchall()) for table in tables]


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
        except sqlite3.IntegrityError:  # a key that is there twice, or a rowid that is not a number
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
            except VersionIncompleteError:
                assert version.status is not VersionStatus.VALID
            except (IntegrityError, StorageError):  # named with its block, as damage is
                continue


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
            assert table in message
            assert column in message
        assert content(reference.sqlite_file) == before
        return
    with open_repository(reference.config) as repository:
        look_at_everything(repository)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(columns()), value=st.sampled_from(VALUES), every=st.booleans())
def test_any_value_is_taken_over_or_refused(place: tuple[str, str, str], value: str, every: bool) -> None:
    name, table, column = place
    with TemporaryDirectory() as directory:
        reference = Reference(name, Path(directory))
        if change(reference.sqlite_file, table, column, value, every=every):
            upgrade_or_refuse(reference, table, column)


# What a release before this one answered with a TypeError, or took for something else


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("versions", "size_bytes", "NULL"),
        ("versions", "size_bytes", "x'80FF'"),
        ("versions", "size", "'x'"),
        ("versions", "uid", "x'80FF'"),
        ("versions", "name", NOT_UTF8),
        ("blocks", "uid", "x'80FF'"),
        ("blocks", "uid", "x''"),
        ("blocks", "size", "x'00'"),
        ("blocks", "size", "'x'"),
        ("blocks", "checksum", "x'80FF'"),
        ("blocks", "enc_version", "'x'"),
        ("blocks", "enc_envkey", "x'00'"),
        ("blocks", "id", "1.5"),
        ("blocks", "version_uid", NOT_UTF8),
        ("tags", "name", NOT_UTF8),
        ("stats", "version_name", "x'80FF'"),
        ("stats", "bytes_read", "NULL"),
        ("stats", "date", "x'00'"),
        ("deleted_blocks", "uid", "x'80FF'"),
        ("deleted_blocks", "time", "NULL"),
        ("deleted_blocks", "size", "'x'"),
        ("alembic_version", "version_num", "x'00'"),
        ("alembic_version", "version_num", "''"),
        ("alembic_version", "version_num", NOT_UTF8),
    ],
)
def test_a_value_of_another_type(table: str, column: str, value: str, reference: Reference) -> None:
    assert change(reference.sqlite_file, table, column, value, every=False)
    upgrade_or_refuse(reference, table, column)


def test_a_version_without_a_size_is_named_with_the_remedy(reference: Reference) -> None:
    assert change(reference.sqlite_file, "versions", "size_bytes", "x'80FF'", every=False)
    with pytest.raises(DatabaseError) as caught:
        upgrade(reference.config)
    assert str(caught.value) == (
        "table versions, row with uid '27da1646-e6b8-11f1-b2fd-02fc00000001', name 'vm-a' and date "
        "'2026-11-22 21:03:24.217150': column size_bytes has b'\\x80\\xff', which is not a size. Nothing was "
        "changed; correct it, or delete the row if that version is not needed, and run the command again"
    )


def test_what_is_no_number_protects_a_version(reference: Reference) -> None:
    assert change(reference.sqlite_file, "versions", "protected", "'yes'", every=True)
    assert upgrade(reference.config) is not None
    with open_repository(reference.config) as repository, repository.database.read() as connection:
        assert all(version.protected for version in list_versions(connection))


def test_a_revision_that_nobody_wrote_is_named_with_the_remedy(reference: Reference) -> None:
    assert change(reference.sqlite_file, "alembic_version", "version_num", "'x'", every=True)
    with pytest.raises(DatabaseError, match="version_num in the table alembic_version is 'x', which is neither"):
        upgrade(reference.config)
    with closing(sqlite3.connect(reference.sqlite_file, isolation_level=None)) as connection:
        connection.execute("DELETE FROM alembic_version")
    assert upgrade(reference.config) is not None
