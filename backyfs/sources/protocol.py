"""The protocol of sources: what a backup reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from backyfs.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.geometry import Extent
    from backyfs.sources.change import SourceWarning

BACK_UP_A_SNAPSHOT = "back up a snapshot, or stop what changes it"


class Source(Protocol):
    """An open image. If its size changes while it is read, the bytes read are not an image of it."""

    @property
    def name(self) -> str:
        """How messages refer to the image."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size of the image when it was opened."""
        ...

    @property
    def parallel(self) -> int | None:
        """How many calls of `read_into` may run at a time; None: any number. Callers with several threads see to it."""
        ...

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the extents that hold data from `start` on, in order. The rest is zeros and need not be read.

        Raises:
            SourceError: the image shrank or grew.
        """
        ...

    def size_now(self) -> int:
        """Return the size of the image now; see `check_size`.

        Raises:
            SourceError: the size cannot be determined.
        """
        ...

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:
        """Yield a warning for each sign that the image changed after it was opened, or after `since`.

        Raises:
            SourceError: the image cannot be examined.
        """
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the image's bytes from `offset` on. Safe to call from several threads at once.

        Raises:
            SourceError: it cannot be read, or ends before the buffer is full.
        """
        ...

    def close(self) -> None:
        """Close the image."""
        ...


def check_size(source: Source) -> None:
    """Make sure that a source still has the size it had when it was opened.

    Raises:
        SourceError: it shrank or grew, or its size cannot be determined.
    """
    size_bytes = source.size_now()
    if size_bytes != source.size_bytes:
        raise SourceError(
            f"has {size_bytes} bytes and had {source.size_bytes} when it was opened: it "
            f"{'shrank' if size_bytes < source.size_bytes else 'grew'} while it was read",
            subject=source.name,
            remedy=BACK_UP_A_SNAPSHOT,
        )
