"""Sources and targets of which only so many reads and writes are under way at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.geometry import Extent
    from backyfs.model import Buffer
    from backyfs.sources import Source
    from backyfs.sources.change import SourceWarning
    from backyfs.targets import ReadableTarget, Target


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


class LimitedTarget:
    """A target that lets the threads which write it wait for each other."""

    def __init__(self, target: Target, *, simultaneous_writes: int) -> None:
        self._target = target
        self._places = threading.Semaphore(simultaneous_writes)

    @property
    def begins_empty(self) -> bool:
        """Whether it reads as zeros where nothing is written."""
        return self._target.begins_empty

    def write(self, offset: int, block: Buffer) -> None:
        """Write a block, when a place is free.

        Raises:
            What the target raises.
        """
        with self._places:
            self._target.write(offset, block)

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros, when a place is free.

        Raises:
            What the target raises.
        """
        with self._places:
            self._target.write_zeros(offset, length)

    def leave(self, offset: int, length: int) -> None:
        """Pass over a range.

        Raises:
            What the target raises.
        """
        self._target.leave(offset, length)

    def finish(self) -> None:
        """End the writing.

        Raises:
            What the target raises.
        """
        self._target.finish()

    def close(self) -> None:
        """Let go of the target."""
        self._target.close()


class LimitedReadableTarget(LimitedTarget):
    """The same for a target that can be read, which is not limited."""

    def __init__(self, target: ReadableTarget, *, simultaneous_writes: int) -> None:
        super().__init__(target, simultaneous_writes=simultaneous_writes)
        self._readable = target

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with what the target has from `offset` on.

        Raises:
            What the target raises.
        """
        self._readable.read_into(offset, buffer)

    def is_zeros(self, offset: int, length: int) -> bool:
        """Tell whether a range reads as zeros.

        Raises:
            What the target raises.
        """
        return self._readable.is_zeros(offset, length)

    def drop_cache(self) -> None:
        """Have what is read from now on come from the disk, as far as that can be.

        Raises:
            What the target raises.
        """
        self._readable.drop_cache()
