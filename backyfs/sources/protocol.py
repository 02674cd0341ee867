"""The protocol of sources: what can be read as an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.geometry import Extent
    from backyfs.sources.change import SourceWarning


class Source(Protocol):
    """An image that can be read. If its size changes while it is read, what was read is not an image of it."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def size_bytes(self) -> int:
        """How large the image was when it was opened."""
        ...

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data from `start` on, in order; the rest is zeros and need not be read.

        Raises:
            SourceError: the image shrank or grew.
        """
        ...

    def size_now(self) -> int:
        """Ask how large the image is now; see `check_size`.

        Raises:
            SourceError: it cannot be asked.
        """
        ...

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield what suggests that the image is not in one state, from when it was opened, or `since`, until now.

        Raises:
            SourceError: it cannot be asked.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the image's bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            SourceError: it cannot be read, or ends before the buffer is full.
        """
        ...

    def close(self) -> None:
        """Let go of the image."""
        ...


def check_size(source: Source) -> None:
    """Make sure that a source still has the size it had when it was opened.

    Raises:
        SourceError: it shrank or grew, or cannot be asked.
    """
    size_bytes = source.size_now()
    if size_bytes != source.size_bytes:
        raise SourceError(
            f"{source.name} has {size_bytes} bytes and had {source.size_bytes} when it was opened: it "
            f"{'shrank' if size_bytes < source.size_bytes else 'grew'} while it was read; back up a snapshot, or stop "
            "what changes it"
        )
