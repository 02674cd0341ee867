"""Load a block or a part of it, checked. Read only that part if the encryption version of the blob allows it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.blocks import PieceLoader, load_block, piece_bytes
from backyfs.geometry import pieces_covering, within_piece

if TYPE_CHECKING:
    from backyfs.blocks import BlockStore
    from backyfs.images.runs import BlockPart
    from backyfs.model import Blob, Buffer


class PartLoader:
    """Loads blocks and parts of them. Safe for several threads at once."""

    def __init__(self, blocks: BlockStore) -> None:
        """Load from a store."""
        self._blocks = blocks
        self._pieces = PieceLoader(blocks)

    def load(self, part: BlockPart) -> Buffer:
        """Return the bytes of a part of a block.

        A block that is read as a whole is checked, including its fingerprint. If only some segments are read, they are
        checked by their tags.

        Raises:
            IntegrityError: the bytes differ from what was backed up.
            StorageError: the storage does not return them.
        """
        return self.load_range(part.sound_blob(), part.skipped, part.skipped + part.length)

    def load_range(self, blob: Blob, start: int, stop: int) -> Buffer:
        """Return bytes [start, stop) of a blob, all of which are within it, checked as in `load`.

        Raises:
            IntegrityError: the bytes differ from what was backed up.
            StorageError: the storage does not return them.
        """
        size = piece_bytes(blob)
        if stop - start == blob.size:
            return load_block(self._blocks, blob)
        if size == blob.size:
            return memoryview(load_block(self._blocks, blob))[start:stop]
        numbers = pieces_covering(start, stop, size)
        pieces = memoryview(b"".join(self._pieces.load(blob, numbers)))
        return pieces[within_piece(start, stop, numbers.start, size)]

    def holds(self, blob: Blob, block: Buffer) -> bool:
        """Return whether a blob holds these bytes: by fingerprint; a blob without one is loaded.

        Raises:
            IntegrityError, StorageError: it must be loaded, and cannot be.
        """
        if blob.fingerprint is None:
            return bool(block == load_block(self._blocks, blob))
        return self._blocks.matches(block, blob.fingerprint)
