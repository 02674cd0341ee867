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


MOST_RECORDED = 100  # ranges in the report of a run: versions share damaged blobs, so there can be millions


class DamageLog:
    """Logs ranges, and keeps the first ones in `found` for the report."""

    def __init__(self, most: int | None) -> None:
        """Keep up to `most` ranges; None: all of them."""
        self._most = most
        self.found: list[tuple[Version, DamagedRange]] = []

    def __call__(self, version: Version, damage: DamagedRange) -> None:
        """Take a range."""
        log_damage(version, damage)
        if self._most is None or len(self.found) < self._most:
            self.found.append((version, damage))


def count_blobs(count: int) -> str:
    """Return a number of blobs in words."""
    return f"{count} blob" if count == 1 else f"{count} blobs"
