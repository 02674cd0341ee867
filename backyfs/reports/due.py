"""Backups that are due."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.reports.values import Row
    from backyfs.retention import Due

COLUMNS = ("name", "schedulers", "expire_date", "due_since")


def as_rows(found: Iterable[Due]) -> list[Row]:
    """Return a row for each name."""
    return [
        {
            "name": due.name,
            "schedulers": due.schedulers,
            "expire_date": due.expire_at,
            "due_since": due.due_since,
        }
        for due in found
    ]
