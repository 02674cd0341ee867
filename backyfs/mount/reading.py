"""Read bytes of an image: find the blocks, their blobs and the pieces in the cache, and join the pieces.

Used by the tasks of one trio event loop. Reads that memory can answer do not wait.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from backyfs.blocks import piece_bytes
from backyfs.errors import DAMAGE, BackyfsError
from backyfs.geometry import block_slices, pieces_covering, within_piece

if TYPE_CHECKING:
    from backyfs.geometry import BlockSlice
    from backyfs.images.image import Image
    from backyfs.model import Blob, BlobId, BlockIndex, Buffer, VersionUid
    from backyfs.mount.cache import PieceCache
    from backyfs.mount.pool import Call, Pool


class UnreadableBlockError(BackyfsError):
    """A block cannot be read."""

    def __init__(self, uid: VersionUid, index: BlockIndex, reason: BackyfsError, blob_id: BlobId | None) -> None:
        self.uid = uid
        self.index = index
        self.blob_id = blob_id  # None: not known
        self.is_damaged = isinstance(reason, DAMAGE)
        super().__init__(reason.statement, subject=f"version {uid}, block {index}:", remedy=reason.remedy)


class ImageReader:
    """Reads one image."""

    def __init__(self, image: Image, cache: PieceCache, questions: Pool, zeros: memoryview) -> None:
        """Read through a cache. Query the database in threads of `questions`. `zeros` has the bytes of a hole."""
        self._cache = cache
        self._questions = questions
        self._zeros = zeros
        self.image = image
        self.size_bytes = image.version.size_bytes

    async def read(self, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop) of the image, all of which are within it.

        Raises:
            UnreadableBlockError: some of them cannot be read.
        """
        parts: list[Buffer] = []
        for part in block_slices(start, stop - start, self.size_bytes, self.image.block_size):
            await self._read_slice(part, parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_ahead(self, index: BlockIndex) -> None:
        """Start loading a block that a reader will want. That reader gets any error."""
        if self.image.knows(index):
            with suppress(BackyfsError):
                self._prefetch(self.image.blob(index))
        else:
            self._questions.start(partial(self.image.blob, index), self._prefetch_found)

    def leave_behind(self, index: BlockIndex) -> None:
        """Note that a sequential reader has moved on from a block."""
        with suppress(BackyfsError):
            blob = self.image.blob(index) if self.image.knows(index) else None
            if blob is not None:
                for number in pieces_covering(0, blob.size, piece_bytes(blob)):
                    self._cache.leave_behind(blob, number)

    def _prefetch_found(self, call: Call[Blob | None]) -> None:
        with suppress(BackyfsError):
            self._prefetch(call.result)

    def _prefetch(self, blob: Blob | None) -> None:
        if blob is not None:
            self._cache.prefetch(blob, piece_bytes(blob))

    async def _read_slice(self, part: BlockSlice, parts: list[Buffer]) -> None:
        blob = None
        try:
            blob = await self._blob(part.index)
            if blob is None:
                parts.append(self._zeros[: part.stop - part.start])
                return
            size = piece_bytes(blob)
            pieces = pieces_covering(part.start, part.stop, size)
            if len(pieces) > 1:  # start all loads before the first wait
                self._cache.want(blob, pieces)
            for number in pieces:
                piece = await self._cache.get(blob, number)
                parts.append(memoryview(piece)[within_piece(part.start, part.stop, number, size)])
        except BackyfsError as error:
            blob_id = None if blob is None else blob.id
            raise UnreadableBlockError(self.image.version.uid, part.index, error, blob_id) from error

    async def _blob(self, index: BlockIndex) -> Blob | None:
        if self.image.knows(index):
            return self.image.blob(index)
        return await self._questions.run(self.image.blob, index)
