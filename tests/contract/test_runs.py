"""Runs on every engine: how jobs ended, who records it, and how many runs are kept."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import delete, select, update

from backyfs.metadata.db.clock import database_time
from backyfs.metadata.db.tables import catalog_notes, jobs, repository, runs
from backyfs.metadata.records.identity import Identity, save_identity
from backyfs.metadata.records.jobs import end_job, list_live_jobs, register_job, remove_silent, silent_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.runs import (
    RunLimits,
    complete_run,
    insert_run,
    list_reports_with_requests,
    list_runs,
    newest_reports_with_requests,
    prune_runs,
)
from backyfs.model import Ending, JobKind, JobSpec, RunId, RunOutcome
from tests.support.jobs import ELSEWHERE, spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.db.database import Connection, Database
    from backyfs.model import JobId

DONE = Ending(outcome=RunOutcome.SUCCEEDED, exit_status=0)
FAILED = Ending(outcome=RunOutcome.FAILED, exit_status=7, error_class="SourceError", error="/dev/x is gone")


@pytest.fixture
def empty(database: Database) -> Iterator[Database]:
    """Lend a database in which writers take turns and transactions are kept; empty it at the end."""
    identity = Identity(
        uid="u", block_size=512, hash_function="blake3", wrapped_fingerprint_key=None, created_at=datetime.now(UTC)
    )
    with database.begin() as connection:
        save_identity(connection, identity)
    yield database
    with database.write() as connection:
        for table in (jobs, runs, catalog_notes, repository):
            connection.execute(delete(table))


def dead_job(connection: Connection, command: str = "backup disk") -> JobId:
    """Leave the job of an ended process of this host."""
    job_id = register_job(connection, this_process(), spec(command))
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(pid_started=1))  # another process has its id
    return job_id


def test_a_job_that_ends_becomes_a_run(connection: Connection) -> None:
    names = ("disk", "\N{FLOPPY DISK} 'x' | \"y\"")
    job_id = register_job(connection, ELSEWHERE, JobSpec(kind=JobKind.RM, names=names))
    started = connection.execute(select(jobs.c.started_at)).scalar_one()
    run_id = end_job(connection, job_id, FAILED)
    assert list_live_jobs(connection, this_process()) == []
    [run] = list_runs(connection)
    assert (run.id, run.kind, run.command, run.names, run.host) == (run_id, JobKind.RM, "rm", names, "other")
    assert (run.outcome, run.exit_status, run.error_class, run.error) == (
        RunOutcome.FAILED, 7, "SourceError", "/dev/x is gone"
    )  # fmt: skip
    assert run.started_at == started
    assert started <= run.ended_at <= database_time(connection)
    assert 0 <= run.duration_s < 60
    assert run.report is None


def test_runs_are_listed_newest_first(connection: Connection) -> None:
    for number in range(3):
        end_job(connection, register_job(connection, this_process(), spec(f"backup {number}")), DONE)
    assert [run.command for run in list_runs(connection)] == ["backup 2", "backup 1", "backup 0"]
    assert [run.command for run in list_runs(connection, limit=2)] == ["backup 2", "backup 1"]
    assert list_runs(connection, limit=0) == []


def test_a_job_whose_process_was_killed_becomes_a_run_when_the_next_registers(connection: Connection) -> None:
    dead_job(connection)
    heard = connection.execute(select(jobs.c.heartbeat_at)).scalar_one()
    register_job(connection, this_process(), spec("cleanup"))
    [run] = list_runs(connection)
    assert (run.command, run.outcome, run.exit_status) == ("backup disk", RunOutcome.KILLED, None)
    assert (run.ended_at, run.error_class) == (heard, None)
    assert run.error is not None
    assert "the process ended without recording how" in run.error


def test_a_silent_job_becomes_a_lost_run(connection: Connection) -> None:
    register_job(connection, ELSEWHERE, spec("mount /mnt"))
    heard = database_time(connection) - timedelta(minutes=2)
    connection.execute(update(jobs).values(heartbeat_at=heard, started_at=heard - timedelta(hours=1)))
    remove_silent(connection, silent_jobs(connection, this_process()))
    [run] = list_runs(connection)
    assert (run.command, run.outcome, run.ended_at) == ("mount /mnt", RunOutcome.LOST, heard)
    assert run.duration_s == 3600
    assert run.error is not None
    assert "considered dead" in run.error


def test_an_older_schema_gets_no_run_for_a_silent_job(connection: Connection) -> None:
    job_id = register_job(connection, ELSEWHERE, spec("mount /mnt"))
    heard = connection.execute(select(jobs.c.heartbeat_at)).scalar_one()
    assert remove_silent(connection, {job_id: heard}, records=False) == [job_id]
    assert list_runs(connection) == []


def test_a_job_of_an_older_release_becomes_a_run_without_kind_and_names(connection: Connection) -> None:
    dead_job(connection)
    connection.execute(update(jobs).values(kind=None, names=None))
    register_job(connection, this_process(), spec("cleanup"))
    [run] = list_runs(connection)
    assert (run.kind, run.names, run.command) == (None, (), "backup disk")


def test_a_job_that_ends_twice_has_one_run(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("backup"))
    assert end_job(connection, job_id, DONE) is not None
    assert end_job(connection, job_id, FAILED) is None
    assert [run.outcome for run in list_runs(connection)] == [RunOutcome.SUCCEEDED]


def test_a_dead_job_found_by_several_commands_has_one_run(empty: Database) -> None:
    with empty.write() as connection:
        dead_job(connection)
    together = threading.Barrier(4)

    def register() -> None:
        together.wait()
        with empty.write() as connection:
            register_job(connection, this_process(), spec("cleanup"))

    threads = [threading.Thread(target=register) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with empty.read() as connection:
        assert [(run.command, run.outcome) for run in list_runs(connection)] == [("backup disk", RunOutcome.KILLED)]


def test_an_unwritable_run_is_a_warning_and_the_transaction_continues(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    register_job(connection, this_process(), spec("backup"))
    now = database_time(connection)
    job = SimpleNamespace(
        kind="backup", command="backup disk", names="[]", host=None, started_at=now, heartbeat_at=now
    )
    assert insert_run(connection, job, DONE) is None
    assert "cannot record how backup disk ended: database: " in caplog.text
    assert [job.command for job in list_live_jobs(connection, this_process())] == ["backup"]
    assert list_runs(connection) == []


# Later additions


def test_a_report_can_be_added_and_is_shown_on_request(connection: Connection) -> None:
    run_id = end_job(connection, register_job(connection, this_process(), spec("backup")), DONE)
    assert run_id is not None
    report = json.dumps({"name": "\N{FLOPPY DISK}", "bytes": 1 << 60}, ensure_ascii=False)
    complete_run(connection, run_id, report=report)
    assert [run.report for run in list_runs(connection, with_reports=True)] == [report]
    [run] = list_runs(connection)
    assert (run.report, run.outcome) == (None, RunOutcome.SUCCEEDED)


@pytest.mark.parametrize(("size", "is_kept"), [(64 << 10, True), ((64 << 10) + 1, False)])
def test_a_report_of_more_than_64_kib_is_left_out(connection: Connection, size: int, *, is_kept: bool) -> None:
    run_id = end_job(connection, register_job(connection, this_process(), spec("rm")), DONE)
    assert run_id is not None
    long = "\N{LATIN SMALL LETTER O WITH DIAERESIS}" * ((size - 2) // 2)
    report = f'"{long}{"x" * (size % 2)}"'
    assert len(report.encode()) == size
    complete_run(connection, run_id, report=report)
    assert [run.report for run in list_runs(connection, with_reports=True)] == [report if is_kept else None]


def test_the_result_of_the_command_replaces_the_outcome_of_the_job(connection: Connection) -> None:
    run_id = end_job(connection, register_job(connection, this_process(), spec("scrub --all")), DONE)
    assert run_id is not None
    found = Ending(outcome=RunOutcome.FAILED, exit_status=20, error_class="IntegrityError", error="damage\0 \udcff")
    complete_run(connection, run_id, ending=found)
    [run] = list_runs(connection)
    assert (run.outcome, run.exit_status, run.error) == (RunOutcome.FAILED, 20, "damage\\x00 \\udcff")


def test_nothing_is_added_to_a_removed_run(connection: Connection) -> None:
    complete_run(connection, RunId(4711), report="{}", ending=FAILED)
    assert list_runs(connection, with_reports=True) == []


def test_a_long_message_is_truncated(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("backup"))
    end_job(connection, job_id, replace(FAILED, error="e" * 5000, error_class="E" * 100))
    [run] = list_runs(connection)
    assert (len(run.error or ""), len(run.error_class or "")) == (4096, 64)


# Limits


def test_runs_that_are_too_old_are_removed(connection: Connection) -> None:
    ids = [end_job(connection, register_job(connection, this_process(), spec(f"backup {n}")), DONE) for n in range(3)]
    now = database_time(connection)
    for run_id, days in zip(ids, (91, 89, 0), strict=True):
        connection.execute(update(runs).where(runs.c.id == run_id).values(ended_at=now - timedelta(days=days)))
    assert ids[-1] is not None
    prune_runs(connection, ids[-1], RunLimits())
    assert [run.command for run in list_runs(connection)] == ["backup 2", "backup 1"]


def test_surplus_runs_are_removed(connection: Connection) -> None:
    for number in range(5):
        run_id = end_job(connection, register_job(connection, this_process(), spec(f"backup {number}")), DONE)
        assert run_id is not None
        prune_runs(connection, run_id, RunLimits(rows=3))
    assert [run.command for run in list_runs(connection)] == ["backup 4", "backup 3", "backup 2"]


def test_the_limits_are_as_documented() -> None:
    assert RunLimits() == RunLimits(days=90, rows=10_000)


# Reports of backups that sent requests


def finished(connection: Connection, name: str, report: object, kind: JobKind = JobKind.BACKUP) -> RunId:
    """Record a command that worked on one name, with its report."""
    run_id = end_job(connection, register_job(connection, ELSEWHERE, JobSpec(kind=kind, names=(name,))), DONE)
    assert run_id is not None
    complete_run(connection, run_id, report=None if report is None else json.dumps(report))
    return run_id


def sent(number: int) -> dict[str, object]:
    return {"number": number, "requests": {"put": {"requests": number}}}


def numbers_in(reports: Iterator[str]) -> list[int]:
    return [json.loads(report)["number"] for report in reports]


def test_the_newest_report_of_each_name_is_found_if_it_has_requests(connection: Connection) -> None:
    odd = '%_\\ "requests": {" \N{FLOPPY DISK}'
    for name, report in (
        ("a", sent(1)), ("a", sent(2)), ("a", None), ("b", sent(3)), ("b", {"number": 4, "requests": {}}),
        (odd, sent(5)), ("c", {"number": 6, "name": odd}), ("other", sent(7)),
    ):  # fmt: skip
        finished(connection, name, report)
    finished(connection, "a", sent(8), JobKind.RESTORE)
    found = numbers_in(newest_reports_with_requests(connection, ["a", "b", "c", "unknown", odd]))
    assert sorted(found) == [2, 5]
    assert numbers_in(newest_reports_with_requests(connection, [])) == []


def test_reports_with_requests_are_listed_from_a_time_on_the_oldest_first(connection: Connection) -> None:
    for name, report in (("a", sent(1)), ("b", sent(2)), ("a", sent(3)), ("a", {"number": 4, "requests": {}})):
        finished(connection, name, report)
    now = database_time(connection)
    assert numbers_in(list_reports_with_requests(connection, ["a"], now - timedelta(days=1))) == [1, 3]
    assert numbers_in(list_reports_with_requests(connection, ["a"], now + timedelta(days=1))) == []
