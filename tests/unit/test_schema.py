"""The schema: the revisions create it, it equals the tables, and it is created completely or not at all."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import closing
from datetime import UTC, datetime, timedelta, timezone
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from packaging.version import Version
from sqlalchemy import event, insert, inspect, select, text, update
from sqlalchemy.exc import OperationalError

from backyfs import __version__
from backyfs.errors import DatabaseError, SchemaError, SchemaOutdatedError
from backyfs.metadata.db.columns import UtcDateTime
from backyfs.metadata.db.database import HEAD, Database, insert_row
from backyfs.metadata.db.revisions import HEAD_RELEASE, HISTORY
from backyfs.metadata.db.tables import metadata, repository, stats, tags, versions
from backyfs.metadata.records.identity import Identity, load_identity, save_identity
from backyfs.metadata.schema.schema import create_file, upgrade_tables
from tests.support.repositories import create_schema, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TABLES = [
    "alembic_version",
    "blob_checks",
    "blob_refs",
    "blobs",
    "catalog_notes",
    "damaged_versions",
    "job_versions",
    "jobs",
    "key_slots",
    "pages",
    "repository",
    "runs",
    "stats",
    "tags",
    "version_pages",
    "versions",
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "backyfs.sqlite"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    """Return a database that does not exist yet."""
    database = Database(f"sqlite:///{file}")
    yield database
    database.close()


def stamp_as(database: Database, revision: str) -> None:
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def tables_of(file: Path) -> list[str]:
    """Return the tables in a file without using any code of the program."""
    connection = sqlite3.connect(file)
    try:
        rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [name for (name,) in rows if not name.startswith("sqlite_")]
    finally:
        connection.close()


def ddl_of(file: Path) -> dict[str, set[str]]:
    """Return the columns, constraints and indexes of a file by table, in any order, except those of backy2."""
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT tbl_name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    found: dict[str, set[str]] = {}
    for table, sql in rows:
        if not table.startswith("backy2_"):
            # SQLite appends an added column to another line, or before the last parenthesis.
            lines = re.split(r"\n|, (?=\w+ [A-Z])|\)$", sql)
            found.setdefault(table, set()).update(" ".join(line.split()).strip(",") for line in lines)
            found[table].discard("")
    return found


def pragma(database: Database, name: str) -> object:
    with database.read() as connection:
        return connection.execute(text(f"PRAGMA {name}")).scalar()


def scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(files("backyfs.migrations")).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


# Created databases


def test_a_new_database_has_all_tables(database: Database, file: Path) -> None:
    create_schema(database)
    assert tables_of(file) == TABLES


def test_the_revisions_create_the_schema_of_the_tables(database: Database) -> None:
    create_schema(database)
    with database.read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_schema_cascades_as_the_tables_do(database: Database) -> None:
    # alembic does not compare this on SQLite.
    create_schema(database)
    with database.read() as connection:
        for table in metadata.sorted_tables:
            made = {
                (tuple(key["constrained_columns"]), key["referred_table"], key.get("options", {}).get("ondelete"))
                for key in inspect(connection).get_foreign_keys(table.name)
            }
            declared = {
                (tuple(key.column_keys), key.referred_table.name, key.ondelete)
                for key in table.foreign_key_constraints
            }
            assert made == declared, table.name


def test_the_revisions_end_at_the_one_the_program_expects() -> None:
    assert scripts().get_heads() == [HEAD]


def test_the_list_of_revisions_matches_the_migrations() -> None:
    walked = [script.revision for script in scripts().walk_revisions()]
    assert tuple(reversed(walked)) == HISTORY


def test_no_revision_can_be_downgraded() -> None:
    for script in scripts().walk_revisions():
        with pytest.raises(NotImplementedError, match=r"use the copy that was made before the upgrade"):
            script.module.downgrade()


def test_the_revisions_create_the_same_tables_as_a_new_database(database: Database, tmp_path: Path) -> None:
    create_schema(database)
    walked = Database(f"sqlite:///{tmp_path}/walked.sqlite")
    create_file(walked)
    with walked.begin() as connection:
        upgrade_tables(connection, None)
    made = [ddl_of(tmp_path / "walked.sqlite"), ddl_of(tmp_path / "backyfs.sqlite")]
    walked.close()
    assert made[0] == made[1]


def test_a_new_database_is_at_the_latest_revision(database: Database) -> None:
    create_schema(database)
    database.check_revision()


def test_a_new_database_contains_no_repository(database: Database) -> None:
    create_schema(database)
    with (
        pytest.raises(SchemaError, match=r"the tables of a repository but no repository; create the repository again"),
        database.read() as connection,
    ):
        load_identity(connection)


def test_only_the_owner_can_access_the_file(database: Database, file: Path) -> None:
    create_schema(database)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_mode_of_the_file_does_not_depend_on_the_umask(database: Database, file: Path) -> None:
    old = os.umask(0)
    try:
        create_file(database)
    finally:
        os.umask(old)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_only_the_owner_can_access_a_created_directory(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/new/backyfs.sqlite")
    create_schema(database)
    database.close()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_companion_files_are_not_more_accessible_than_the_file(database: Database, file: Path) -> None:
    create_schema(database)
    with database.read() as connection:
        connection.execute(text("SELECT 1 FROM versions"))
        companions = [file.with_name(f"{file.name}-{kind}") for kind in ("wal", "shm")]
        assert [stat.S_IMODE(path.stat().st_mode) for path in companions] == [0o600, 0o600]


def test_a_file_that_cannot_be_created_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    database = Database(f"sqlite:///{tmp_path}/file/backyfs.sqlite")
    with pytest.raises(DatabaseError, match=rf"^database file {tmp_path}/file/backyfs\.sqlite cannot be created: "):
        create_file(database)


# Refusals, and what failures leave


def test_creating_a_database_twice_is_refused_by_name(database: Database, file: Path) -> None:
    create_schema(database)
    with pytest.raises(SchemaError, match=rf"^{file} already contains tables; name an empty database$"):
        create_schema(database)
    assert tables_of(file) == TABLES


def test_the_tables_of_another_program_are_left_alone(database: Database, file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (id INTEGER)")
    connection.close()
    with pytest.raises(SchemaError, match="already contains tables"):
        create_schema(database)
    assert tables_of(file) == ["theirs"]


@pytest.mark.parametrize("table", TABLES)
def test_a_failure_at_any_table_leaves_none(database: Database, file: Path, table: str) -> None:
    def fail(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.strip().startswith((f"CREATE TABLE {table} ", f'CREATE TABLE "{table}" ')):
            raise OperationalError(statement, {}, sqlite3.OperationalError("disk I/O error"))

    event.listen(database.engine, "before_cursor_execute", fail)
    with pytest.raises(DatabaseError, match=r"^database: disk I/O error$"):
        create_schema(database)
    assert tables_of(file) == []


def test_a_full_disk_leaves_no_tables_and_the_database_can_be_created_later(database: Database, file: Path) -> None:
    def fill(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 12")

    event.listen(database.engine, "connect", fill)
    with pytest.raises(DatabaseError, match=r"backyfs\.sqlite is full, or a quota or size limit"):
        create_schema(database)
    assert tables_of(file) == []

    event.remove(database.engine, "connect", fill)
    database.close()
    again = Database(f"sqlite:///{file}")
    create_schema(again)
    again.close()
    assert tables_of(file) == TABLES


# Use of SQLite


def test_foreign_keys_are_on(database: Database) -> None:
    create_schema(database)
    assert pragma(database, "foreign_keys") == 1
    orphan = insert(tags).values(version_id=99, name="orphan")
    with pytest.raises(DatabaseError, match="FOREIGN KEY constraint failed"), database.write() as connection:
        connection.execute(orphan)


@pytest.mark.parametrize(("name", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("busy_timeout", 60_000)])
def test_writers_do_not_block_readers_and_commits_are_durable(database: Database, name: str, value: object) -> None:
    create_schema(database)
    assert pragma(database, name) == value


def test_a_write_transaction_holds_the_lock_from_the_beginning(database: Database, file: Path) -> None:
    create_schema(database)
    other = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        with database.write(), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        with database.read():
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
    finally:
        other.close()


def test_an_exception_rolls_back_a_write(database: Database) -> None:
    def fail_half_way() -> None:
        with database.write() as connection:
            connection.execute(text("INSERT INTO alembic_version VALUES ('other')"))
            raise ZeroDivisionError

    create_schema(database)
    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM alembic_version")).scalar() == 1


def test_a_message_of_the_database_does_not_contain_parameters(database: Database) -> None:
    create_schema(database)
    with pytest.raises(DatabaseError) as caught, database.write() as connection:
        connection.execute(insert(tags).values(version_id=99, name="confidential"))
    assert "confidential" not in str(caught.value)


def test_times_are_loaded_in_utc_with_microseconds(database: Database) -> None:
    create_schema(database)
    eastern = datetime(2024, 7, 1, 1, 30, 0, 123_456, tzinfo=timezone(timedelta(hours=-5)))
    values = {"uid": "u", "name": "n", "snapshot_name": "", "size_bytes": 0, "status": "valid", "protected": False}
    with database.write() as connection:
        connection.execute(insert(versions).values(created_at=eastern, **values))
    with database.read() as connection:
        found = connection.execute(select(versions.c.created_at, versions.c.expire_at)).one()
    assert found.created_at == datetime(2024, 7, 1, 6, 30, 0, 123_456, tzinfo=UTC)
    assert found.created_at.tzinfo is UTC
    assert found.expire_at is None


@pytest.mark.parametrize("table", ["versions", "pages", "blobs", "jobs", "runs"])
def test_no_id_is_reused(database: Database, table: str) -> None:
    # Backups remember blobs by id, and jobs their row. They must never get another row instead.
    create_schema(database)
    values: dict[str, object] = {
        column.name: datetime(2024, 1, 1, tzinfo=UTC) if isinstance(column.type, UtcDateTime)
        else column.type.python_type()
        for column in metadata.tables[table].c
        if not column.nullable and not column.primary_key
    }  # fmt: skip
    row = insert(metadata.tables[table]).values(values)
    with database.write() as connection:
        first = insert_row(connection, row)
        connection.execute(metadata.tables[table].delete())
        assert insert_row(connection, row) == first + 1


def test_sizes_may_exceed_32_bits(database: Database) -> None:
    create_schema(database)
    row: dict[str, object] = {column.name: 2**62 for column in stats.c if column.name != "id"}
    row |= {"created_at": datetime(2024, 1, 1, tzinfo=UTC), "version_uid": "u", "version_name": "n", "duration_s": 0.5}
    with database.write() as connection:
        connection.execute(insert(stats).values(row))
    with database.read() as connection:
        assert connection.execute(select(stats.c.bytes_read)).scalar_one() == 2**62


# Revisions


def test_a_missing_file_contains_no_repository_and_is_not_created(database: Database, file: Path) -> None:
    with pytest.raises(SchemaError, match=rf"^{file} holds no repository; initialize it$"):
        database.check_revision()
    assert not file.exists()


def test_an_empty_database_contains_no_repository(database: Database, file: Path) -> None:
    create_file(database)
    with pytest.raises(SchemaError, match=rf"^{file} holds no repository; initialize it$"):
        database.check_revision()


def test_a_table_of_revisions_without_a_row_is_not_a_repository(database: Database, file: Path) -> None:
    create_schema(database)
    with database.write() as connection:
        connection.execute(text("DELETE FROM alembic_version"))
    with pytest.raises(SchemaError, match=rf"^{file} holds no repository"):
        database.check_revision()


def test_an_older_revision_needs_an_upgrade(database: Database, file: Path) -> None:
    create_schema(database)
    stamp_as(database, "30349b678801")
    with pytest.raises(SchemaOutdatedError, match=rf"^{file} has an older schema; upgrade it$"):
        database.check_revision()


def test_a_newer_revision_is_refused_with_the_release_it_needs(database: Database, file: Path) -> None:
    create_schema(database)
    with database.begin() as connection:
        identity = Identity(
            uid="u", block_size=512, hash_function="blake3", wrapped_fingerprint_key=None, created_at=datetime.now(UTC)
        )
        save_identity(connection, identity)
        connection.execute(update(repository).values(needs_release="7.5.0"))
    stamp_as(database, "backyfs_9999")
    with pytest.raises(SchemaError) as caught:
        database.check_revision()
    assert str(caught.value) == (
        f"{file} has schema revision backyfs_9999, which is newer than this program's, backyfs_0005; "
        "use release 7.5.0 or later of backyfs"
    )
    assert not isinstance(caught.value, SchemaOutdatedError)


def test_a_newer_revision_without_a_release_is_refused_too(database: Database) -> None:
    create_schema(database)
    stamp_as(database, "backyfs_9999")
    with pytest.raises(SchemaError, match=r"use a newer release of backyfs$"):
        database.check_revision()


def test_a_new_database_says_which_release_it_needs(tmp_path: Path) -> None:
    with opened(make_repository(tmp_path)) as made, made.database.read() as connection:
        assert connection.execute(select(repository.c.needs_release)).scalar_one() == HEAD_RELEASE


def test_the_required_release_is_not_newer_than_this_one() -> None:
    assert Version(HEAD_RELEASE) <= Version(__version__)


def test_a_file_that_is_not_a_database_is_refused(database: Database, file: Path) -> None:
    file.write_bytes(b"no database " * 1000)
    with pytest.raises(DatabaseError, match=r"^database: file is not a database$"):
        database.check_revision()


def test_a_directory_is_refused_as_a_database(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}")
    with pytest.raises(DatabaseError, match=r"^database: unable to open database file$"):
        database.check_revision()
    database.close()


# URLs


def test_an_invalid_url_is_refused() -> None:
    with pytest.raises(DatabaseError, match=r"^the engine of \[MetaBackend\] is not a URL .*; examples: sqlite:"):
        Database("no url")


def test_an_unknown_kind_of_database_is_refused_without_quoting_its_password() -> None:
    with pytest.raises(DatabaseError, match=r"^the engine of .* is not a URL [^@]*@host/name, [^@]*@host/name$"):
        Database("nosuch://user:secret@host/db")
