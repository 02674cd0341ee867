"""Compare a version with its source. A difference is not damage: sources change, and it may be the wrong source.

Blocks are compared by fingerprint, because reading a stored block has checked it against its fingerprint. Only blobs
without one are read here.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from backyfs.errors import DAMAGE
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count, page_length
from backyfs.images.image import Image
from backyfs.images.parts import PartLoader
from backyfs.metadata.maps.blockmap import HOLE
from backyfs.model import BlobId, BlockIndex, DamagedRange, PageNumber
from backyfs.ranges import ranges
from backyfs.sources.protocol import check_size
from backyfs.work.parallel import at_most
from backyfs.work.window import Window

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.model import Blob, Version
    from backyfs.repository import Repository
    from backyfs.sources.protocol import Source
    from backyfs.work.run import Run

_ALL = 100  # percent
DIFFERS = "the source differs"


class SourceComparison:
    """One comparison. Owned by the thread that calls `run`."""

    def __init__(
        self,
        repository: Repository,
        version: Version,
        source: Source,
        percentile: int,
        run: Run,
    ) -> None:
        self._repository = repository
        self._version = version
        self._image = Image(repository, version)
        self._loader = PartLoader(repository.blocks)
        self._source = source
        self._reading = at_most(source.parallel)
        self._percentile = percentile
        self._run = run
        self._geometry = (version.size_bytes, repository.block_size)
        self._blocks = block_count(*self._geometry)
        self._data = ranges(
            (extent.start // repository.block_size, block_count(extent.stop, repository.block_size))
            for extent in source.data_extents()
        )
        self._random = random.SystemRandom()

    def run(self) -> Iterator[DamagedRange]:
        """Yield the ranges in which the source differs, in order, without blocks that were never backed up.

        Raises:
            SourceError: the source cannot be read, shrank or grew.
            StorageError: the storage refuses.
            InterruptedByUser: the run was asked to stop.
            DatabaseError: the block map cannot be read.
        """
        for number in range(page_count(self._blocks)):
            found = ranges((index, index + 1) for index in self._differing(PageNumber(number)))
            self._run.advance(page_length(PageNumber(number), self._blocks) * self._repository.block_size)
            for first, stop in found:
                yield self._range(first * self._repository.block_size, self._end(BlockIndex(stop - 1)))
        check_size(self._source)
        if self._source.size_bytes > self._version.size_bytes:
            yield self._range(self._version.size_bytes, self._source.size_bytes)

    def _range(self, start: int, stop: int) -> DamagedRange:
        reason = DIFFERS
        if start >= self._version.size_bytes:
            reason = "the source is longer than the version"
        elif stop > self._source.size_bytes:
            reason = f"{DIFFERS}: it ends at byte {self._source.size_bytes}"
        return DamagedRange(start=start, stop=stop, reason=reason)

    def _differing(self, page_no: PageNumber) -> list[BlockIndex]:
        width = self._repository.width
        found: list[BlockIndex] = []
        first = page_no * PAGE_ENTRIES
        page = self._image.page(page_no)
        chosen = [(BlockIndex(first + position), entry) for position, entry in enumerate(page.entries)]
        chosen = [pair for pair in chosen if self._is_chosen(*pair)]
        if not chosen:
            return found

        def chunks() -> Iterator[list[tuple[BlockIndex, Blob | None]]]:
            for start in range(0, len(chosen), width.blocks):
                self._run.check()
                yield [(index, page.blobs.get(BlobId(entry))) for index, entry in chosen[start : start + width.blocks]]

        with Window[list[BlockIndex]](width.workers) as window:
            for differing in window.map(self._compare, chunks(), most=2 * width.workers):
                found += differing
        return found

    def _is_chosen(self, index: BlockIndex, entry: int) -> bool:
        """Return whether to compare a block. If both are holes, there is nothing to compare."""
        if entry < HOLE or (entry == HOLE and self._is_hole(index)):
            return False
        return self._percentile == _ALL or self._random.random() * _ALL < self._percentile

    def _is_hole(self, index: BlockIndex) -> bool:
        return index not in self._data and self._end(index) <= self._source.size_bytes

    def _compare(self, chunk: list[tuple[BlockIndex, Blob | None]]) -> list[BlockIndex]:
        """Return the blocks of a chunk that differ. Runs in a worker thread."""
        return [index for index, blob in chunk if self._differs(index, blob)]

    def _differs(self, index: BlockIndex, blob: Blob | None) -> bool:
        start = index * self._repository.block_size
        stop = self._end(index)
        if stop > self._source.size_bytes:
            return True
        block = bytearray(stop - start)
        with memoryview(block) as view, self._reading:
            self._source.read_into(start, view)
        if blob is None:
            return block != bytes(len(block))
        try:
            return not self._loader.holds(blob, block)
        except DAMAGE:
            return False  # it is damaged, which was already reported

    def _end(self, index: BlockIndex) -> int:
        return index * self._repository.block_size + block_length(index, *self._geometry)
