"""What a cleanup deleted and found, or would delete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.requests import requests_by_verb
from backyfs.reports.values import seconds

if TYPE_CHECKING:
    from backyfs.engine.space.cleanup import CleanupPlan, CleanupReport
    from backyfs.engine.space.fullcleanup import FullPlan, FullReport
    from backyfs.model import RequestCounts
    from backyfs.reports.values import Object


def as_object(report: CleanupReport, requests: RequestCounts) -> Object:
    """Return what was deleted."""
    young = {} if report.young_blobs is None else {"young_blobs": report.young_blobs}
    return {
        "pages": report.pages,
        "blobs": report.blobs,
        "stored_bytes": report.stored_bytes,
        "duration_s": seconds(report.duration_s),
        "requests": requests_by_verb(requests),
        **young,
    }


def full_as_object(report: FullReport, requests: RequestCounts) -> Object:
    """Return what a full cleanup deleted and found."""
    return {
        **as_object(report.cleaned, requests),
        "duration_s": seconds(report.duration_s),
        "wrong_references": report.wrong_references,
        "orphans": report.orphans,
        "orphan_bytes": report.orphan_bytes,
        "young_orphans": report.young_orphans,
        "leftovers": report.leftovers,
        "damaged_blobs": report.damaged_blobs,
        "versions_invalid": report.versions_invalid,
    }


def plan_as_object(plan: CleanupPlan) -> Object:
    """Return what would be deleted."""
    return {
        "pages": plan.pages,
        "blobs": plan.blobs,
        "stored_bytes": plan.stored_bytes,
        "young_blobs": plan.young_blobs,
    }


def full_plan_as_object(plan: FullPlan) -> Object:
    """Return what a full cleanup would delete and correct."""
    return {
        **plan_as_object(plan.garbage),
        "wrong_references": plan.wrong_references,
        "orphans": plan.orphans,
        "orphan_bytes": plan.orphan_bytes,
        "young_orphans": plan.young_orphans,
        "missing_blobs": plan.missing_blobs,
    }
