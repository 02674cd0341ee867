"""How jobs end: what their runs record, what they cost, and what happens if a run cannot be written."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, event, text, update

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.restore.restore import restore
from backyfs.engine.space.cleanup import cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import InterruptedByUser, JobLostError, ReaderGoneError, SourceError, TargetError
from backyfs.metadata.db.tables import jobs
from backyfs.metadata.records.runs import RunLimits, list_runs
from backyfs.model import JobKind, RunOutcome
from backyfs.sources.registry import open_source
from backyfs.work.ending import ending_of
from backyfs.work.job import Job
from backyfs.work.limits import Limits
from backyfs.work.run import Control, Run
from tests.support.images import random_image
from tests.support.jobs import spec
from tests.support.repositories import BLOCK, back_up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.metadata.records.runs import RunRecord
    from backyfs.model import RunId
    from backyfs.repository import Repository


def recorded(repository: Repository) -> list[RunRecord]:
    with repository.database.read() as connection:
        return list_runs(connection)


@pytest.fixture
def transactions(repository: Repository) -> Iterator[list[str]]:
    """Collect the commits of a database."""
    commits: list[str] = []

    def note(_connection: object) -> None:
        commits.append("commit")

    event.listen(repository.database.engine, "commit", note)
    yield commits
    event.remove(repository.database.engine, "commit", note)


@pytest.mark.parametrize(
    ("error", "outcome", "status"),
    [
        (None, RunOutcome.SUCCEEDED, 0),
        (SourceError("gone"), RunOutcome.FAILED, 7),
        (InterruptedByUser("interrupted"), RunOutcome.INTERRUPTED, 130),
        (KeyboardInterrupt(), RunOutcome.INTERRUPTED, 130),
        (ReaderGoneError("nobody reads"), RunOutcome.INTERRUPTED, 0),
        (ZeroDivisionError("division by zero"), RunOutcome.FAILED, 100),
    ],
)
def test_the_outcome_follows_the_error(
    repository: Repository, error: BaseException | None, outcome: RunOutcome, status: int
) -> None:
    with suppress(BaseException), Job(repository.database, spec("backup disk")):
        if error is not None:
            raise error
    [run] = recorded(repository)
    assert (run.outcome, run.exit_status) == (outcome, status)
    assert (run.error_class, run.error) == ((None, None) if error is None else (type(error).__name__, str(error)))
    assert ending_of(error).outcome is outcome


def test_a_job_takes_two_transactions(repository: Repository, transactions: list[str]) -> None:
    with Job(repository.database, spec("backup disk")):
        pass
    assert len(transactions) == 2
    assert len(recorded(repository)) == 1


def test_a_job_taken_for_dead_keeps_the_run_that_others_recorded(repository: Repository) -> None:
    with Job(repository.database, spec("backup disk")) as job:
        with repository.database.write() as connection:
            connection.execute(delete(jobs))
        with pytest.raises(JobLostError), job.write():
            pass
    assert recorded(repository) == []


def test_a_run_that_cannot_be_written_is_a_warning_and_the_job_ends(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    with repository.database.write() as connection:
        connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no runs'); END"))
    with Job(repository.database, spec("backup disk")):
        pass
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "cannot record how backup disk ended: database: no runs"
    ]
    with repository.database.write() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0
        connection.execute(text("DROP TRIGGER no"))
    assert recorded(repository) == []


def test_old_runs_that_cannot_be_removed_are_a_warning_and_the_job_ends(
    repository: Repository, caplog: pytest.LogCaptureFixture
) -> None:
    limited = replace(repository, limits=Limits(runs=RunLimits(rows=1)))
    cleanup(limited)
    with repository.database.write() as connection:
        connection.execute(text("CREATE TRIGGER no BEFORE DELETE ON runs BEGIN SELECT RAISE(ABORT, 'kept'); END"))
    cleanup(limited)
    assert "cannot remove the records of old commands: database: kept" in caplog.text
    assert [run.outcome for run in recorded(repository)] == [RunOutcome.SUCCEEDED] * 2
    with repository.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0


def test_an_unwritable_run_does_not_stop_other_commands(repository: Repository) -> None:
    with repository.database.write() as connection:
        connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'no runs'); END"))
    with Job(repository.database, spec("mount /mnt")):
        with repository.database.write() as connection:
            connection.execute(update(jobs).values(pid_started=1))  # its process has ended
        with Job(repository.database, spec("backup disk")), repository.database.read() as connection:
            assert list(connection.execute(text("SELECT command FROM jobs")).scalars()) == ["backup disk"]


def test_a_job_whose_row_is_damaged_ends_without_a_run(repository: Repository) -> None:
    with Job(repository.database, spec("backup disk")), repository.database.write() as connection:
        connection.execute(text("UPDATE jobs SET names = '[1', host = x'00'"))
    assert recorded(repository) == []
    with repository.database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0


def test_runs_are_bounded_by_the_limits_of_the_repository(repository: Repository) -> None:
    limited = replace(repository, limits=Limits(runs=RunLimits(rows=2)))
    for _ in range(4):
        cleanup(limited)
    assert len(recorded(repository)) == 2


def test_the_controller_of_an_operation_learns_its_run(repository: Repository) -> None:
    announced: list[RunId] = []
    control = Control(recorded=announced.append)
    with Job(repository.database, spec("scrub --all")) as job:
        Run(control, interrupted="", job=job).check()
        assert announced == []
    assert announced == [run.id for run in recorded(repository)]
    assert len(announced) == 1
    with suppress(ZeroDivisionError), Job(repository.database, spec("scrub --all")) as job:
        Run(control, interrupted="", job=job)
        raise ZeroDivisionError
    assert announced == [run.id for run in reversed(recorded(repository))]


# Runs of commands


def test_a_backup_whose_source_is_missing_is_recorded(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nothing"):
        backup(repository, lambda: open_source(str(tmp_path / "nothing")), BackupRequest(name="disk"))
    [run] = recorded(repository)
    assert (run.kind, run.names, run.outcome, run.exit_status) == (JobKind.BACKUP, ("disk",), RunOutcome.FAILED, 7)
    assert run.error is not None
    assert str(tmp_path / "nothing") in run.error


def test_a_backup_closes_its_source(repository: Repository, tmp_path: Path) -> None:
    source = open_source(str(random_image(tmp_path / "image", BLOCK)))
    backup(repository, lambda: source, BackupRequest(name="disk"))
    with pytest.raises(SourceError):
        source.read_into(0, memoryview(bytearray(BLOCK)))


def test_commands_record_what_they_worked_on(repository: Repository, tmp_path: Path) -> None:
    version = back_up(repository, random_image(tmp_path / "image", BLOCK), "disk").version
    restore(repository, version, str(tmp_path / "restored"))
    with pytest.raises(TargetError):
        restore(repository, version, str(tmp_path / "restored"))
    remove_versions(repository, [version], now=datetime.now(UTC))
    assert [(run.command, run.names, run.outcome) for run in recorded(repository)] == [
        ("rm", ("disk",), RunOutcome.SUCCEEDED),
        (f"restore {version.uid}", ("disk",), RunOutcome.FAILED),
        (f"restore {version.uid}", ("disk",), RunOutcome.SUCCEEDED),
        ("backup disk", ("disk",), RunOutcome.SUCCEEDED),
    ]
