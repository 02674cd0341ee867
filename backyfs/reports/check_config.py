"""What a check of the configuration found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backyfs.engine.setup.findings import Finding
    from backyfs.reports.values import Row

COLUMNS = ("check", "grade", "message")


def as_rows(findings: Iterable[Finding], render: Callable[[Finding], str] = str) -> list[Row]:
    """Return a row for each check; `render` words message and remedy."""
    return [
        {
            "check": finding.check,
            "grade": finding.grade.value,
            "message": render(finding),
            "exit_status": finding.exit_status,
        }
        for finding in findings
    ]
