"""Damaged ranges, which operations report one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import DamagedRange, Version

_log = logging.getLogger("backyfs.cli")


def log_damage(version: Version, damage: DamagedRange) -> None:
    """Log a range of a version that is damaged or differs."""
    _log.error("version %s: bytes %d to %d: %s", version.uid, damage.start, damage.stop, damage.reason)


class DamageLog:
    """Logs ranges, and keeps them in `found` for the report."""

    def __init__(self) -> None:
        self.found: list[tuple[Version, DamagedRange]] = []

    def __call__(self, version: Version, damage: DamagedRange) -> None:
        """Take a range."""
        log_damage(version, damage)
        self.found.append((version, damage))


def count_blobs(count: int) -> str:
    """Return a number of blobs in words."""
    return f"{count} blob" if count == 1 else f"{count} blobs"
