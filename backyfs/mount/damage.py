"""Blocks that readers of a mount could not read: counted, logged, and passed on to be marked as damaged."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import BlockIndex, VersionUid
    from backyfs.mount.marker import DamageMarker
    from backyfs.mount.reading import UnreadableBlockError

_LOG_AGAIN_S = 60.0  # before the same block is logged again
_MOST_BLOCKS = 10_000  # that are remembered

_log = logging.getLogger(__name__)


class DamageLog:
    """Notes unreadable blocks. Used by the tasks of one trio event loop."""

    def __init__(self, marker: DamageMarker) -> None:
        """Pass damaged blobs on to a marker."""
        self.marker = marker
        self._damaged: set[tuple[VersionUid, BlockIndex]] = set()
        self._logged_at: dict[tuple[VersionUid, BlockIndex], float] = {}
        self.read_errors = 0

    @property
    def blocks(self) -> int:
        """How many blocks were found damaged, at most 10,000."""
        return len(self._damaged)

    def note(self, error: UnreadableBlockError) -> None:
        """Count an unreadable block, and log it unless that was done within the last minute."""
        self.read_errors += 1
        key = (error.uid, error.index)
        if error.is_damaged and len(self._damaged) < _MOST_BLOCKS:
            self._damaged.add(key)
            if error.blob_id is not None:
                self.marker.suspect(error.blob_id)
        now = time.monotonic()
        if now - self._logged_at.get(key, float("-inf")) >= _LOG_AGAIN_S:
            _log.error("%s", error)
            if len(self._logged_at) >= _MOST_BLOCKS:
                self._logged_at.clear()
            self._logged_at[key] = now
