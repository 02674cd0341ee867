"""What a repair stored again, and what it could not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.damage import ranges_of_versions
from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.engine.damage.repair import RepairReport
    from backyfs.model import DamagedRange, Version
    from backyfs.reports.values import Object

COLUMNS = ("blobs_damaged", "blobs_repaired", "bytes_repaired", "bytes_stored", "blobs_left", "duration_s")


def as_object(report: RepairReport, ranges: Iterable[tuple[Version, DamagedRange]]) -> Object:
    """Return what was done; `ranges` were reported while it ran."""
    return {
        "blobs_damaged": report.blobs_damaged,
        "blobs_repaired": report.blobs_repaired,
        "bytes_repaired": report.bytes_repaired,
        "bytes_stored": report.bytes_stored,
        "blobs_left": report.blobs_left,
        "duration_s": seconds(report.duration_s),
        "versions_valid": report.versions_valid,
        "ranges": ranges_of_versions(ranges),
    }
