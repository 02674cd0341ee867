"""Statistics of backups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.requests import requests_by_verb
from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from backyfs.model import RequestCounts, StatisticsRecord, VersionUid
    from backyfs.reports.values import Row

# The fields of tables and of -m, by the names that backy2 has for these columns.
LABELS = {
    "date": "date",
    "uid": "uid",
    "name": "name",
    "size bytes": "size_bytes",
    "size blocks": "size_blocks",
    "bytes read": "bytes_read",
    "blocks read": "blocks_read",
    "bytes written": "bytes_written",
    "blocks written": "blocks_written",
    "bytes dedup": "bytes_dedup",
    "blocks dedup": "blocks_dedup",
    "bytes sparse": "bytes_sparse",
    "blocks sparse": "blocks_sparse",
    "duration (s)": "duration_s",
    "Stored": "stored",
}
PIPE_COLUMNS = tuple(label for label in LABELS if label != "Stored")  # those of backy2
SIZES = tuple(label for label in LABELS if "bytes" in label or label == "Stored")


def as_rows(records: Iterable[StatisticsRecord], requests: Mapping[VersionUid, RequestCounts]) -> list[Row]:
    """Return a row for each backup, with its requests where these are known."""
    return [
        {
            "date": record.created_at,
            "uid": record.version_uid,
            "name": record.version_name,
            "size_bytes": record.version_size_bytes,
            "size_blocks": record.version_size_blocks,
            "bytes_read": record.bytes_read,
            "blocks_read": record.blocks_read,
            "bytes_written": record.bytes_written,
            "blocks_written": record.blocks_written,
            "bytes_dedup": record.bytes_deduplicated,
            "blocks_dedup": record.blocks_deduplicated,
            "bytes_sparse": record.bytes_sparse,
            "blocks_sparse": record.blocks_sparse,
            "duration_s": seconds(record.duration_s),
            "stored": record.bytes_stored,
            "requests": requests_by_verb(requests[record.version_uid]) if record.version_uid in requests else None,
        }
        for record in records
    ]
