"""The partitions of the images of a mount, as their partition tables list them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from backyfs.images.partitions import describe, read_partitions
from backyfs.mount.remembered import Remembered

if TYPE_CHECKING:
    from backyfs.images.partitions import PartitionTable
    from backyfs.model import Version
    from backyfs.mount.images import Images
    from backyfs.mount.pool import Pool


class Partitions:
    """Reads partition tables and remembers them. Used by the tasks of one trio event loop."""

    def __init__(self, images: Images, pool: Pool) -> None:
        """Read tables in threads of `pool`, through the images, so that layers above them count."""
        self._images = images
        self._pool = pool
        self._tables: Remembered[PartitionTable] = Remembered()

    async def numbers(self, version: Version) -> list[int]:
        """Return the numbers of the partitions of an image."""
        return [partition.number for partition in (await self._table(version)).partitions]

    async def slice_of(self, version: Version, number: int) -> tuple[int, int]:
        """Return the offset of a partition in its image, and its size, in bytes.

        Raises:
            LookupError: there is no such partition.
        """
        for partition in (await self._table(version)).partitions:
            if partition.number == number:
                return partition.start, partition.size
        raise LookupError(number)

    async def table_text(self, version: Version) -> bytes:
        """Return the partition table of an image as text."""
        return describe(await self._table(version)).encode(errors="replace")

    async def _table(self, version: Version) -> PartitionTable:
        if self._images.shows_changes:  # somebody may have written a new table
            return await self._read(version)
        return await self._tables.get(version, (), lambda: self._read(version))

    async def _read(self, version: Version) -> PartitionTable:
        file = await self._images.open(version, 0, version.size_bytes, reads_ahead=False)

        def read_bytes(offset: int, size: int) -> bytes:
            return bytes(trio.from_thread.run(file.read, offset, size))

        try:
            return await self._pool.run(read_partitions, read_bytes, version.size_bytes)
        finally:
            with trio.CancelScope(shield=True):
                await self._images.close(file)
