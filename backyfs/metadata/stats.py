"""Statistics: one row for each backup that ended. They outlive their versions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from backyfs.metadata.batches import batches
from backyfs.metadata.tables import stats
from backyfs.model import StatisticsRecord

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from backyfs.metadata.database import Connection
    from backyfs.model import Version, VersionUid


@dataclass(slots=True, kw_only=True)
class BackupStatistics:
    """What a backup did, counted while it runs. Bytes are plain bytes of the image but where stated."""

    blocks_read: int = 0
    bytes_read: int = 0
    blocks_written: int = 0
    bytes_written: int = 0
    bytes_stored: int = 0  # what was written, after sealing
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
    """Store the statistics of a backup that has ended."""
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
    """Store statistics of backups that ended some time ago."""
    for batch in batches(records):
        connection.execute(insert(stats), [asdict(record) for record in batch])


def list_statistics(connection: Connection, version_uid: VersionUid) -> list[StatisticsRecord]:
    """Return the statistics of a version, the oldest first."""
    names = [field.name for field in fields(StatisticsRecord)]
    query = select(*(stats.c[name] for name in names)).where(stats.c.version_uid == version_uid).order_by(stats.c.id)
    return [StatisticsRecord(**row._mapping) for row in connection.execute(query)]  # noqa: SLF001 - public in SQLAlchemy
