"""Breaches of schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.reports.values import Row
    from backyfs.retention import Breach

COLUMNS = ("name", "breach")


def as_rows(found: Iterable[Breach]) -> list[Row]:
    """Return a row for each breach."""
    return [{"name": breach.name, "breach": breach.sentence, "scheduler": breach.scheduler} for breach in found]
