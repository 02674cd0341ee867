"""Which blocks a backup reads, which are zeros, and which are the same as in its base. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.geometry import PAGE_ENTRIES, Extent, block_count
from backyfs.hints import block_hints
from backyfs.model import PageNumber
from backyfs.ranges import Ranges, ranges

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.hints import Hints
    from backyfs.sources.protocol import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do with the blocks of an image. A block in no range is as in the base, or zeros without a base."""

    size_bytes: int
    block_size: int
    read: Ranges   # which may still be zeros
    zeros: Ranges  # known to be zeros
    kept: Ranges   # as in the base: all others that the base has in the same length
    has_base: bool
    asks_source: bool  # read only where the source says that it has data

    @property
    def progress_bytes(self) -> int:
        """Bytes that count as done at the end: without a base, this includes those that are not read."""
        return self.bytes_of(self.read) if self.has_base else self.size_bytes

    def extents(self, source: Source) -> Iterator[Extent]:
        """Yield the extents to read, in order.

        Raises:
            SourceError: the source cannot report where it has data.
        """
        if self.asks_source:
            yield from source.data_extents()
            return
        for first, stop in self.read:
            yield Extent(first * self.block_size, min(stop * self.block_size, self.size_bytes))

    def bytes_of(self, blocks: Ranges) -> int:
        """Return how many bytes of the image these blocks have."""
        size_bytes, block_size = self.size_bytes, self.block_size
        return sum(min(stop * block_size, size_bytes) - first * block_size for first, stop in blocks)

    def pages_with_reads(self) -> frozenset[PageNumber]:
        """Return the pages of the block map with blocks to read."""
        return frozenset(
            PageNumber(number)
            for first, stop in self.read
            for number in range(first // PAGE_ENTRIES, -(-stop // PAGE_ENTRIES))
        )


def plan_everything(size_bytes: int, block_size: int) -> Plan:
    """Return the plan for an image without hints: read everything except its holes."""
    return Plan(
        size_bytes=size_bytes,
        block_size=block_size,
        read=ranges([(0, block_count(size_bytes, block_size))]),
        zeros=Ranges(),
        kept=Ranges(),
        has_base=False,
        asks_source=True,
    )


def plan_backup(
    hints: Hints, size_bytes: int, block_size: int, *, base_bytes: int | None, data: Iterable[Extent], damaged: Ranges
) -> Plan:
    """Return what to do with the blocks of an image with hints.

    `base_bytes` is the size of the base; None: there is no base, and blocks without hints are zeros. `data` are the
    extents of the source that are not known to be zeros. Those beyond the end of the base are read even without hints.
    `damaged` are blocks that are damaged in the base.

    Raises:
        HintsError: the hints reach beyond the end of the image.
    """
    hinted = block_hints(hints, size_bytes, block_size)
    blocks = block_count(size_bytes, block_size)
    if base_bytes is None:
        return Plan(
            size_bytes=size_bytes,
            block_size=block_size,
            read=hinted.read,
            zeros=hinted.zeros,
            kept=Ranges(),
            has_base=False,
            asks_source=False,
        )
    # A short last block of the base cannot be used in a longer image.
    same = blocks if base_bytes == size_bytes else min(base_bytes, size_bytes) // block_size
    beyond = Ranges()
    if same < blocks:  # listing the extents of a large source takes a while
        beyond = ranges((max(same, each.start // block_size), block_count(each.stop, block_size)) for each in data)
    read = hinted.read | (beyond - hinted.zeros) | (damaged & ranges([(0, same)]) - hinted.zeros)
    return Plan(
        size_bytes=size_bytes,
        block_size=block_size,
        read=read,
        zeros=hinted.zeros,
        kept=ranges([(0, same)]) - read - hinted.zeros,
        has_base=True,
        asks_source=False,
    )
