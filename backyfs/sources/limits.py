"""Sources with a limit on simultaneous reads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.geometry import Extent
    from backyfs.sources.change import SourceWarning
    from backyfs.sources.protocol import Source


class LimitedSource:
    """A source that lets the threads which read it wait for each other."""

    def __init__(self, source: Source, *, simultaneous_reads: int) -> None:
        self._source = source
        self._places = threading.Semaphore(simultaneous_reads)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self._source.name

    @property
    def size_bytes(self) -> int:
        """How large the image was when it was opened."""
        return self._source.size_bytes

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data from `start` on.

        Raises:
            What the source raises.
        """
        return self._source.data_extents(start)

    def size_now(self) -> int:
        """Ask how large the image is now.

        Raises:
            What the source raises.
        """
        return self._source.size_now()

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield what suggests that the image is not in one state.

        Raises:
            What the source raises.
        """
        return self._source.signs_of_change(since)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` on, when a place is free.

        Raises:
            What the source raises.
        """
        with self._places:
            self._source.read_into(offset, buffer)

    def close(self) -> None:
        """Let go of the image."""
        self._source.close()
