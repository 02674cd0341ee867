"""Versions that `rm` removed or kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.engine.versions.remove import RemovalReport
    from backyfs.errors import BackyfsError
    from backyfs.reports.values import Row


def as_rows(report: RemovalReport, render: Callable[[BackyfsError], str] = str) -> list[Row]:
    """Return a row for each version that should be removed; `render` words the reasons."""
    return [
        {
            "uid": removal.version.uid,
            "name": removal.version.name,
            "removed": removal.kept is None and not report.request.dry_run,
            "removable": removal.kept is None,
            "reason": None if removal.kept is None else render(removal.kept),
        }
        for removal in report.removals
    ]
