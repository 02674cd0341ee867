"""Versions that were imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.transfer.importing import ImportReport
    from backyfs.reports.values import Object


def as_object(report: ImportReport) -> Object:
    """Return the uids of the versions."""
    return {"versions": [version.uid for version in report.versions]}
