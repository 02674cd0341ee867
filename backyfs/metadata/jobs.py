"""Jobs: running commands as rows, so that commands of all hosts know of each other without lock files.

A job beats with the database's clock. It is dead when its process is gone on this host, or its beat is
older than 60 s; a dead job holds nothing.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from backyfs.errors import VersionNotFoundError
from backyfs.metadata.database import insert_row
from backyfs.metadata.removal import lock_version
from backyfs.metadata.tables import UtcDateTime, job_versions, jobs, versions
from backyfs.model import JobId, VersionUid

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

    from backyfs.metadata.database import Connection
    from backyfs.model import VersionId

HEARTBEAT_S = 10
DEAD_AFTER_S = 60
# The columns that every schema of ours has: an upgrade looks for live jobs before it adds the others.
_SINCE_THE_FIRST = (
    jobs.c.id, jobs.c.host, jobs.c.scope, jobs.c.pid, jobs.c.pid_started, jobs.c.command, jobs.c.progress,
    jobs.c.started_at, jobs.c.heartbeat_at,
)
_READERS = ("cleanup", "mount ", "restore ", "scrub ")  # commands that store no blobs
_ENDED = frozenset("ZX")  # states of a process that has ended and was not waited for yet, proc(5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process among all hosts."""

    host: str         # for people
    scope: str        # machine, boot and pid namespace: where the pid means something
    pid: int
    pid_started: int  # clock ticks after boot: pids are used again


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A running command, as others see it."""

    id: JobId
    host: str
    pid: int
    command: str
    progress: str
    started_at: datetime
    beat_age_s: float                 # since it was heard of, by the database's clock
    versions: tuple[VersionUid, ...]  # that it holds

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host})"


class _DatabaseClock(FunctionElement[datetime]):
    """The time in UTC by the clock of the database, with microseconds where it has them."""

    type: TypeEngine[datetime] = UtcDateTime()
    inherit_cache = True


@compiles(_DatabaseClock, "sqlite")
def _sqlite_clock(_element: _DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(_DatabaseClock, "postgresql")
def _postgresql_clock(_element: _DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "timezone('utc', clock_timestamp())"


@compiles(_DatabaseClock, "mysql")
@compiles(_DatabaseClock, "mariadb")
def _mariadb_clock(_element: _DatabaseClock, _compiler: SQLCompiler, **_options: Any) -> str:
    return "UTC_TIMESTAMP(6)"


def database_time(connection: Connection) -> datetime:
    """Return the time by the clock of the database."""
    moment: datetime = connection.execute(select(_DatabaseClock())).scalar_one()
    return moment


def this_process() -> Process:
    """Return what names the calling process among all hosts."""
    machine = _first_line("/etc/machine-id")
    boot = _first_line("/proc/sys/kernel/random/boot_id")
    namespace = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return Process(
        host=socket.gethostname(),
        scope=f"{machine} {boot} {namespace}",
        pid=pid,
        pid_started=_started(pid) or 0,
    )


def register_job(connection: Connection, process: Process, command: str) -> JobId:
    """Insert a job, and remove those that are dead."""
    _remove_dead(connection, process)
    row = insert(jobs).values(
        host=process.host[:255],
        scope=process.scope,
        pid=process.pid,
        pid_started=process.pid_started,
        command=command.encode(errors="backslashreplace").decode()[:1024],  # paths need not be UTF-8
        progress="",
        started_at=_DatabaseClock(),
        heartbeat_at=_DatabaseClock(),
    )
    return JobId(insert_row(connection, row))


def list_live_jobs(connection: Connection, observer: Process) -> list[Job]:
    """Return the jobs that live, as far as `observer` can tell, the oldest first."""
    now = connection.execute(select(_DatabaseClock())).scalar_one()
    is_fresh = jobs.c.heartbeat_at >= now - timedelta(seconds=DEAD_AFTER_S)
    query = select(*_SINCE_THE_FIRST).where(is_fresh).order_by(jobs.c.id)
    rows = [
        row
        for row in connection.execute(query)
        if row.scope != observer.scope or _started(row.pid) == row.pid_started
    ]
    held = _held_versions(connection) if rows else {}
    return [
        Job(
            id=JobId(row.id),
            host=row.host,
            pid=row.pid,
            command=row.command,
            progress=row.progress,
            started_at=row.started_at,
            beat_age_s=max(0.0, (now - row.heartbeat_at).total_seconds()),
            versions=tuple(held.get(row.id, ())),
        )
        for row in rows
    ]


def other_holders(connection: Connection, observer: Process, job_id: JobId, uid: VersionUid) -> list[Job]:
    """Return the live jobs but for this one that hold a version."""
    return [job for job in list_live_jobs(connection, observer) if job.id != job_id and uid in job.versions]


def live_holders(connection: Connection, observer: Process, version_id: VersionId) -> list[Job]:
    """Return the live jobs that hold a version, the oldest first; those that are dead are removed.

    A dead job may be of a host that was suspended: when it goes on it is to find its row gone, and stop. To be
    called in a write transaction.
    """
    _remove_dead(connection, observer)
    query = select(job_versions.c.job_id).where(job_versions.c.version_id == version_id)
    holding = set(connection.execute(query).scalars())
    return [job for job in list_live_jobs(connection, observer) if job.id in holding] if holding else []


def oldest_writer_s(connection: Connection, observer: Process) -> float | None:
    """Return for how many seconds the oldest live job runs that could store objects; None: there is none.

    Those that are dead are removed: from now on they name nothing, see `engine.job.Job.confirm`. To be called in a
    write transaction.
    """
    _remove_dead(connection, observer)
    now = database_time(connection)
    writers = [job for job in list_live_jobs(connection, observer) if not job.command.startswith(_READERS)]
    return max(((now - job.started_at).total_seconds() for job in writers), default=None)


def beat(connection: Connection, job_id: JobId, progress: str) -> bool:
    """Tell that a job lives and how it gets on; return False if its row is gone."""
    alive = update(jobs).where(jobs.c.id == job_id).values(heartbeat_at=_DatabaseClock(), progress=progress[:255])
    return connection.execute(alive).rowcount == 1


def has_row(connection: Connection, job_id: JobId) -> bool:
    """Tell whether a job is still registered."""
    return connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).first() is not None


def hold_version(connection: Connection, job_id: JobId, version_id: VersionId) -> None:
    """Hold a version: it is not removed while the job lives. Holding it twice is fine. First in its transaction.

    Raises:
        VersionNotFoundError: it was removed.
    """
    if not lock_version(connection, version_id):
        raise VersionNotFoundError("the version was removed by another command; `backyfs ls` shows the others")
    held = (job_versions.c.job_id == job_id) & (job_versions.c.version_id == version_id)
    if connection.execute(select(job_versions.c.job_id).where(held)).first() is None:
        connection.execute(insert(job_versions).values(job_id=job_id, version_id=version_id))


def release_version(connection: Connection, job_id: JobId, version_id: VersionId) -> None:
    """Hold a version no longer; one that is not held is fine."""
    held = (job_versions.c.job_id == job_id) & (job_versions.c.version_id == version_id)
    connection.execute(delete(job_versions).where(held))


def remove_job(connection: Connection, job_id: JobId) -> None:
    """Remove a job that has ended, with what it holds."""
    connection.execute(delete(jobs).where(jobs.c.id == job_id))


def _held_versions(connection: Connection) -> dict[int, list[VersionUid]]:
    held: dict[int, list[VersionUid]] = {}
    query = select(job_versions.c.job_id, versions.c.uid).join(versions).order_by(job_versions.c.version_id)
    for row in connection.execute(query):
        held.setdefault(row.job_id, []).append(VersionUid(row.uid))
    return held


def _remove_dead(connection: Connection, observer: Process) -> None:
    now = connection.execute(select(_DatabaseClock())).scalar_one()
    connection.execute(delete(jobs).where(jobs.c.heartbeat_at < now - timedelta(seconds=DEAD_AFTER_S)))
    for row in connection.execute(select(*_SINCE_THE_FIRST).where(jobs.c.scope == observer.scope)).all():
        if _started(row.pid) != row.pid_started:
            remove_job(connection, JobId(row.id))


def _started(pid: int) -> int | None:
    """Return when a process of this host was started, in clock ticks after boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            # The name in parentheses may hold anything; field 22 is the 20th after it, proc(5).
            fields = file.read().rpartition(")")[2].split()
            return None if fields[0] in _ENDED else int(fields[19])
    except (OSError, IndexError):
        return None


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""
