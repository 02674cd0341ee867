"""The protocols of targets: what can be written as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from backyfs.model import Buffer


class Target(Protocol):
    """Where an image goes. All bytes of it are written, or left, once each.

    The methods that write may be called from several threads at once. They may make a thread wait until all
    before its bytes is there, so whoever hands out the work hands it out in order.
    """

    @property
    def begins_empty(self) -> bool:
        """Whether it reads as zeros where nothing is written, so that nobody needs to call `write_zeros`."""
        ...

    def write(self, offset: int, block: Buffer) -> None:
        """Write a block, which the caller does not change afterwards.

        Raises:
            TargetError: it cannot be written.
        """
        ...

    def write_zeros(self, offset: int, length: int) -> None:
        """Make a range read as zeros.

        Raises:
            TargetError: it cannot be written.
        """
        ...

    def leave(self, offset: int, length: int) -> None:
        """Pass over a range: what was there stays, and where nothing can be, zeros stand for it.

        Raises:
            TargetError: it cannot be written.
        """
        ...

    def finish(self) -> None:
        """End the writing, and wait until everything is on the disk, if there is one.

        Raises:
            TargetError: not everything could be written, or reached the disk.
        """
        ...

    def close(self) -> None:
        """Let go of the target, finished or not."""
        ...


@runtime_checkable
class ReadableTarget(Target, Protocol):
    """A target that keeps what it is given, and can be read."""

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with what it has from `offset` on. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        ...

    def is_zeros(self, offset: int, length: int) -> bool:
        """Tell whether a range reads as zeros. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        ...

    def drop_cache(self) -> None:
        """Have what is read from now on come from the disk, as far as that can be.

        Raises:
            TargetError: what was written does not get there.
        """
        ...
