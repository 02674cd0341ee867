"""Convert between sizes, byte ranges and extents on one side, and blocks and pages on the other. Pure.

Ranges are half open, [start, stop), in bytes or in blocks as their names say. Blocks and pages are
numbered from 0. Only the last block of an image may be short. A blob is cut into pieces, the parts of it that can be
opened separately, as an image is cut into blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.model import BlockIndex, PageNumber

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE_ENTRIES = 1024  # blocks per page of a block map: 4 GiB of image with blocks of 4 MiB


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes [start, stop) of an image."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BlockRun:
    """`count` consecutive blocks, starting at block `first`."""

    first: BlockIndex
    count: int


@dataclass(frozen=True, slots=True)
class BlockSlice:
    """Bytes [start, stop) of block `index`, relative to the start of the block."""

    index: BlockIndex
    start: int
    stop: int


def block_count(size_bytes: int, block_size: int) -> int:
    """Return how many blocks an image of this size has. An empty image has none."""
    return -(-size_bytes // block_size)


def page_count(blocks: int) -> int:
    """Return how many pages the block map of `blocks` blocks has."""
    return -(-blocks // PAGE_ENTRIES)


def page_length(page_no: PageNumber, blocks: int) -> int:
    """Return how many entries page `page_no` has in the block map of `blocks` blocks."""
    return min(PAGE_ENTRIES, blocks - page_no * PAGE_ENTRIES)


def page_position(index: BlockIndex) -> tuple[PageNumber, int]:
    """Return the page of a block and the block's position in it."""
    page_no, position = divmod(index, PAGE_ENTRIES)
    return PageNumber(page_no), position


def block_length(index: BlockIndex, size_bytes: int, block_size: int) -> int:
    """Return the length of a block in bytes; only the last block of an image can be short."""
    return min(block_size, size_bytes - index * block_size)


def block_slices(offset: int, length: int, size_bytes: int, block_size: int) -> Iterator[BlockSlice]:
    """Split a read of an image into parts of single blocks, in order. Bytes beyond the end are left out."""
    stop = min(offset + length, size_bytes)
    while offset < stop:
        index, start = divmod(offset, block_size)
        part = min(block_size - start, stop - offset)
        yield BlockSlice(BlockIndex(index), start, start + part)
        offset += part


def block_runs(
    extents: Iterable[Extent], size_bytes: int, block_size: int, max_blocks: int
) -> Iterator[BlockRun]:
    """Cover extents of data with runs of up to `max_blocks` whole blocks, in order, each block once.

    `extents` are sorted and do not overlap, but two of them may touch the same block. A run never crosses
    a page of the block map, so a page is done when its last run is.
    """
    blocks = block_count(size_bytes, block_size)
    done = 0  # blocks below this one are already covered
    for extent in extents:
        first = max(done, extent.start // block_size)
        stop = min(blocks, block_count(extent.stop, block_size))
        while first < stop:
            page_end = (first // PAGE_ENTRIES + 1) * PAGE_ENTRIES
            last = min(stop, first + max_blocks, page_end)
            yield BlockRun(BlockIndex(first), last - first)
            first = done = last


def pieces_covering(start: int, stop: int, piece_size: int) -> range:
    """Return the numbers of the pieces of a blob that contain bytes [start, stop) of it."""
    return range(start // piece_size, -(-stop // piece_size))


def bytes_of_pieces(pieces: range, blob_size: int, piece_size: int) -> int:
    """Return how many bytes consecutive pieces of a blob have; only the last piece of a blob can be short."""
    return min(pieces.stop * piece_size, blob_size) - pieces.start * piece_size


def within_piece(start: int, stop: int, number: int, piece_size: int) -> slice:
    """Return where bytes [start, stop) of a blob are in its bytes from piece `number` on; they may begin before it."""
    first = number * piece_size
    return slice(max(start - first, 0), stop - first)
