"""Store jobs: a row for each running command, so that commands on all hosts see each other without lock files.

A job beats with the database's clock. It is dead if its process has ended, or if its heartbeat is old and stays the
same while it is watched. Age alone proves nothing, because setting the clock forward makes every heartbeat old. A live
job beats again within seconds, so a command that needs to know watches silent jobs with its own clock, see
`backyfs.work.silence`. A dead job holds nothing.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select, update

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.db.clock import DatabaseClock, database_time
from backyfs.metadata.db.database import insert_row
from backyfs.metadata.db.oddrows import odd_ids, sound_rows
from backyfs.metadata.db.tables import job_versions, jobs, versions
from backyfs.metadata.records.processes import Process, has_ended
from backyfs.metadata.records.removal import lock_version
from backyfs.metadata.records.runs import insert_run, names_text
from backyfs.model import Ending, JobId, JobProgress, RunOutcome, Unit, VersionUid
from backyfs.remedies import Advice

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from backyfs.metadata.db.database import Connection
    from backyfs.model import JobSpec, RunId, VersionId

HEARTBEAT_S = 10
DEAD_AFTER_S = 60
# The columns that all our schemas have: an upgrade looks for live jobs before it adds the other columns.
_SINCE_THE_FIRST = (
    jobs.c.id, jobs.c.host, jobs.c.scope, jobs.c.pid, jobs.c.pid_started, jobs.c.command, jobs.c.started_at,
    jobs.c.heartbeat_at,
)
_KILLED = Ending(
    outcome=RunOutcome.KILLED, error="the process ended without recording how: it was killed, or could not write that"
)
_LOST = Ending(
    outcome=RunOutcome.LOST,
    error="silent for a minute, and considered dead: its host crashed or was suspended, or it hung",
)
_MAY_WRITE_BLOBS = or_(jobs.c.writes_blobs.is_(None), jobs.c.writes_blobs)  # NULL: an older release runs it


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveJob:
    """A running command, for other commands."""

    id: JobId
    host: str
    pid: int
    command: str
    started_at: datetime
    beat_age_s: float                 # time since its last heartbeat, by the database's clock
    versions: tuple[VersionUid, ...]  # the versions that it holds

    def __str__(self) -> str:
        silent = f", last heard of {self.beat_age_s:.0f} s ago" if self.beat_age_s > DEAD_AFTER_S else ""
        return f"{self.command} (process {self.pid} on {self.host}{silent})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job with further facts for display. No decision depends on these."""

    job: LiveJob
    kind: str | None               # a JobKind, possibly of a later release; None: an older release runs it
    names: tuple[str, ...]         # of the backups it works on
    writes_blobs: bool             # it may store objects that have no row yet
    progress: JobProgress | None   # as of its last heartbeat; None: no step is running


def register_job(connection: Connection, process: Process, spec: JobSpec) -> JobId:
    """Insert a job, and end jobs whose processes have ended."""
    _bury_ended(connection, process)
    command = spec.command.encode(errors="backslashreplace").decode()  # paths need not be UTF-8
    row = insert(jobs).values(
        host=process.host[:255],
        scope=process.scope,
        pid=process.pid,
        pid_started=process.pid_started,
        kind=spec.kind,
        command=command[:1024],
        names=names_text(spec.names),
        writes_blobs=spec.writes_blobs,
        progress="",
        started_at=DatabaseClock(),
        heartbeat_at=DatabaseClock(),
    )
    return JobId(insert_row(connection, row))


def list_live_jobs(connection: Connection, observer: Process) -> list[LiveJob]:
    """Return the jobs whose processes have not ended according to `observer`, the oldest first.

    This includes jobs with an old heartbeat: only watching them shows whether they are dead.
    """
    now = database_time(connection)
    query = select(*_SINCE_THE_FIRST).order_by(jobs.c.id)
    rows = [row for row in sound_rows(connection, query, jobs.c.id) if not _has_ended(row, observer)]
    held = _held_versions(connection) if rows else {}
    return [
        LiveJob(
            id=JobId(row.id),
            host=row.host,
            pid=row.pid,
            command=row.command,
            started_at=row.started_at,
            beat_age_s=max(0.0, (now - row.heartbeat_at).total_seconds()),
            versions=tuple(held.get(row.id, ())),
        )
        for row in rows
    ]


