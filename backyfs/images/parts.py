"""Load what is wanted of a block, checked; without the rest of it where its encryption version allows that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.blocks import PieceLoader, load_block, piece_bytes

if TYPE_CHECKING:
    from backyfs.blocks import BlockStore
    from backyfs.images.runs import BlockPart
    from backyfs.model import Blob, Buffer


class PartLoader:
    """Loads blocks and parts of them. Safe to use from several threads at once."""

    def __init__(self, blocks: BlockStore) -> None:
        """Load from a store."""
        self._blocks = blocks
        self._pieces = PieceLoader(blocks)

    def load(self, part: BlockPart) -> Buffer:
        """Return the bytes of a part of a block.

        The whole block is checked, its fingerprint included, but where only some segments of it are read: these are
        checked by their tags.

        Raises:
            IntegrityError: they cannot be had as they were backed up.
            StorageError: the storage does not give them.
        """
        return self.load_range(part.sound_blob(), part.skipped, part.skipped + part.length)

    def load_range(self, blob: Blob, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop) of a blob, which lie within it, checked as `load` does.

        Raises:
            IntegrityError: they cannot be had as they were backed up.
            StorageError: the storage does not give them.
        """
        size = piece_bytes(blob)
        if stop - start == blob.size:
            return load_block(self._blocks, blob)
        if size == blob.size:
            return memoryview(load_block(self._blocks, blob))[start:stop]
        numbers = range(start // size, -(-stop // size))
        pieces = memoryview(b"".join(self._pieces.load(blob, numbers)))
        first = numbers.start * size
        return pieces[start - first : stop - first]
