"""Store and list statistics: one row for each finished backup. They outlive their versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select

from backyfs.metadata.db.batches import batches
from backyfs.metadata.db.oddrows import sound_rows
from backyfs.metadata.db.tables import stats
from backyfs.model import StatisticsRecord, VersionUid

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Select

    from backyfs.metadata.db.database import Connection
    from backyfs.model import Version


@dataclass(slots=True, kw_only=True)
class BackupStatistics:
    """The statistics of a running backup. Bytes are plain bytes of the image unless stated otherwise."""

    blocks_read: int = 0
    bytes_read: int = 0
    blocks_written: int = 0
    bytes_written: int = 0
    bytes_stored: int = 0  # bytes written, after sealing
    blocks_deduplicated: int = 0
    bytes_deduplicated: int = 0
    blocks_sparse: int = 0
    bytes_sparse: int = 0


def insert_statistics(
    connection: Connection,
    version: Version,
    version_blocks: int,
    statistics: BackupStatistics,
    *,
    ended_at: datetime,
    duration_s: float,
) -> None:
    """Store the statistics of a backup that has just finished."""
    record = StatisticsRecord(
        created_at=ended_at,
        version_uid=version.uid,
        version_name=version.name,
        version_size_bytes=version.size_bytes,
        version_size_blocks=version_blocks,
        duration_s=duration_s,
        **asdict(statistics),
    )
    insert_statistics_records(connection, [record])


def insert_statistics_records(connection: Connection, records: Iterable[StatisticsRecord]) -> None:
    """Store statistics of earlier backups."""
    for batch in batches(records):
        connection.execute(insert(stats), [asdict(record) for record in batch])


def list_statistics(
    connection: Connection, version_uid: VersionUid, *, limit: int | None = None
) -> list[StatisticsRecord]:
    """Return all statistics of a version, or its newest `limit` ones, the oldest first."""
    return _newest(connection, _query().where(stats.c.version_uid == version_uid).order_by(stats.c.id.desc()), limit)


def list_all_statistics(connection: Connection, *, limit: int | None = None) -> list[StatisticsRecord]:
    """Return the statistics of all backups, or the newest `limit` ones, the oldest first.

    Backups that ended in the same second are in descending order of their ids, as in backy2.
    """
    return _newest(connection, _query().order_by(stats.c.created_at.desc(), stats.c.id), limit)


def newest_statistics(connection: Connection, uids: Iterable[VersionUid]) -> dict[VersionUid, StatisticsRecord]:
    """Return the newest statistics of each of these versions, if it has any."""
    found: dict[VersionUid, StatisticsRecord] = {}
    for batch in batches(uids):
        query = _query().where(stats.c.version_uid.in_(batch)).order_by(stats.c.id.desc())
        found |= {VersionUid(record.version_uid): record for record in _newest(connection, query, None)}
    return found


def find_statistics(connection: Connection, prefix: str) -> list[VersionUid]:
    """Return the uids with this prefix that have statistics, whether or not the versions still exist."""
    begins = func.lower(stats.c.version_uid).like(f"{prefix.lower()}%")
    query = select(stats.c.version_uid).where(begins).distinct().order_by(stats.c.version_uid)
    return [VersionUid(uid) for uid in connection.execute(query).scalars()]


def _query() -> Select[tuple[Any, ...]]:
    return select(*(stats.c[field.name] for field in fields(StatisticsRecord)))


def _newest(connection: Connection, query: Select[tuple[Any, ...]], limit: int | None) -> list[StatisticsRecord]:
    """Return the first rows of a query, which are the newest, in reverse order."""
    rows = sound_rows(connection, query if limit is None else query.limit(limit), stats.c.id)
    return [StatisticsRecord(**row._mapping) for row in reversed(rows)]  # noqa: SLF001 - public in SQLAlchemy
