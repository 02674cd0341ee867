"""An open file that shows an image or one of its partitions. It reads, reads ahead and writes to the layer above.

Offsets are in the file; the image begins `start` bytes before it. Used by the tasks of one trio event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.model import BlockIndex
from backyfs.mount.readahead import ReadAhead

if TYPE_CHECKING:
    from backyfs.model import Buffer
    from backyfs.mount.overlay import Layer
    from backyfs.mount.pool import Pool
    from backyfs.mount.reading import ImageReader


@dataclass(frozen=True, slots=True, kw_only=True)
class WritableLayer:
    """The layer with the writes to an image, and the threads that access it."""

    layer: Layer
    pool: Pool


class ImageFile:
    """Bytes [start, start + size) of an image, open."""

    def __init__(
        self,
        reader: ImageReader,
        start: int,
        size_bytes: int,
        *,
        read_ahead_blocks: int,
        writable: WritableLayer | None = None,
    ) -> None:
        """Read a slice of an image, at most `read_ahead_blocks` ahead of a sequential reader."""
        self.reader = reader
        self._start = start
        self._stop = start + size_bytes
        self._ahead = ReadAhead(block_size=reader.image.block_size, most_blocks=read_ahead_blocks)
        self._writable = writable

    @property
    def layer(self) -> Layer | None:
        """The layer above the image; None: the image is read-only."""
        return None if self._writable is None else self._writable.layer

    async def read(self, offset: int, size: int) -> Buffer:
        """Return `size` bytes starting at `offset`; fewer at the end of the file.

        Raises:
            UnreadableBlockError: some of them cannot be read.
            OSError: the layer cannot be read.
        """
        start = self._start + offset
        stop = min(start + size, self._stop)
        if stop <= start:
            return b""
        ahead, passed = self._ahead.note(start, stop - start, self._stop)
        for index in passed:
            self.reader.leave_behind(BlockIndex(index))
        for index in ahead:
            self.reader.read_ahead(BlockIndex(index))
        if self._writable is None or self._writable.layer.is_empty:
            return await self.reader.read(start, stop)
        layer, pool = self._writable.layer, self._writable.pool
        parts = [
            await (pool.run(layer.read, first, last) if is_written else self.reader.read(first, last))
            for first, last, is_written in layer.split(start, stop)
        ]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def write(self, offset: int, data: bytes) -> int:
        """Write to the layer and return the number of bytes written; fewer at the end of the file.

        Raises:
            UnreadableBlockError: a chunk is overwritten only in part, and its other bytes cannot be read.
            OSError: the layer cannot be written.
        """
        assert self._writable is not None
        layer, pool = self._writable.layer, self._writable.pool
        start = self._start + offset
        data = data[: max(self._stop - start, 0)]
        if data:
            edges = layer.edges(start, start + len(data))
            base = {(first, last): bytes(await self.reader.read(first, last)) for first, last in edges}
            await pool.run(layer.write, start, data, base)
        return len(data)

    async def sync(self) -> None:
        """Make everything that was written durable.

        Raises:
            OSError: that failed.
        """
        if self._writable is not None:
            await self._writable.pool.run(self._writable.layer.sync)
