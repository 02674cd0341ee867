"""The commands that are running, which hold versions, and the commands that have ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from backyfs.metadata.records.jobs import RunningJob as _RunningJob
from backyfs.metadata.records.jobs import list_running_jobs
from backyfs.metadata.records.processes import this_process
from backyfs.metadata.records.runs import RunRecord, list_runs

if TYPE_CHECKING:
    from backyfs.repository import Repository

RunningJob: TypeAlias = _RunningJob
EndedJob: TypeAlias = RunRecord


def running_jobs(repository: Repository) -> list[RunningJob]:
    """Return the commands that are running on a repository, on all hosts, the oldest first.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with repository.database.read() as connection:
        return list_running_jobs(connection, this_process())


def ended_jobs(repository: Repository, *, limit: int | None = None, with_reports: bool = False) -> list[EndedJob]:
    """Return the commands that have ended, the newest first; only the newest `limit`.

    Raises:
        DatabaseError: the database cannot be read.
    """
    with repository.database.read() as connection:
        return list_runs(connection, limit=limit, with_reports=with_reports)
