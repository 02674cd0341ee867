"""A source of which only so many reads are under way at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.geometry import Extent
    from backyfs.sources import Source


class LimitedSource:
    """A source that lets the threads which read it wait for each other."""

    def __init__(self, source: Source, *, simultaneous_reads: int) -> None:
        self._source = source
        self._places = threading.Semaphore(simultaneous_reads)

    @property
    def size_bytes(self) -> int:
        """How large the image is."""
        return self._source.size_bytes

    def data_extents(self) -> Iterator[Extent]:
        """Yield the extents that hold data."""
        return self._source.data_extents()

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