def list_running_jobs(connection: Connection, observer: Process) -> list[RunningJob]:
    """Return the jobs of `list_live_jobs` with further facts. Damaged rows are skipped."""
    columns = (
        jobs.c.id, jobs.c.kind, jobs.c.names, jobs.c.writes_blobs, jobs.c.progress, jobs.c.progress_done,
        jobs.c.progress_total, jobs.c.progress_unit, jobs.c.progress_s,
    )  # fmt: skip
    known = {row.id: row for row in sound_rows(connection, select(*columns), jobs.c.id)}
    return [_running(job, known[job.id]) for job in list_live_jobs(connection, observer) if job.id in known]


def _running(job: LiveJob, row: Any) -> RunningJob:
    progress = None
    if row.progress_done is not None:
        progress = JobProgress(
            label=row.progress,
            done=row.progress_done,
            total=row.progress_total or 0,
            unit=Unit(row.progress_unit or Unit.BYTES),
            elapsed_s=row.progress_s or 0.0,
        )
    return RunningJob(
        job=job,
        kind=row.kind,
        names=tuple(json.loads(row.names or "[]")),
        writes_blobs=row.writes_blobs is not False,
        progress=progress,
    )


def silent_jobs(connection: Connection, observer: Process) -> dict[JobId, datetime]:
    """Return the jobs that would be dead if the clock were right, and their last heartbeats.

    A heartbeat in the future counts too: the clock was set back, so it proves nothing until that time.
    """
    now = database_time(connection)
    limit = timedelta(seconds=DEAD_AFTER_S)
    query = select(*_SINCE_THE_FIRST).where(
        or_(jobs.c.heartbeat_at < now - limit, jobs.c.heartbeat_at > now + limit)
    )
    rows = sound_rows(connection, query, jobs.c.id)
    return {JobId(row.id): row.heartbeat_at for row in rows if not _has_ended(row, observer)}


def remove_silent(
    connection: Connection, silent: Mapping[JobId, datetime], *, records: bool = True
) -> list[JobId]:
    """Remove the jobs that have not beaten since; return them. Call this in a write transaction.

    With `records`, each becomes a run; an older schema has no runs.
    """
    query = select(jobs.c.id, jobs.c.heartbeat_at).where(jobs.c.id.in_(list(silent)))
    rows = sound_rows(connection, query, jobs.c.id)
    dead = [JobId(row.id) for row in rows if row.heartbeat_at == silent[JobId(row.id)]]
    for job_id in dead:
        if records:
            end_job(connection, job_id, _LOST)
        else:
            remove_job(connection, job_id)
    return dead


def other_holders(connection: Connection, observer: Process, job_id: JobId, uid: VersionUid) -> list[LiveJob]:
    """Return the live jobs other than this one that hold a version."""
    return [job for job in list_live_jobs(connection, observer) if job.id != job_id and uid in job.versions]


def live_holders(connection: Connection, observer: Process, version_id: VersionId) -> list[LiveJob]:
    """Return the live jobs that hold a version, the oldest first, and remove jobs whose processes have ended.

    Call this in a write transaction.
    """
    _bury_ended(connection, observer)
    query = select(job_versions.c.job_id).where(job_versions.c.version_id == version_id)
    holding = set(connection.execute(query).scalars())
    return [job for job in list_live_jobs(connection, observer) if job.id in holding] if holding else []


def oldest_writer_s(connection: Connection, observer: Process) -> float | None:
    """Return the age in seconds of the oldest live job that may store objects; None if there is none.

    It is infinite if the clock was set back since that job began. Jobs whose processes have ended are removed, so they
    can no longer refer to objects, see `work.job.Job.confirm`. Call this in a write transaction.
    """
    _bury_ended(connection, observer)
    now = database_time(connection)
    started = [row.started_at for row in connection.execute(select(jobs.c.started_at).where(_MAY_WRITE_BLOBS))]
    ages = [(now - moment).total_seconds() for moment in started]
    return max((age if age >= 0 else math.inf for age in ages), default=None)


