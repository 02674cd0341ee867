"""Jobs: rows of running commands. Registering a command removes the jobs that are dead and keeps those alive."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from backyfs.metadata.db.tables import job_versions, jobs
from backyfs.metadata.records.jobs import (
    DEAD_AFTER_S,
    HEARTBEAT_S,
    beat,
    hold_version,
    list_live_jobs,
    list_running_jobs,
    live_holders,
    oldest_writer_s,
    register_job,
    remove_job,
    remove_silent,
    silent_jobs,
)
from backyfs.metadata.records.processes import Process, this_process
from backyfs.metadata.records.versions import create_version
from backyfs.model import JobKind, JobProgress, JobSpec
from tests.support.jobs import age, spec

if TYPE_CHECKING:

    from backyfs.metadata.db.database import Connection, Database
    from backyfs.model import VersionId

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def process_of(child: subprocess.Popen[bytes]) -> Process:
    """Return the identity of a process started here, as it would give it itself."""
    stat = Path(f"/proc/{child.pid}/stat").read_text(encoding="ascii")
    return replace(this_process(), pid=child.pid, pid_started=int(stat.rpartition(")")[2].split()[19]))


def elsewhere(number: int = 0) -> Process:
    """Return a process on another host, about which nothing can be known here."""
    return Process(host="other", scope=f"another machine {number}", pid=os.getpid(), pid_started=1)


def registered(connection: Connection) -> list[int]:
    return list(connection.execute(select(jobs.c.id).order_by(jobs.c.id)).scalars())


def held(connection: Connection) -> list[tuple[int, int]]:
    return [(row.job_id, row.version_id) for row in connection.execute(select(job_versions))]


def make_version(connection: Connection) -> VersionId:
    return create_version(connection, name="disk", snapshot_name="", size_bytes=1, created_at=NOON).id


# The life of a job


def test_a_registered_job_identifies_its_process(connection: Connection) -> None:
    process = this_process()
    job_id = register_job(
        connection,
        process,
        JobSpec(kind=JobKind.BACKUP, label="disk", names=("disk", "disk"), writes_blobs=True),
    )
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    assert (row.host, row.scope, row.pid, row.pid_started) == (
        process.host, process.scope, os.getpid(), process.pid_started
    )  # fmt: skip
    assert (row.kind, row.command, row.names, row.writes_blobs) == ("backup", "backup disk", '["disk"]', True)
    assert (row.progress, row.progress_done, row.progress_total, row.progress_unit, row.progress_s) == ("", *[None] * 4)


def test_a_job_begins_with_a_beat_at_the_time_of_the_database(connection: Connection) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    job_id = register_job(connection, this_process(), spec("backup"))
    row = connection.execute(select(jobs.c.started_at, jobs.c.heartbeat_at).where(jobs.c.id == job_id)).one()
    assert before <= row.started_at <= row.heartbeat_at <= datetime.now(UTC) + timedelta(seconds=1)


def test_a_beat_updates_time_and_progress(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("backup"))
    age(connection, job_id, 50)
    old = connection.execute(select(jobs.c.heartbeat_at)).scalar_one()
    progress = JobProgress(label="Backing up disk", done=38, total=100, elapsed_s=1.5)
    assert beat(connection, job_id, progress) is True
    assert connection.execute(select(jobs.c.heartbeat_at)).scalar_one() - old >= timedelta(seconds=50)
    [running] = list_running_jobs(connection, this_process())
    assert running.progress == progress
    assert beat(connection, job_id, None) is True
    [running] = list_running_jobs(connection, this_process())
    assert running.progress is None


def test_a_running_job_is_listed_as_data(connection: Connection) -> None:
    register_job(connection, this_process(), JobSpec(kind=JobKind.RM, names=("a", "b|c\n")))
    register_job(connection, this_process(), spec("backup disk"))
    remove, backup = list_running_jobs(connection, this_process())
    assert (remove.kind, remove.names, remove.writes_blobs) == (JobKind.RM, ("a", "b|c\n"), False)
    assert (backup.kind, backup.job.command, backup.writes_blobs) == (JobKind.BACKUP, "backup disk", True)


def test_a_damaged_descriptive_column_does_not_hide_what_a_job_holds(connection: Connection) -> None:
    version_id = make_version(connection)
    job_id = register_job(connection, elsewhere(), spec("mount /mnt"))
    hold_version(connection, job_id, version_id)
    connection.execute(update(jobs).values(progress_unit="parsecs", names="[1", kind="k" * 99))
    assert [job.id for job in live_holders(connection, this_process(), version_id)] == [job_id]
    assert list_running_jobs(connection, this_process()) == []


def test_a_beat_reports_that_the_row_is_gone(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("backup"))
    remove_job(connection, job_id)
    assert beat(connection, job_id, None) is False


def test_removing_a_job_releases_the_versions_it_held(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("mount"))
    hold_version(connection, job_id, make_version(connection))
    remove_job(connection, job_id)
    assert registered(connection) == []
    assert held(connection) == []


def test_removing_a_job_twice_does_no_harm(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("mount"))
    remove_job(connection, job_id)
    remove_job(connection, job_id)
    assert registered(connection) == []


def test_a_job_holds_each_version_once(connection: Connection) -> None:
    job_id = register_job(connection, this_process(), spec("mount"))
    first, second = make_version(connection), make_version(connection)
    for version_id in (first, second, first):
        hold_version(connection, job_id, version_id)
    assert sorted(held(connection)) == [(job_id, first), (job_id, second)]


def test_several_jobs_can_hold_the_same_version(connection: Connection) -> None:
    version_id = make_version(connection)
    for _ in range(2):
        hold_version(connection, register_job(connection, this_process(), spec("mount")), version_id)
    assert len(held(connection)) == 2


def test_a_long_command_and_progress_are_cut_to_fit_the_table(connection: Connection) -> None:
    names = tuple(f"{number:02}{'n' * 1000}" for number in range(10))
    long = JobSpec(kind=JobKind.BACKUP, label="c" * 2000, names=names)
    job_id = register_job(connection, replace(this_process(), host="h" * 300), long)
    beat(connection, job_id, JobProgress(label="p" * 300, done=0, total=0))
    row = connection.execute(select(jobs)).one()
    assert (len(row.host), len(row.command), len(row.progress)) == (255, 1024, 255)
    [running] = list_running_jobs(connection, this_process())
    assert running.names == names[:4]


def test_a_removed_job_does_not_mistake_the_next_one_for_itself(connection: Connection) -> None:
    # A suspended host wakes up after another command has removed its job and registered a new one.
    theirs = register_job(connection, elsewhere(), spec("backup"))
    remove_job(connection, theirs)
    ours = register_job(connection, this_process(), spec("mount"))
    assert beat(connection, theirs, None) is False
    remove_job(connection, theirs)
    assert registered(connection) == [ours]


# Dead jobs


def test_the_job_of_a_live_process_is_kept(connection: Connection, child: subprocess.Popen[bytes]) -> None:
    theirs = register_job(connection, process_of(child), spec("mount"))
    ours = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [theirs, ours]


def test_the_job_of_a_killed_process_is_removed_when_the_next_registers(
    connection: Connection, child: subprocess.Popen[bytes]
) -> None:
    theirs = register_job(connection, process_of(child), spec("mount"))
    hold_version(connection, theirs, make_version(connection))
    child.kill()
    child.wait()
    ours = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [ours]
    assert held(connection) == []


def test_a_job_whose_process_id_was_reused_is_dead(
    connection: Connection, child: subprocess.Popen[bytes]
) -> None:
    process = process_of(child)
    register_job(connection, replace(process, pid_started=process.pid_started - 1), spec("mount"))
    ours = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [ours]


def test_the_job_of_another_host_is_kept_while_it_beats(connection: Connection) -> None:
    theirs = register_job(connection, elsewhere(), spec("mount"))
    age(connection, theirs, 55)
    ours = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [theirs, ours]


def test_an_old_heartbeat_alone_does_not_remove_a_job(connection: Connection, child: subprocess.Popen[bytes]) -> None:
    theirs = [register_job(connection, process, spec("mount")) for process in (elsewhere(), process_of(child))]
    for job_id in theirs:
        age(connection, job_id, 3600)  # as if the clock had been set forward
    ours = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [*theirs, ours]
    assert [job.id for job in list_live_jobs(connection, this_process())] == [*theirs, ours]


@pytest.mark.parametrize("seconds", [61, -61])
def test_a_job_without_a_heartbeat_for_a_minute_is_silent(connection: Connection, seconds: float) -> None:
    theirs, others = (register_job(connection, elsewhere(number), spec("mount")) for number in range(2))
    age(connection, theirs, seconds)  # -61: the clock was set back
    age(connection, others, 55)
    assert silent_jobs(connection, this_process()).keys() == {theirs}


def test_a_silent_job_is_removed_with_its_holds_unless_it_beats_again(connection: Connection) -> None:
    dead, alive = (register_job(connection, elsewhere(number), spec("mount")) for number in range(2))
    for job_id in (dead, alive):
        hold_version(connection, job_id, make_version(connection))
        age(connection, job_id, 61)
    silent = silent_jobs(connection, this_process())
    beat(connection, alive, None)
    assert remove_silent(connection, silent) == [dead]
    assert registered(connection) == [alive]
    assert [job_id for job_id, _ in held(connection)] == [alive]


def test_a_job_with_unknown_start_is_alive_while_its_process_is(
    connection: Connection, child: subprocess.Popen[bytes]
) -> None:
    theirs = register_job(connection, replace(process_of(child), pid_started=0), spec("mount"))
    register_job(connection, this_process(), spec("backup"))
    assert theirs in registered(connection)
    child.kill()
    child.wait()
    register_job(connection, this_process(), spec("backup"))
    assert theirs not in registered(connection)


@pytest.mark.parametrize(
    ("command", "writes", "is_writer"),
    [
        ("cleanup", True, True),
        ("backup cleanup", False, False),
        ("mount /mnt", None, True),  # registered by an older release
    ],
)
def test_the_column_and_not_the_command_decides_who_may_write(
    connection: Connection, command: str, writes: bool | None, is_writer: bool
) -> None:
    job_id = register_job(connection, elsewhere(), spec(command))
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(writes_blobs=writes))
    assert (oldest_writer_s(connection, this_process()) is not None) is is_writer


def test_a_writer_that_began_in_the_future_counts_as_older_than_everything(connection: Connection) -> None:
    job_id = register_job(connection, elsewhere(), spec("backup"))
    moment = connection.execute(select(jobs.c.started_at).where(jobs.c.id == job_id)).scalar_one()
    connection.execute(update(jobs).values(started_at=moment + timedelta(hours=2)))  # the clock was set back
    assert oldest_writer_s(connection, this_process()) == float("inf")


def test_the_same_process_may_have_several_jobs(connection: Connection) -> None:
    first = register_job(connection, this_process(), spec("mount"))
    second = register_job(connection, this_process(), spec("backup"))
    assert registered(connection) == [first, second]


def test_a_job_beats_often_enough_to_survive_a_few_failed_beats() -> None:
    assert (HEARTBEAT_S, DEAD_AFTER_S) == (10, 60)


# Processes


def test_a_process_is_identified_by_machine_boot_and_namespace() -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    namespace = os.readlink("/proc/self/ns/pid")
    process = this_process()
    assert process.pid == os.getpid()
    assert process.scope.endswith(f"{boot} {namespace}")
    assert len(process.scope) <= 128
    assert process.pid_started > 0


def test_a_process_always_gets_the_same_identity() -> None:
    assert this_process() == this_process()


def test_a_process_with_parentheses_in_its_name_is_found_alive(connection: Connection, tmp_path: Path) -> None:
    program = tmp_path / "a) S (1"
    program.symlink_to(Path(sys.executable).resolve())
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as process:
        theirs = register_job(connection, process_of(process), spec("mount"))
        register_job(connection, this_process(), spec("backup"))
        assert theirs in registered(connection)
        process.kill()


def test_the_shared_database_has_no_jobs(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(select(func.count()).select_from(jobs)).scalar_one() == 0


def test_a_job_whose_process_is_a_zombie_is_dead(connection: Connection) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        dead = register_job(connection, process_of(child), spec("backup disk"))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended but still exists
        register_job(connection, this_process(), spec("backup disk"))
        assert dead not in registered(connection)
    finally:
        child.communicate()


def test_a_command_that_is_not_utf_8_can_be_registered(connection: Connection) -> None:
    job = register_job(connection, this_process(), spec("mount /mnt/na\udcffme"))
    assert connection.execute(select(jobs.c.command).where(jobs.c.id == job)).scalar_one() == "mount /mnt/na\\udcffme"
