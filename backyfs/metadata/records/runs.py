"""Store runs: one row for each job that has ended. They outlive the versions that the jobs worked on.

A run is written in the transaction that removes the row of its job. If it cannot be written, the job still ends, with a
warning. The table is bounded: old runs are removed when new ones are written, see `prune_runs`.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, delete, func, insert, select, type_coerce, update

from backyfs.errors import DatabaseError
from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.clock import DatabaseClock
from backyfs.metadata.db.database import insert_row, mapped_errors, show_url
from backyfs.metadata.db.oddrows import sound_rows
from backyfs.metadata.db.tables import runs
from backyfs.model import JobKind, RunId, RunOutcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from sqlalchemy import Select

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Ending

_log = logging.getLogger(__name__)

_NAMES_LENGTH = 4096   # characters, as in the tables
_ERROR_LENGTH = 4096
_CLASS_LENGTH = 64
_REPORT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """How many runs are kept."""

    days: int = 90
    rows: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A job that has ended."""

    id: RunId
    kind: str | None  # a JobKind, possibly of a later release; None: an older release ran it
    command: str
    names: tuple[str, ...]  # of the backups it worked on
    host: str
    started_at: datetime
    ended_at: datetime         # killed or lost: its last heartbeat
    outcome: RunOutcome
    exit_status: int | None    # None: unknown
    error_class: str | None
    error: str | None
    report: str | None = None  # JSON; None: there is none, or it was not loaded

    @property
    def duration_s(self) -> float:
        """How long it took; 0 if the clock of the database was set back."""
        return max(0.0, (self.ended_at - self.started_at).total_seconds())


def names_text(names: Iterable[str]) -> str:
    """Return names as JSON for the tables: each name once, as many as fit."""
    kept: list[str] = []
    length = 2
    for name in dict.fromkeys(names):
        length += len(json.dumps(name)) + 2
        if length > _NAMES_LENGTH:
            break
        kept.append(name)
    return json.dumps(kept)


def insert_run(connection: Connection, job: Any, ending: Ending) -> RunId | None:
    """Record how a job ended, in the transaction that removes its row `job`; return None if that fails.

    A failure does not affect the rest of the transaction.

    Raises:
        SQLAlchemyError: the transaction cannot continue.
    """
    is_known = ending.outcome not in {RunOutcome.KILLED, RunOutcome.LOST}
    row = insert(runs).values(
        kind=job.kind,
        command=job.command,
        names=job.names or "[]",
        host=job.host,
        started_at=job.started_at,
        ended_at=DatabaseClock() if is_known else job.heartbeat_at,
        outcome=ending.outcome,
        exit_status=ending.exit_status,
        error_class=_stored(ending.error_class, _CLASS_LENGTH),
        error=_stored(ending.error, _ERROR_LENGTH),
    )
    with _optional(connection, f"record how {job.command} ended"):
        return RunId(insert_row(connection, row))
    return None


def prune_runs(connection: Connection, newest: RunId, limits: RunLimits) -> None:
    """Remove runs beyond the limits of number and age. `newest` is the run of a command that ends now.

    Ids and times are indexed, so the cost grows with the number of removed runs.
    """
    with _optional(connection, "remove the records of old commands"):
        connection.execute(delete(runs).where(runs.c.id <= newest - limits.rows))
        for now in sound_rows(connection, select(runs.c.ended_at).where(runs.c.id == newest), runs.c.id):
            connection.execute(delete(runs).where(runs.c.ended_at < now.ended_at - timedelta(days=limits.days)))


@contextmanager
def _optional(connection: Connection, what: str) -> Iterator[None]:
    """Do something in a transaction that must not fail because of it: an error undoes this alone, with a warning."""
    savepoint = connection.begin_nested()
    try:
        with mapped_errors(show_url(connection.engine.url)):
            yield
    except DatabaseError as error:
        savepoint.rollback()  # fails if the database has aborted the whole transaction
        _log.warning("cannot %s: %s", what, error)
    else:
        savepoint.commit()


def complete_run(
    connection: Connection, run_id: RunId, *, report: str | None = None, ending: Ending | None = None
) -> None:
    """Add facts to a run that became known after its job had ended. Do nothing if the run is gone.

    `report` is JSON; one of more than 64 KiB is left out. `ending` replaces that of the job: if a job finds damage, the
    job succeeds but its command fails.
    """
    values: dict[str, object] = {}
    if report is not None and len(report.encode()) <= _REPORT_BYTES:
        values["report"] = report
    if ending is not None:
        values |= {
            "outcome": ending.outcome,
            "exit_status": ending.exit_status,
            "error_class": _stored(ending.error_class, _CLASS_LENGTH),
            "error": _stored(ending.error, _ERROR_LENGTH),
        }
    if values:
        connection.execute(update(runs).where(runs.c.id == run_id).values(values))


def list_runs(connection: Connection, *, limit: int | None = None, with_reports: bool = False) -> list[RunRecord]:
    """Return all runs, or the newest `limit` ones, the newest first."""
    columns = [column for column in runs.c if with_reports or column is not runs.c.report]
    query = select(*columns).order_by(runs.c.ended_at.desc(), runs.c.id.desc())
    return [
        RunRecord(
            id=RunId(row.id),
            kind=row.kind,
            command=row.command,
            names=tuple(json.loads(row.names)),
            host=row.host,
            started_at=row.started_at,
            ended_at=row.ended_at,
            outcome=RunOutcome(row.outcome),
            exit_status=row.exit_status,
            error_class=row.error_class,
            error=row.error,
            report=row.report if with_reports else None,
        )
        for row in sound_rows(connection, query if limit is None else query.limit(limit), runs.c.id)
    ]


def list_reports_with_requests(connection: Connection, names: Iterable[str], since: datetime) -> Iterator[str]:
    """Yield the reports of backups of these names that ended since then and sent requests, the oldest first."""
    for batch in batches(map(_name_text, names)):
        query = _reports_with_requests().where(runs.c.names.in_(batch), runs.c.ended_at >= since)
        yield from (row.report for row in sound_rows(connection, query.order_by(runs.c.id), runs.c.id))


def newest_reports_with_requests(connection: Connection, names: Iterable[str]) -> Iterator[str]:
    """Yield the report of the newest backup of each of these names that has a report, if it sent requests."""
    for batch in batches(map(_name_text, names)):
        finished = runs.c.names.in_(batch) & (runs.c.kind == JobKind.BACKUP) & runs.c.report.is_not(None)
        newest = select(func.max(runs.c.id)).where(finished).group_by(runs.c.names)
        query = _reports_with_requests().where(runs.c.id.in_(newest))
        yield from (row.report for row in sound_rows(connection, query, runs.c.id))


def _reports_with_requests() -> Select[tuple[Any]]:
    """Return a query for the reports of backups. Those of directories, which have no requests, are not even loaded."""
    has_requests = type_coerce(runs.c.report, Text).contains('"requests": {"', autoescape=True)
    return select(runs.c.report).where(runs.c.kind == JobKind.BACKUP, has_requests)


def _name_text(name: str) -> str:
    """Return the names of a run that backs up one name."""
    return names_text([name])


def _stored(text: str | None, length: int) -> str | None:
    """Return text in a form that every database can store. File names in it need not be UTF-8."""
    if text is None:
        return None
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()[:length]
