"""What `detach` unmounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.attach.detachment import Detachment
    from backyfs.reports.values import Row

COLUMNS = ("directory", "unmounted", "devices", "left")


def as_rows(detachments: Iterable[Detachment]) -> list[Row]:
    """Return a row for each directory."""
    return [
        {
            "directory": each.directory,
            "unmounted": tuple(each.unmounted),
            "devices": tuple(each.devices),
            "left": tuple(each.left),
        }
        for each in detachments
    ]
