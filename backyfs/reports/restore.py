"""What a restore wrote, and what it could not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.damage import range_rows
from backyfs.reports.requests import requests_by_verb
from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from backyfs.engine.restore.restore import RestoreReport
    from backyfs.model import RequestCounts
    from backyfs.reports.values import Object


def as_object(report: RestoreReport, requests: RequestCounts) -> Object:
    """Return what was written, with the ranges that are damaged or differ."""
    return {
        "uid": report.version.uid,
        "target": report.target,
        "size_bytes": report.version.size_bytes,
        "start": report.part.start,
        "stop": report.part.stop,
        "bytes_written": report.bytes_written,
        "bytes_equal": report.bytes_equal,
        "verified": report.is_verified and not report.differing,
        "duration_s": seconds(report.duration_s),
        "requests": requests_by_verb(requests),
        "damaged": range_rows(report.damaged),
        "differing": range_rows(report.differing),
    }
