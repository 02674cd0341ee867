"""When a backup flushes, and where its new objects go.

Owned by the thread that owns the database.
"""

from __future__ import annotations

import time
from itertools import cycle
from typing import TYPE_CHECKING

from backyfs.blocks import new_blob_uids, new_shelf
from backyfs.model import SavedBlob
from backyfs.work.flushbatch import FlushBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.model import BlobUid
    from backyfs.work.limits import Limits

_FLUSHES_A_RUN = 4  # the pause grows up to a quarter of the time so far


class Flusher:
    """Collects blobs that were put. Only one flush runs at a time."""

    def __init__(self, limits: Limits, workers: int) -> None:
        """Begin; `workers` put objects at the same time."""
        self._limits = limits
        self._workers = workers
        self._began_s = time.monotonic()
        self._unflushed = FlushBatch[SavedBlob](limits.flush)
        self._is_under_way = False
        self._shelves = self._new_shelves()

    @property
    def has_waiting(self) -> bool:
        """Whether any blobs were put since the last flush began."""
        return bool(self._unflushed.items)

    @property
    def is_due(self) -> bool:
        """Whether to begin a flush. The pauses are shorter at first, because flushes advance the progress."""
        elapsed_s = time.monotonic() - self._began_s
        pause_s = min(self._limits.flush.seconds, max(self._limits.first_flush_s, elapsed_s / _FLUSHES_A_RUN))
        return not self._is_under_way and self._unflushed.is_due(pause_s)

    def add(self, saved: Sequence[SavedBlob]) -> None:
        """Add blobs that were put."""
        for blob in saved:
            self._unflushed.add(blob, blob.stored_size)

    def begin(self) -> list[SavedBlob]:
        """Begin a flush and return its blobs."""
        self._is_under_way = True
        self._shelves = self._new_shelves()
        return self._unflushed.take()

    def end(self) -> None:
        """Note that the flush has ended."""
        self._is_under_way = False

    def new_uids(self, count: int) -> list[BlobUid]:
        """Return uids for new blobs that one task puts."""
        return new_blob_uids(next(self._shelves), count)

    def _new_shelves(self) -> Iterator[str]:
        # One for each worker, because threads that create files in the same directory wait for each other.
        return cycle([new_shelf() for _ in range(self._workers)])
