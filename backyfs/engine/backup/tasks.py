"""The tasks of the workers of a backup: read and hash runs of blocks, store new blocks, flush, publish pages.

They do not use the database. Every task gets all its data as arguments; a buffer belongs to one task at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from backyfs.blocks import put_blocks, save_blocks, seal_blocks
from backyfs.geometry import block_length
from backyfs.model import BlockIndex
from backyfs.work.parallel import at_most

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.blocks import BlockStore, SealedBlock
    from backyfs.engine.catalog.freshpages import FreshPage, FreshPages
    from backyfs.geometry import BlockRun
    from backyfs.model import BlobUid, SavedBlob
    from backyfs.sources.protocol import Source


_LEAST_BYTES = 128 << 10


@dataclass(frozen=True, slots=True)
class HashedRun:
    """A run that was read into the buffer, with the fingerprint of each block; None for a block of zeros."""

    run: BlockRun
    buffer: bytearray
    fingerprints: list[bytes | None]


@dataclass(frozen=True, slots=True)
class SealedRun:
    """The new blocks of a run are sealed; the buffer is free."""

    buffer: bytearray
    blocks: list[SealedBlock]

    @property
    def weight(self) -> int:
        """How many bytes their objects have; small objects count more, because each of them is a request."""
        return sum(max(block.saved.stored_size, _LEAST_BYTES) for block in self.blocks)


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The new blocks of a run are in the storage; the buffer, if they were put from there, is free."""

    buffer: bytearray | None
    saved: list[SavedBlob]
    weight: int = 0  # of the `SealedRun`, if there was one


@dataclass(frozen=True, slots=True)
class FlushedBlobs:
    """Blobs that are durable."""

    saved: list[SavedBlob]


@dataclass(frozen=True, slots=True)
class PublishedPage:
    """A page whose object is in the catalog; None: it is left for the end."""

    page: FreshPage | None


Result: TypeAlias = HashedRun | SealedRun | StoredRun | FlushedBlobs | PublishedPage


class Tasks:
    """The tasks of one backup. Its methods may run in several threads at once."""

    def __init__(self, source: Source, blocks: BlockStore, block_size: int) -> None:
        self._source = source
        self._reading = at_most(source.parallel)
        self._blocks = blocks
        self._block_size = block_size
        self._zeros = bytes(block_size)
        self._is_given_up = False

    def read(self, run: BlockRun, buffer: bytearray) -> HashedRun:
        """Read a run and take the fingerprints of its blocks.

        Raises:
            SourceError: the source cannot be read.
        """
        first = run.first * self._block_size
        length = min(run.count * self._block_size, self._source.size_bytes - first)
        with memoryview(buffer) as view, view[:length] as data:
            with self._reading:
                self._source.read_into(first, data)
            fingerprints = [self._fingerprint(run, buffer, position) for position in range(run.count)]
        return HashedRun(run, buffer, fingerprints)

    def store(self, hashed: HashedRun, new: list[tuple[int, BlobUid]]) -> StoredRun:
        """Put blocks of a run into the storage; `new` are their positions in it and uids for their blobs.

        Raises:
            StorageError: the storage does not take them.
        """
        return StoredRun(hashed.buffer, save_blocks(self._blocks, self._new_blocks(hashed, new)))

    def seal(self, hashed: HashedRun, new: list[tuple[int, BlobUid]]) -> SealedRun:
        """Seal blocks of a run; arguments as for `store`. The objects do not need the buffer."""
        return SealedRun(
            hashed.buffer, [block.apart() for block in seal_blocks(self._blocks, self._new_blocks(hashed, new))]
        )

    def put(self, sealed: SealedRun) -> StoredRun:
        """Put sealed blocks into the storage.

        Raises:
            StorageError: the storage does not take them.
        """
        blocks = [] if self._is_given_up else sealed.blocks
        return StoredRun(None, put_blocks(self._blocks, blocks), sealed.weight)

    def give_up(self) -> None:
        """Let puts that have not begun store nothing, because the backup ends early."""
        self._is_given_up = True

    def flush(self, saved: list[SavedBlob]) -> FlushedBlobs:
        """Make everything that was put into the storage durable.

        Raises:
            StorageError: the storage fails.
        """
        self._blocks.storage.flush()
        return FlushedBlobs(saved)

    def publish(self, fresh: FreshPages, page: FreshPage) -> PublishedPage:
        """Put the object of a page into the catalog, if possible."""
        return PublishedPage(page if fresh.put(page) else None)

    def _new_blocks(
        self, hashed: HashedRun, new: list[tuple[int, BlobUid]]
    ) -> Iterator[tuple[BlobUid, bytes, memoryview]]:
        for position, uid in new:
            fingerprint = hashed.fingerprints[position]
            assert fingerprint is not None, "a block of zeros is a hole"
            with self._block(hashed.run, hashed.buffer, position) as block:
                yield uid, fingerprint, block

    def _fingerprint(self, run: BlockRun, buffer: bytearray, position: int) -> bytes | None:
        with self._block(run, buffer, position) as block:
            # Bytes are compared at memory speed, memoryviews 40 times slower. The first byte is usually enough.
            if block[0] == 0 and self._is_zeros(buffer, block):
                return None
            return self._blocks.fingerprint(block)

    def _is_zeros(self, buffer: bytearray, block: memoryview) -> bool:
        if len(block) == len(buffer):
            return buffer == self._zeros
        return block.tobytes() == self._zeros[: len(block)]

    def _block(self, run: BlockRun, buffer: bytearray, position: int) -> memoryview:
        size = block_length(BlockIndex(run.first + position), self._source.size_bytes, self._block_size)
        start = position * self._block_size
        return memoryview(buffer)[start : start + size]