def beat(connection: Connection, job_id: JobId, progress: JobProgress | None) -> bool:
    """Record that a job is alive, and its progress; return False if its row is gone."""
    alive = update(jobs).where(jobs.c.id == job_id).values(
        heartbeat_at=DatabaseClock(),
        progress="" if progress is None else progress.label[:255],
        progress_done=None if progress is None else progress.done,
        progress_total=None if progress is None else progress.total,
        progress_unit=None if progress is None else progress.unit,
        progress_s=None if progress is None else progress.elapsed_s,
    )
    return connection.execute(alive).rowcount == 1


def has_row(connection: Connection, job_id: JobId) -> bool:
    """Return whether a job is still registered."""
    return connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).first() is not None


def hold_version(connection: Connection, job_id: JobId, version_id: VersionId) -> None:
    """Hold a version, so that it is not removed while the job lives. Call this first in a transaction.

    Holding a version twice has no further effect.

    Raises:
        VersionNotFoundError: it was removed.
    """
    if not lock_version(connection, version_id):
        raise VersionNotFoundError(
            "was removed by another command", subject="the version", remedy=Advice.LIST_VERSIONS()
        )
    held = (job_versions.c.job_id == job_id) & (job_versions.c.version_id == version_id)
    if connection.execute(select(job_versions.c.job_id).where(held)).first() is None:
        connection.execute(insert(job_versions).values(job_id=job_id, version_id=version_id))


def release_version(connection: Connection, job_id: JobId, version_id: VersionId) -> None:
    """Release a version. If it is not held, do nothing."""
    held = (job_versions.c.job_id == job_id) & (job_versions.c.version_id == version_id)
    connection.execute(delete(job_versions).where(held))


def end_job(connection: Connection, job_id: JobId, ending: Ending) -> RunId | None:
    """Remove a job with its holds, and record how it ended; return its run.

    Return None if another command has ended it, its row is damaged, or the run cannot be written. Call this in a write
    transaction, so that a job gets only one run even if several commands notice its end.
    """
    facts = (jobs.c.kind, jobs.c.command, jobs.c.names, jobs.c.host, jobs.c.started_at, jobs.c.heartbeat_at)
    rows = sound_rows(connection, select(*facts).where(jobs.c.id == job_id), jobs.c.id)
    was_there = remove_job(connection, job_id)
    return insert_run(connection, rows[0], ending) if rows and was_there else None


def remove_job(connection: Connection, job_id: JobId) -> bool:
    """Remove a job with its holds without recording a run; return whether it existed."""
    return connection.execute(delete(jobs).where(jobs.c.id == job_id)).rowcount == 1


def _held_versions(connection: Connection) -> dict[int, list[VersionUid]]:
    held: dict[int, list[VersionUid]] = {}
    query = select(job_versions.c.job_id, versions.c.uid).join(versions).order_by(job_versions.c.version_id)
    for row in sound_rows(connection, query, versions.c.id):
        held.setdefault(row.job_id, []).append(VersionUid(row.uid))
    return held


def _bury_ended(connection: Connection, observer: Process) -> None:
    # It is unknown whether a job with a damaged row has ended. If not, it will find its row gone and stop.
    for job_id in odd_ids(connection, select(*_SINCE_THE_FIRST), jobs.c.id):
        remove_job(connection, JobId(job_id))
    for row in connection.execute(select(*_SINCE_THE_FIRST).where(jobs.c.scope == observer.scope)).all():
        if _has_ended(row, observer):
            end_job(connection, JobId(row.id), _KILLED)


def _has_ended(row: Any, observer: Process) -> bool:
    return row.scope == observer.scope and has_ended(row.pid, row.pid_started)
