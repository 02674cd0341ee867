"""Jobs that tests register."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING

from sqlalchemy import select, update

from backyfs.metadata.db.tables import jobs
from backyfs.metadata.records.processes import Process
from backyfs.model import JobKind, JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.metadata.db.database import Connection
    from backyfs.model import JobId

ELSEWHERE = Process(host="other", scope="another machine", pid=1, pid_started=1)  # nothing can be known of it here

_WRITERS = {JobKind.BACKUP, JobKind.MIGRATE_ENCRYPTION, JobKind.REPAIR}


def spec(command: str) -> JobSpec:
    """Return the job that `backyfs jobs` shows as this text: a kind and an optional label."""
    kind, _, label = command.partition(" ")
    return JobSpec(kind=JobKind(kind), label=label, writes_blobs=JobKind(kind) in _WRITERS)


def age(connection: Connection, job_id: JobId, seconds: float) -> None:
    """Make the last beat of a job older by some seconds."""
    beat_at = connection.execute(select(jobs.c.heartbeat_at).where(jobs.c.id == job_id)).scalar_one()
    older = beat_at - timedelta(seconds=seconds)
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(heartbeat_at=older))


def stopping_after(calls: int) -> Callable[[], bool]:
    """Return a function that returns False for a number of calls, and then True to request a stop."""
    asked = count(1)
    return lambda: next(asked) > calls
