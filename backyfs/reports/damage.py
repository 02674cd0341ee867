"""Ranges of images that are damaged or differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.model import DamagedRange, Version
    from backyfs.reports.values import Row


def range_rows(ranges: Iterable[DamagedRange]) -> list[Row]:
    """Return a row for each range of one version."""
    return [{"start": damage.start, "stop": damage.stop, "reason": damage.reason} for damage in ranges]


def ranges_of_versions(found: Iterable[tuple[Version, DamagedRange]]) -> list[Row]:
    """Return a row for each range, with the uid of its version."""
    return [{"uid": version.uid, **range_rows((damage,))[0]} for version, damage in found]
