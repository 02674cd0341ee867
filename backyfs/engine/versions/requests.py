"""What backups cost in requests: the reports of their runs say it, for as long as the runs are kept."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from backyfs import values
from backyfs.jsontext import Fields, read_json
from backyfs.metadata.records.runs import list_reports_with_requests, newest_reports_with_requests
from backyfs.model import RequestCount, RequestCounts, VersionUid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from backyfs.metadata.db.database import Connection
    from backyfs.model import StatisticsRecord
    from backyfs.repository import Repository

_CLOCKS_APART = timedelta(days=1)  # the ends of runs are by the clock of the database, those of backups are not


def requests_of_backups(
    repository: Repository, records: Sequence[StatisticsRecord]
) -> dict[VersionUid, RequestCounts]:
    """Return the requests of the backups with these statistics, where they are known.

    Raises:
        DatabaseError: the database cannot be read.
    """
    if not records:
        return {}
    names = {record.version_name for record in records}
    since = min(record.created_at for record in records) - _CLOCKS_APART
    with repository.database.read() as connection:
        return _parsed(list_reports_with_requests(connection, names, since))


def requests_of_newest(connection: Connection, names: Iterable[str]) -> dict[VersionUid, RequestCounts]:
    """Return the requests of the newest finished backup of each name, by its version, where they are known."""
    return _parsed(newest_reports_with_requests(connection, names))


def _parsed(reports: Iterable[str]) -> dict[VersionUid, RequestCounts]:
    """Return the requests in these reports. A version that was continued has several; the last one counts."""
    found: dict[VersionUid, RequestCounts] = {}
    for report in reports:
        try:
            fields = read_json(report.encode())
            requests = fields.object("requests")
            counts = {verb: _count(requests.object(verb)) for verb in requests}
            found[VersionUid(fields.value("uid", values.VERSION_UID))] = counts
        except ValueError:  # a later release wrote it
            continue
    return found


def _count(fields: Fields) -> RequestCount:
    return RequestCount(
        requests=fields.value("requests", values.COUNT),
        repeated=fields.value("repeated", values.COUNT),
        bytes=fields.value("bytes", values.COUNT),
    )
