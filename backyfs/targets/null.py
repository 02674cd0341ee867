"""A target that discards what it is given, to measure how fast the rest of a restore is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.targets.protocol import Destination

if TYPE_CHECKING:
    from backyfs.config import Config
    from backyfs.model import Buffer
    from backyfs.targets.protocol import ReadableTarget


def find_null(uri: str, config: Config | None) -> Destination:
    """Return the destination `null://`, with what section `[io_null]` says."""
    parallel = None if config is None else config.io_null.simultaneous_writes
    return Destination(uri=uri, name=uri, open=lambda _request: NullTarget(parallel=parallel))


class NullTarget:
    """Nothing, of any size."""

    begins_empty = True  # so that nobody calls `write_zeros`
    readable: ReadableTarget | None = None

    def __init__(self, *, parallel: int | None = None) -> None:
        self.parallel = parallel

    def write(self, offset: int, block: Buffer) -> None:
        """Discard a block."""

    def write_zeros(self, offset: int, length: int) -> None:
        """Do nothing."""

    def leave(self, offset: int, length: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: nothing is open."""
