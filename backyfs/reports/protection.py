"""Versions whose protection `protect` or `unprotect` changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.versions.edit import ProtectionReport
    from backyfs.reports.values import Row


def as_rows(report: ProtectionReport) -> list[Row]:
    """Return a row for each version that was changed."""
    return [
        {"uid": version.uid, "name": version.name, "protected": report.protected} for version in report.changed
    ]
