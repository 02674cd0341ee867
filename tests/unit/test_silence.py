"""Silent jobs: an old heartbeat counts only after the job was watched, because clocks can be set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select, update

from backyfs.engine.backup.backup import BackupRequest, backup
from backyfs.engine.space.fullcleanup import full_cleanup
from backyfs.engine.versions.remove import remove_versions
from backyfs.errors import InterruptedByUser, JobLostError, VersionError
from backyfs.metadata.db.clock import database_time
from backyfs.metadata.db.tables import jobs
from backyfs.metadata.records.jobs import hold_version, register_job
from backyfs.metadata.records.versions import set_status
from backyfs.model import VersionStatus
from backyfs.sources.registry import open_source
from backyfs.work import job as job_module
from backyfs.work import silence
from backyfs.work.job import Job
from backyfs.work.run import Control
from backyfs.work.silence import remove_silent_jobs
from tests.support.images import random_image
from tests.support.jobs import ELSEWHERE, spec
from tests.support.repositories import BLOCK, back_up, make_repository, opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backyfs.metadata.db.database import Database
    from backyfs.model import JobId, Version
    from backyfs.repository import Repository

HOUR = timedelta(hours=1)


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    with opened(make_repository(tmp_path / "repository", encrypted=False)) as repository:
        yield repository


@pytest.fixture
def version(repository: Repository, tmp_path: Path) -> Version:
    return back_up(repository, random_image(tmp_path / "image", 3 * BLOCK)).version


@pytest.fixture
def short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch for half a second, which is enough for a job that does not beat at all."""
    monkeypatch.setattr(silence, "WATCH_S", 0.5)
    monkeypatch.setattr(silence, "LOOK_EVERY_S", 0.05)


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make jobs beat often, but watch them for as long as usual."""
    monkeypatch.setattr(job_module, "FIRST_BEAT_S", 0.1)
    monkeypatch.setattr(silence, "LOOK_EVERY_S", 0.05)


def set_clock(database: Database, step: timedelta) -> None:
    """Make all heartbeats as old as if the clock of the database had been set forward."""
    with database.write() as connection:
        then = database_time(connection) - step
        connection.execute(update(jobs).values(heartbeat_at=then))


def dead_job(repository: Repository, command: str, holding: Version | None = None) -> JobId:
    """Leave the job of another host that crashed an hour ago."""
    with repository.database.write() as connection:
        job_id = register_job(connection, ELSEWHERE, spec(command))
        if holding is not None:
            hold_version(connection, job_id, holding.id)
    set_clock(repository.database, HOUR)
    return job_id


def registered(repository: Repository) -> list[str]:
    with repository.database.read() as connection:
        return list(connection.execute(select(jobs.c.command)).scalars())


@pytest.mark.usefixtures("short_watch")
def test_a_silent_job_is_removed(repository: Repository) -> None:
    dead_job(repository, "backup disk")
    remove_silent_jobs(repository.database)
    assert registered(repository) == []


def test_nobody_waits_if_all_jobs_beat(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "WATCH_S", float("inf"))
    with repository.database.write() as connection:
        register_job(connection, ELSEWHERE, spec("backup disk"))
    remove_silent_jobs(repository.database)
    assert registered(repository) == ["backup disk"]


@pytest.mark.usefixtures("quick_beats")
@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=["forward", "back"])
def test_a_live_job_survives_a_change_of_the_clock(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    monkeypatch.setattr(silence, "WATCH_S", float("inf"))  # until its next beat
    with Job(repository.database, spec("backup disk")) as job:
        set_clock(repository.database, step)
        remove_silent_jobs(repository.database)
        assert registered(repository) == ["backup disk"]
        job.check()


@pytest.mark.usefixtures("quick_beats")
def test_a_version_in_use_is_kept_although_the_clock_was_set_forward(repository: Repository, version: Version) -> None:
    with Job(repository.database, spec("mount /mnt"), only_reads=True) as job:
        job.hold(version.id)
        set_clock(repository.database, HOUR)
        [removal] = remove_versions(repository, [version], now=datetime.now(UTC))
    assert removal.kept is not None
    assert "is in use by mount /mnt" in str(removal.kept)


@pytest.mark.usefixtures("quick_beats")
def test_a_backup_continues_although_the_clock_was_set_forward_and_others_begin(
    repository: Repository, version: Version
) -> None:
    with Job(repository.database, spec("backup disk")) as job:
        set_clock(repository.database, HOUR)
        full_cleanup(repository, grace_s=0)
        with job.write():
            assert registered(repository) == ["backup disk"]


@pytest.mark.usefixtures("short_watch")
def test_a_version_held_by_a_crashed_host_can_be_removed(repository: Repository, version: Version) -> None:
    dead_job(repository, "mount /mnt", version)
    assert [removal.kept for removal in remove_versions(repository, [version], now=datetime.now(UTC))] == [None]


@pytest.mark.usefixtures("short_watch")
def test_a_backup_of_a_crashed_host_can_be_continued(
    repository: Repository, version: Version, tmp_path: Path
) -> None:
    with repository.database.write() as connection:
        set_status(connection, version.id, VersionStatus.INCOMPLETE)
    dead_job(repository, "backup disk", version)
    source = open_source(str(tmp_path / "image"))
    try:
        report = backup(repository, source, BackupRequest(name="disk", continued=version))
    finally:
        source.close()
    assert report.version.uid == version.uid


def test_a_version_being_written_by_a_live_job_cannot_be_continued(repository: Repository, version: Version) -> None:
    jobs = (Job(repository.database, spec("backup disk")) for _ in range(2))
    with next(jobs) as first, next(jobs) as second:
        first.hold(version.id)
        with pytest.raises(VersionError, match="is in use by backup disk"):
            second.hold_alone(version)


def test_watching_can_be_interrupted(repository: Repository, version: Version) -> None:
    dead_job(repository, "mount /mnt", version)
    with pytest.raises(InterruptedByUser, match="nothing was changed"):
        remove_versions(repository, [version], now=datetime.now(UTC), control=Control(stop=lambda: True))
    assert registered(repository) == ["mount /mnt"]


@pytest.mark.usefixtures("short_watch")
def test_a_job_removed_while_it_hung_writes_nothing_more(repository: Repository) -> None:
    with Job(repository.database, spec("backup disk")) as job:
        set_clock(repository.database, HOUR)
        remove_silent_jobs(repository.database)  # its first heartbeat comes later than this
        with pytest.raises(JobLostError), job.write():
            raise AssertionError("a transaction was begun")
