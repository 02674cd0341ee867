"""What was recovered from the catalog, and what was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.engine.setup.recovery import RecoveredRepository
    from backyfs.reports.values import Object, Row

COLUMNS = ("name", "version", "reason")  # of losses


def as_object(recovered: RecoveredRepository) -> Object:
    """Return the repository and the losses."""
    report = recovered.report
    return {
        "repository": report.repository.identity.uid,
        "database": recovered.database,
        "configuration": recovered.written_configuration,
        "versions": report.versions,
        "pages": report.pages,
        "blobs": report.blobs,
        "invalid": report.invalid,
        "index_number": None if report.index is None else report.index.number,
        "index_written_at": None if report.index is None else report.index.written_at,
        "unlisted": report.unlisted,
        "losses": loss_rows(recovered),
    }


def loss_rows(recovered: RecoveredRepository) -> list[Row]:
    """Return a row for each loss."""
    return [{"name": loss.name, "version": loss.version, "reason": loss.reason} for loss in recovered.losses]
