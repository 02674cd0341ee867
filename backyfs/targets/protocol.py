"""The protocols of targets: a destination is looked up, its facts decide, and opening it gives a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.model import Buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """How to open a target."""

    size_bytes: int                # what it must have room for; a file gets this size
    replace: bool = False          # overwrite it if it exists
    kept_bytes: int | None = None  # it must exist, and this many bytes at its start stay as they are; None: it need not
    start: int = 0                 # first byte of the image that is written, for a target that has no positions
    syncs: bool = True             # `finish` waits until everything is on the disk
    stop: Callable[[], bool] = lambda: False  # asked by threads that wait: whether the command should end


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where an image can be written: what is known before anything is opened or changed."""

    uri: str   # for reports: a path, null:// or -
    name: str  # for messages
    open: Callable[[TargetRequest], Target]  # raises TargetError: it exists, is in use, is too small, …
    exists: bool = False
    size_bytes: int | None = None  # None: it does not exist, or its size is fixed, or it has none
    is_device: bool = False        # its size is fixed, and what is behind the image stays as it is
    keeps: bool = False            # what is written to it can be read back, and completed by another restore
    can_continue: bool = True      # writing may begin anywhere, not only at the start of the image
    files: tuple[str, ...] = ()    # local files and devices that would be overwritten


class Target(Protocol):
    """An open target. Every byte of the image is written, or left, once.

    The methods that write may be called from several threads at once. If `parallel` is None, they may also make a
    thread wait until all earlier bytes have been written, so callers must start on the bytes of an image in order.
    """

    @property
    def parallel(self) -> int | None:
        """How many writes may run at a time; None: any number. Callers with several threads see to it."""
        ...

    @property
    def begins_empty(self) -> bool:
        """Whether it reads as zeros where nothing is written, so that `write_zeros` need not be called."""
        ...

    @property
    def readable(self) -> ReadableTarget | None:
        """The same target for reading; None if its destination does not keep what is written."""
        ...

    def write(self, offset: int, block: Buffer) -> None:
        """Write a block, which the caller must not change afterwards.

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
        """Skip a range: its old content stays. If there cannot be any, zeros are written.

        Raises:
            TargetError: it cannot be written.
        """
        ...

    def finish(self) -> None:
        """End the writing, and wait until everything is on the disk, if there is one.

        Raises:
            TargetError: not everything was written, or reached the disk.
        """
        ...

    def close(self) -> None:
        """Close the target, finished or not.

        Raises:
            TargetError: it reports only now that something was not written.
        """
        ...


class ReadableTarget(Protocol):
    """An open target that can be read."""

    def read_into(self, offset: int, buffer: bytearray) -> None:
        """Fill `buffer` with the target's bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        ...

    def is_zeros(self, offset: int, length: int) -> bool:
        """Return whether a range reads as zeros. Safe to call from several threads at once.

        Raises:
            TargetError: it cannot be read.
        """
        ...

    def drop_cache(self) -> None:
        """Make later reads come from the disk, if possible, and not from memory.

        Raises:
            TargetError: what was written does not reach the disk.
        """
        ...
