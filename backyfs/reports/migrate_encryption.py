"""Blocks that were encrypted again, or would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from backyfs.engine.secrets.migrate import MigrationPlan, MigrationReport
    from backyfs.engine.secrets.rotation import RotationReport
    from backyfs.reports.values import Object, Row

COLUMNS = ("blobs", "bytes", "stored_bytes", "merged", "damaged", "duration_s")
PLAN_COLUMNS = ("encryption_version", "blobs", "bytes")


def as_object(report: MigrationReport, rotation: RotationReport | None) -> Object:
    """Return what was done; `rotation` is the change of the repository key, if there was one."""
    return {
        "blobs": report.blobs,
        "bytes": report.bytes,
        "stored_bytes": report.stored_bytes,
        "merged": report.merged,
        "damaged": len(report.damaged),
        "duration_s": seconds(report.duration_s),
        "rotated": rotation is not None,
        "slots_removed": [] if rotation is None else [slot.label for slot in rotation.removed],
    }


def plan_as_rows(plan: MigrationPlan) -> list[Row]:
    """Return a row for each encryption version that blocks have now."""
    return [
        {"encryption_version": count.encryption_version, "blobs": count.blobs, "bytes": count.bytes}
        for count in plan.counts
    ]
