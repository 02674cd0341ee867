"""Compare a target with the blocks of a version, by fingerprint: the storage is not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.images.parts import PartLoader

if TYPE_CHECKING:
    from backyfs.blocks import BlockStore
    from backyfs.images.runs import BlockPart
    from backyfs.targets.protocol import ReadableTarget


class ReadBack:
    """A target to read and compare. Safe to use from several threads at once."""

    def __init__(self, blocks: BlockStore, target: ReadableTarget) -> None:
        self._loader = PartLoader(blocks)
        self._target = target

    def has_block(self, part: BlockPart) -> bool:
        """Return whether the target has this block. A part of a block, or a blob without fingerprint, is loaded.

        Raises:
            TargetError: the target cannot be read.
            IntegrityError, StorageError: the block must be loaded, and cannot be.
        """
        blob = part.sound_blob()
        there = bytearray(part.length)
        self._target.read_into(part.start, there)
        return self._loader.holds(blob, there) if part.is_whole else there == self._loader.load(part)

    def has_zeros(self, start: int, length: int) -> bool:
        """Return whether the target has zeros there.

        Raises:
            TargetError: the target cannot be read.
        """
        return self._target.is_zeros(start, length)

    def drop_cache(self) -> None:
        """Make later reads come from the disk, if possible, and not from memory.

        Raises:
            TargetError: what was written does not reach the disk.
        """
        self._target.drop_cache()
