"""Statistics: one row for each backup that ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import insert

from backyfs.metadata.tables import stats

if TYPE_CHECKING:
    from datetime import datetime

    from backyfs.metadata.database import Connection
    from backyfs.model import Version


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
    connection.execute(
        insert(stats).values(
            created_at=ended_at,
            version_uid=version.uid,
            version_name=version.name,
            version_size_bytes=version.size_bytes,
            version_size_blocks=version_blocks,
            bytes_read=statistics.bytes_read,
            blocks_read=statistics.blocks_read,
            bytes_written=statistics.bytes_written,
            blocks_written=statistics.blocks_written,
            bytes_stored=statistics.bytes_stored,
            bytes_deduplicated=statistics.bytes_deduplicated,
            blocks_deduplicated=statistics.blocks_deduplicated,
            bytes_sparse=statistics.bytes_sparse,
            blocks_sparse=statistics.blocks_sparse,
            duration_s=duration_s,
        )
    )
