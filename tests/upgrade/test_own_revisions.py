"""Databases of earlier schemas of ours are taken to the head by the first command, on every engine."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, event, inspect, select, text
from sqlalchemy.exc import OperationalError

from backyfs.cli.main import run
from backyfs.engine.setup.upgrade import needs_upgrade, plan_upgrade, upgrade
from backyfs.engine.transfer.export_format import read_export
from backyfs.errors import DatabaseError
from backyfs.metadata.catalog.notes import NoteKind, read_notes
from backyfs.metadata.db.database import Database
from backyfs.metadata.db.revisions import HEAD, HEAD_RELEASE
from backyfs.metadata.db.tables import repository as repository_table
from backyfs.metadata.records.jobs import list_live_jobs, register_job, remove_job
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.runs import list_runs
from backyfs.metadata.schema.schema import differences
from backyfs.model import RunOutcome, VersionRecord
from backyfs.repository import open_repository
from backyfs.work import silence
from tests.support.audit import audit
from tests.support.jobs import spec
from tests.upgrade.reference import Reference, check

if TYPE_CHECKING:
    from collections.abc import Callable

NEW_TABLES = ("blob_checks", "damaged_versions")
HEAD_TABLES = ("catalog_notes", "runs")  # that no test leaves behind half made
NEW_COLUMNS = (
    ("repository", "key_made_at"),
    ("repository", "storage_marked"),
    ("repository", "storage_had_objects"),
    ("repository", "identity_tag"),
    ("jobs", "kind"),
    ("jobs", "writes_blobs"),
    ("jobs", "names"),
    ("jobs", "progress_done"),
    ("jobs", "progress_total"),
    ("jobs", "progress_unit"),
    ("jobs", "progress_s"),
)


@pytest.fixture
def first(anywhere: Reference) -> Reference:
    """Give a repository with the schema of backyfs_0001."""
    upgrade(anywhere.config)
    for path in anywhere.directory.glob("*before-upgrade*"):
        path.unlink()
    change(anywhere, *(f"DROP TABLE {name}" for name in (*NEW_TABLES, *HEAD_TABLES)))
    on_table = " ON pages" if "mysql" in anywhere.config.database_url else ""
    change(anywhere, f"DROP INDEX ix_pages_unpublished{on_table}")
    change(anywhere, *(f"ALTER TABLE {table} DROP COLUMN {column}" for table, column in NEW_COLUMNS))
    change(anywhere, "UPDATE repository SET needs_release = '0.0.1'")
    change(anywhere, "UPDATE alembic_version SET version_num = 'backyfs_0001'")
    return anywhere


def change(reference: Reference, *statements: str) -> None:
    with closing(Database(reference.config.database_url)) as database, database.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def tables(reference: Reference) -> set[str]:
    with closing(Database(reference.config.database_url)) as database, database.read() as connection:
        return set(inspect(connection).get_table_names())


def check_head(reference: Reference) -> None:
    assert not needs_upgrade(reference.config)
    with open_repository(reference.config) as repository:
        check(repository, reference.expected)
        audit(repository)
        with repository.database.read() as connection:
            assert differences(connection) == []
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
            assert connection.execute(select(repository_table.c.needs_release)).scalar() == HEAD_RELEASE


def fail_at(beginning: str) -> Callable[..., None]:
    def fail(*arguments: object) -> None:
        if str(arguments[2]).strip().startswith(beginning):
            raise OperationalError("the statement", {}, Exception("injected"))

    return fail


def test_the_first_command_upgrades(first: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_upgrade(first.config)
    assert plan is not None
    assert (plan.from_schema, plan.to_revision, plan.versions) == ("backyfs_0001", HEAD, None)
    assert run(["-c", str(first.config_file), "ls"]) == 0
    printed = capsys.readouterr()
    assert "a copy of the old metadata is in " in printed.err
    assert len(list(first.directory.glob("*before-upgrade*"))) == 1
    for uid in first.expected["versions"]:
        assert uid in printed.out
    check_head(first)
    assert run(["-c", str(first.config_file), "ls"]) == 0
    assert "was upgraded" not in capsys.readouterr().err


def test_the_copy_on_a_server_is_an_export_of_all_versions(first: Reference) -> None:
    report = upgrade(first.config)
    assert report is not None
    assert report.adopted is None
    assert report.copy is not None
    if report.copy.endswith(".export"):
        with open(report.copy, "rb") as file:
            records = list(read_export(file))
        uids = {record.uid for record in records if isinstance(record, VersionRecord)}
        assert uids == set(first.expected["versions"])


@pytest.mark.parametrize("there", NEW_TABLES)
def test_a_run_that_was_killed_between_two_tables_is_continued(first: Reference, there: str) -> None:
    owner = there == "blob_checks"
    column, other = ("blob_id", "blobs") if owner else ("version_id", "versions")
    moment = "checked_at" if owner else "found_at"
    with closing(Database(first.config.database_url)) as database:
        dialect = database.engine.dialect.name
    number = "INTEGER" if dialect == "sqlite" else "BIGINT"
    time = {"sqlite": "DATETIME", "postgresql": "TIMESTAMP", "mysql": "DATETIME(6)"}[dialect]
    change(
        first,
        f"CREATE TABLE {there} ({column} {number} NOT NULL, {moment} {time} NOT NULL, "
        f"CONSTRAINT pk_{there} PRIMARY KEY ({column}), CONSTRAINT fk_{there}_{column} FOREIGN KEY ({column}) "
        f"REFERENCES {other} (id) ON DELETE CASCADE)",
    )
    upgrade(first.config)
    check_head(first)


def test_what_is_there_is_noted_for_the_catalog(first: Reference) -> None:
    upgrade(first.config)
    with closing(Database(first.config.database_url)) as database, database.read() as connection:
        assert {note.uid for note in read_notes(connection, NoteKind.VERSION)} == set(first.expected["versions"])
        assert [note.uid for note in read_notes(connection, NoteKind.REPOSITORY)] == [""]


def test_a_run_that_was_killed_after_some_notes_is_continued(first: Reference) -> None:
    upgrade(first.config)
    some = min(first.expected["versions"])
    change(first, f"DELETE FROM catalog_notes WHERE uid <> '{some}'")
    change(first, "UPDATE alembic_version SET version_num = 'backyfs_0002'")
    upgrade(first.config)
    check_head(first)
    with closing(Database(first.config.database_url)) as database, database.read() as connection:
        assert {note.uid for note in read_notes(connection, NoteKind.VERSION)} == set(first.expected["versions"])


def test_a_failure_leaves_what_the_old_program_uses_and_the_next_command_upgrades(first: Reference) -> None:
    fail = fail_at("CREATE TABLE damaged_versions")
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(DatabaseError, match="injected"):
            upgrade(first.config)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    with closing(Database(first.config.database_url)) as database, database.read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "backyfs_0001"
        assert connection.execute(select(repository_table.c.needs_release)).scalar() == "0.0.1"
    assert tables(first).isdisjoint({"damaged_versions"})
    upgrade(first.config)
    check_head(first)


@pytest.mark.parametrize("revision", ["30349b678801", None])
def test_tables_that_are_missing_are_made_where_backy2_has_set_the_revision(
    first: Reference, revision: str | None
) -> None:
    change(first, "DELETE FROM alembic_version")
    if revision is not None:
        change(first, f"INSERT INTO alembic_version VALUES ('{revision}')")
    upgrade(first.config)
    check_head(first)


def test_a_job_that_was_killed_before_the_upgrade_becomes_a_run_after_it(first: Reference) -> None:
    moment = "'2026-01-01 00:00:00'"
    change(
        first,
        "INSERT INTO jobs (host, scope, pid, pid_started, command, progress, started_at, heartbeat_at) "
        f"VALUES ('h', '{this_process().scope}', 4194304, 1, 'backup disk', '5 %', {moment}, {moment})",  # no such pid
    )
    upgrade(first.config)
    with open_repository(first.config) as repository:
        with repository.database.write() as connection:
            job_id = register_job(connection, this_process(), spec("cleanup"))
            remove_job(connection, job_id)
        with repository.database.read() as connection:
            [run] = list_runs(connection)
    assert (run.kind, run.names, run.command, run.outcome) == (None, (), "backup disk", RunOutcome.KILLED)
    assert run.ended_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_a_silent_job_of_an_older_schema_is_removed_and_not_waited_for(
    first: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(silence, "WATCH_S", 0.3)
    moment = "'2026-01-01 00:00:00'"
    change(
        first,
        "INSERT INTO jobs (host, scope, pid, pid_started, command, progress, started_at, heartbeat_at) "
        f"VALUES ('h', 'elsewhere', 5, 1, 'backup disk', '5 %', {moment}, {moment})",
    )
    upgrade(first.config, wait_s=0)
    check_head(first)
    with open_repository(first.config) as repository, repository.database.read() as connection:
        assert list_live_jobs(connection, this_process()) == []
        assert list_runs(connection) == []


@pytest.mark.parametrize("statement", ["CREATE TABLE runs", "CREATE INDEX ix_runs_ended_at", "ALTER TABLE jobs"])
def test_the_newest_revision_goes_on_where_it_was_killed(first: Reference, statement: str) -> None:
    fail = fail_at(statement)
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(DatabaseError, match="injected"):
            upgrade(first.config)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    upgrade(first.config)
    check_head(first)
    with open_repository(first.config) as repository, repository.database.read() as connection:
        assert list_runs(connection) == []
