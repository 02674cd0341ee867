"""What a scrub found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.damage import ranges_of_versions
from backyfs.reports.requests import requests_by_verb
from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.engine.damage.scrub import ScrubReport
    from backyfs.model import DamagedRange, RequestCounts, Version
    from backyfs.reports.values import Object


def as_object(
    report: ScrubReport, ranges: Iterable[tuple[Version, DamagedRange]], requests: RequestCounts
) -> Object:
    """Return what was found; `ranges` were reported while it ran."""
    return {
        "blobs_checked": report.blobs_checked,
        "bytes_checked": report.bytes_checked,
        "blobs_damaged": report.blobs_damaged,
        "blobs_repaired": report.blobs_repaired,
        "bytes_unknown": report.bytes_unknown,
        "references_right": report.references_right,
        "bytes_differing": report.bytes_differing,
        "versions_invalid": report.versions_invalid,
        "versions_valid": report.versions_valid,
        "duration_s": seconds(report.duration_s),
        "requests": requests_by_verb(requests),
        "ranges": ranges_of_versions(ranges),
    }
