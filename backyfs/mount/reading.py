"""Read bytes of an image: from byte ranges over blocks and blobs to pieces of the cache, and put together again.

Used by the tasks of one trio event loop. What is in memory is answered without waiting.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from backyfs.blocks import piece_bytes
from backyfs.errors import BackyfsError
from backyfs.geometry import block_slices

if TYPE_CHECKING:
    from backyfs.geometry import BlockSlice
    from backyfs.images.image import Image
    from backyfs.model import Blob, BlobId, BlockIndex, Buffer, VersionUid
    from backyfs.mount.cache import PieceCache
    from backyfs.mount.pool import Pool


class DamageError(BackyfsError):
    """A block cannot be had, for the reason that is the cause of this error."""

    def __init__(self, uid: VersionUid, index: BlockIndex, reason: BackyfsError, blob_id: BlobId | None) -> None:
        self.uid = uid
        self.index = index
        self.blob_id = blob_id  # None: not known
        super().__init__(f"version {uid}, block {index}: {reason}")


class ImageReader:
    """Reads one image."""

    def __init__(self, image: Image, cache: PieceCache, questions: Pool, zeros: memoryview) -> None:
        """Read through a cache; ask the database in threads of `questions`. `zeros` are as many as a block has."""
        self._cache = cache
        self._questions = questions
        self._zeros = zeros
        self.image = image
        self.size_bytes = image.version.size_bytes

    async def read(self, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop) of the image, which lie within it.

        Raises:
            DamageError: some of them cannot be had.
        """
        parts: list[Buffer] = []
        for part in block_slices(start, stop - start, self.size_bytes, self.image.block_size):
            await self._read_slice(part, parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def read_ahead(self, index: BlockIndex) -> None:
        """Load a block that a reader will want. What goes wrong is told to that reader."""
        try:
            blob = await self._blob(index)
            if blob is not None:
                self._cache.prefetch(blob, piece_bytes(blob))
        except BackyfsError:
            return

    def leave_behind(self, index: BlockIndex) -> None:
        """Note that a reader in order has gone on to another block."""
        with suppress(BackyfsError):
            blob = self.image.blob(index) if self.image.knows(index) else None
            if blob is not None:
                for number in range(-(-blob.size // piece_bytes(blob))):
                    self._cache.leave_behind(blob, number)

    async def _read_slice(self, part: BlockSlice, parts: list[Buffer]) -> None:
        blob = None
        try:
            blob = await self._blob(part.index)
            if blob is None:
                parts.append(self._zeros[: part.stop - part.start])
                return
            size = piece_bytes(blob)
            pieces = range(part.start // size, -(-part.stop // size))
            self._cache.want(blob, pieces)
            for number in pieces:
                piece = await self._cache.get(blob, number)
                first = number * size
                parts.append(memoryview(piece)[max(part.start - first, 0) : part.stop - first])
        except BackyfsError as error:
            raise DamageError(self.image.version.uid, part.index, error, None if blob is None else blob.id) from error

    async def _blob(self, index: BlockIndex) -> Blob | None:
        if self.image.knows(index):
            return self.image.blob(index)
        return await self._questions.run(self.image.blob, index)
