"""What `catalog push` wrote, and what `catalog check` found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.engine.catalog.check import CatalogReport, Difference
    from backyfs.engine.catalog.publish import PublishReport
    from backyfs.reports.values import Object, Row

COLUMNS = ("name", "fact")  # of differences


def pushed_as_object(report: PublishReport) -> Object:
    """Return what was written and deleted."""
    return {"versions": report.versions, "pages": report.pages, "deleted": report.deleted}


def checked_as_object(report: CatalogReport, differences: Iterable[Difference]) -> Object:
    """Return what was compared; `differences` were reported while it ran."""
    return {
        "versions": report.versions,
        "pages": report.pages,
        "index_number": None if report.index is None else report.index.number,
        "differences": difference_rows(differences),
    }


def difference_rows(differences: Iterable[Difference]) -> list[Row]:
    """Return a row for each object that differs."""
    return [{"name": one.name, "fact": one.fact} for one in differences]
