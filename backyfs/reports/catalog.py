"""What `catalog push` wrote, and what `catalog check` found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backyfs.engine.catalog.check import CatalogReport, Difference
    from backyfs.engine.catalog.index import Fault
    from backyfs.engine.catalog.publish import PublishReport
    from backyfs.remedies import Remedy
    from backyfs.reports.values import Object, Row

COLUMNS = ("name", "fact")  # of differences


def pushed_as_object(report: PublishReport) -> Object:
    """Return what was written and deleted."""
    return {"versions": report.versions, "pages": report.pages, "deleted": report.deleted}


def checked_as_object(
    report: CatalogReport, differences: Iterable[Difference], render: Callable[[Remedy], str] = str
) -> Object:
    """Return what was compared; `differences` were reported while it ran, and `render` words their remedies."""
    return {
        "versions": report.versions,
        "pages": report.pages,
        "index_number": None if report.index is None else report.index.number,
        "differences": difference_rows(differences, render),
    }


def difference_rows(differences: Iterable[Difference], render: Callable[[Remedy], str] = str) -> list[Row]:
    """Return a row for each object that differs; `render` words the remedies."""
    return [{"name": one.name, "fact": fault_text(one.fault, render)} for one in differences]


def fault_text(fault: Fault, render: Callable[[Remedy], str]) -> str:
    """Return what is wrong with an object, and what to do about it as `render` words it."""
    return fault.fact if fault.remedy is None else f"{fault.fact}; {render(fault.remedy)}"
