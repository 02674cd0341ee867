"""A copy of the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.transfer.database_copy import CopyReport
    from backyfs.reports.values import Object


def as_object(report: CopyReport) -> Object:
    """Return where the copy is, and the number of rows by table."""
    return {"from": report.source, "to": report.target, **report.rows}
