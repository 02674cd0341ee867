"""The blocks of a version, or of a part of its bytes, in order, cut into runs. A run is one task for a worker."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from backyfs.errors import DamagedPageError, IntegrityError
from backyfs.geometry import PAGE_ENTRIES, block_count, block_length, page_count, page_length
from backyfs.metadata.maps.blockmap import ABSENT, HOLE, new_entries, page_entries
from backyfs.metadata.records.blobs import load_blobs
from backyfs.model import BlobId, BlockIndex, PageNumber

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.metadata.maps.blockmap import Entries
    from backyfs.model import Blob, Version
    from backyfs.repository import Repository

GAP_BYTES = 64 << 20  # the size of a gap for tasks that have work to do in gaps


@dataclass(frozen=True, slots=True)
class BlockPart:
    """A block that has a blob, or the wanted part of it."""

    start: int   # bytes of the image
    length: int
    blob: Blob | None  # None: its row is gone
    skipped: int       # bytes of the block before `start`
    block_length: int

    @property
    def is_whole(self) -> bool:
        """Whether the whole block is wanted."""
        return self.length == self.block_length

    def sound_blob(self) -> Blob:
        """Return the blob.

        Raises:
            IntegrityError: there is none, or it cannot be the blob of this block.
        """
        if self.blob is None:
            raise IntegrityError("refers to a blob that the database does not have", subject="the block map")
        if self.blob.size != self.block_length:
            raise IntegrityError(
                f"has {self.blob.size} bytes where the image has {self.block_length}", subject=f"blob {self.blob.uid}"
            )
        return self.blob


@dataclass(frozen=True, slots=True)
class GapPart:
    """Consecutive blocks without blobs: holes, or blocks that were never backed up."""

    start: int   # bytes of the image
    length: int
    is_absent: bool  # never backed up, or unknown
    fact: str | None = None  # why they are unknown


@dataclass(slots=True)
class ImageRun:
    """Consecutive parts of an image."""

    first: BlockIndex
    parts: list[BlockPart | GapPart] = field(default_factory=list)
    has_blocks: bool = False
    length: int = 0  # bytes of the image

    @property
    def stop(self) -> int:
        """Where it ends, in bytes of the image."""
        return self.parts[-1].start + self.parts[-1].length


class ImageRuns:
    """Cuts a version into runs. Owned by the thread that owns the database."""

    def __init__(
        self, repository: Repository, version: Version, *, blocks_at_once: int, gap_bytes: int | None
    ) -> None:
        """Cut a version after this many blocks, and gaps after `gap_bytes`.

        None: gaps cost nothing, and can be as long as a page.
        """
        self._database = repository.database
        self._version = version
        self._block_size = repository.block_size
        self.blocks = block_count(version.size_bytes, repository.block_size)
        self._blocks_at_once = blocks_at_once
        self._gap_blocks = PAGE_ENTRIES if gap_bytes is None else max(1, gap_bytes // repository.block_size)

    def within(self, wanted: range) -> Iterator[ImageRun]:
        """Yield the runs of a range of bytes, in order. No run crosses a page boundary.

        A damaged page yields gaps with a `fact`.

        Raises:
            DatabaseError: the block map cannot be read.
        """
        page_no, skipped = divmod(wanted.start // self._block_size, PAGE_ENTRIES)
        stop = block_count(wanted.stop, self._block_size)
        for number in range(page_no, page_count(stop)):
            fact = None
            with self._database.read() as connection:
                try:
                    entries = page_entries(connection, self._version, PageNumber(number), self.blocks)
                except DamagedPageError as error:
                    fact = str(error)
                    entries = new_entries(page_length(PageNumber(number), self.blocks), ABSENT)
                entries = entries[: stop - number * PAGE_ENTRIES]
                blobs = load_blobs(connection, {BlobId(entry) for entry in entries[skipped:] if entry > HOLE})
            for run in self._runs(number * PAGE_ENTRIES, entries, blobs, skipped, wanted):
                yield run if fact is None else _explained(run, fact)
            skipped = 0

    def _runs(
        self, page_start: int, entries: Entries, blobs: dict[BlobId, Blob], position: int, wanted: range
    ) -> Iterator[ImageRun]:
        run = ImageRun(BlockIndex(page_start + position))
        blocks = 0
        while position < len(entries):
            index = page_start + position
            entry = entries[position]
            if entry > HOLE:
                run.parts.append(self._block_part(index, blobs.get(BlobId(entry)), wanted))
                run.has_blocks = True
                blocks += 1
                position += 1
            else:
                count = self._gap_length(entries, position)
                start, stop = self._bounds(index, count, wanted)
                run.parts.append(GapPart(start, stop - start, entry == ABSENT))
                position += count
            run.length += run.parts[-1].length
            if blocks == self._blocks_at_once or run.length >= self._gap_blocks * self._block_size:
                yield run
                run = ImageRun(BlockIndex(page_start + position))
                blocks = 0
        if run.parts:
            yield run

    def _gap_length(self, entries: Entries, position: int) -> int:
        """Return how many equal entries start at this position, at most as many as a gap may have."""
        entry = entries[position]
        stop = min(len(entries), position + self._gap_blocks)
        end = position + 1
        while end < stop and entries[end] == entry:
            end += 1
        return end - position

    def _block_part(self, index: int, blob: Blob | None, wanted: range) -> BlockPart:
        start, stop = self._bounds(index, 1, wanted)
        length = block_length(BlockIndex(index), self._version.size_bytes, self._block_size)
        return BlockPart(start, stop - start, blob, start - index * self._block_size, length)

    def _bounds(self, index: int, count: int, wanted: range) -> tuple[int, int]:
        """Return the start and end of the wanted part of `count` blocks, in bytes of the image."""
        return max(index * self._block_size, wanted.start), min((index + count) * self._block_size, wanted.stop)


def _explained(run: ImageRun, fact: str) -> ImageRun:
    parts = [replace(part, fact=fact) if isinstance(part, GapPart) else part for part in run.parts]
    return replace(run, parts=parts)
