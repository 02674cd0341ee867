"""What a backup read and stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.requests import requests_by_verb
from backyfs.reports.values import seconds
from backyfs.reports.versions import version_row

if TYPE_CHECKING:
    from backyfs.engine.backup.backup import BackupReport
    from backyfs.model import RequestCounts
    from backyfs.reports.values import Object


def as_object(report: BackupReport, block_size: int, requests: RequestCounts) -> Object:
    """Return the version, its statistics, the warnings about its source, and the requests of the command."""
    counts = report.statistics
    return {
        **version_row(report.version, block_size),
        **{name: getattr(counts, name) for name in type(counts).__slots__},
        "duration_s": seconds(report.duration_s),
        "requests": requests_by_verb(requests),
        "warnings": [{"kind": warning.kind.value, "text": warning.text} for warning in report.warnings],
    }


def facts(report: BackupReport) -> dict[str, int]:
    """Return what the hooks and the log get to know."""
    counts = report.statistics
    return {
        "size_bytes": report.version.size_bytes,
        "bytes_read": counts.bytes_read,
        "bytes_written": counts.bytes_written,
        "bytes_stored": counts.bytes_stored,
    }
