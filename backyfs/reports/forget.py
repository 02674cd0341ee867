"""Versions that `forget` removed, kept or was refused to remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from backyfs.engine.versions.forget import ForgetResult
    from backyfs.errors import BackyfsError
    from backyfs.reports.values import Row

COLUMNS = ("name", "date", "uid", "tags", "action", "reason")


def as_rows(forgotten: Iterable[ForgetResult], render: Callable[[BackyfsError], str] = str) -> list[Row]:
    """Return a row for each version; `render` words why a removal was refused."""
    return [
        {
            "name": each.version.name,
            "date": each.version.created_at,
            "uid": each.version.uid,
            "tags": each.version.tags,
            "action": each.outcome.value,
            "reason": each.reason if each.refusal is None else render(each.refusal),
        }
        for each in forgotten
    ]
