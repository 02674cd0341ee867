"""A repository that another configured key opens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs import keys

if TYPE_CHECKING:
    from backyfs.engine.secrets.rekey import RekeyReport
    from backyfs.reports.values import Object


def as_object(report: RekeyReport) -> Object:
    """Return the slot that the key opens now."""
    return {
        "slot": report.slot.label,
        "key_check": keys.show_check(report.slot.key_check),
        "rewrapped": report.rewrapped,
        "left": report.left,
        "changed": report.changed,
    }
