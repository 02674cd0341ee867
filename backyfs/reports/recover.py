"""What was recovered from the catalog, and what was lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.reports.catalog import fault_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.engine.setup.recovery import RecoveredRepository
    from backyfs.remedies import Remedy
    from backyfs.reports.values import Object, Row

COLUMNS = ("name", "version", "reason")  # of losses


def as_object(recovered: RecoveredRepository, render: Callable[[Remedy], str] = str) -> Object:
    """Return the repository and the losses; `render` words the remedies."""
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
        "losses": loss_rows(recovered, render),
    }


def loss_rows(recovered: RecoveredRepository, render: Callable[[Remedy], str] = str) -> list[Row]:
    """Return a row for each loss; `render` words the remedies."""
    return [
        {"name": loss.name, "version": loss.version, "reason": fault_text(loss.fault, render)}
        for loss in recovered.losses
    ]
