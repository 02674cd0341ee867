"""Targets with a limit on simultaneous writes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.model import Buffer
    from backyfs.targets.protocol import ReadableTarget, Target


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
