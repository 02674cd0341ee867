"""Test data without a disk: `null://SIZE`, the same bytes each time, at memory speed.

Each sector of 512 bytes is its number (8 bytes, in the byte order of the machine), 248 bytes that look random,
and 256 zeros. So no two blocks are equal, whatever the block size, and compression halves them. A small image
is the beginning of every larger one.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from typing import TYPE_CHECKING

from backyfs.errors import SourceError
from backyfs.geometry import Extent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from backyfs.config import Config
    from backyfs.sources.change import SourceWarning

_PREFIX = "null://"
_SECTOR_BYTES = 512
_RANDOM_BYTES = 256        # of a sector; its number replaces the first eight
_STAMP_BYTES = 8
_PATTERN_BYTES = 4 << 20   # the random-looking bytes repeat after this many: more than zstd looks back at level 1
_SEED = b"backyfs null://"
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_MAX_BYTES = 2**63 - 1     # what a database column holds


def open_null(uri: str, config: Config | None, *, read_holes: bool) -> NullSource:  # noqa: ARG001 - it has no holes
    """Open `null://SIZE`, with what section `[io_null]` says.

    Raises:
        SourceError: SIZE is not a size.
    """
    return NullSource(size_of(uri), parallel=None if config is None else config.io_null.simultaneous_reads)


def size_of(uri: str) -> int:
    """Return the size of an image `null://SIZE` in bytes. SIZE is a number, with k, M, G, T or P for powers of 1,024.

    Raises:
        SourceError: SIZE is not a size.
    """
    # As backy2: a B may follow, and K is not a unit.
    found = re.fullmatch("([0-9]{1,19})([kMGTP]?)B?", uri.removeprefix(_PREFIX))
    size = int(found[1]) * _UNITS[found[2]] if found else -1
    if not 0 <= size <= _MAX_BYTES:
        raise SourceError(
            "does not give a size",
            subject=uri,
            remedy="write a whole number of bytes, perhaps with k, M, G, T or P: null://10G",
        )
    return size


class NullSource:
    """An image that is generated as it is read."""

    def __init__(self, size_bytes: int, *, parallel: int | None = None) -> None:
        self.name = f"{_PREFIX}{size_bytes}"
        self.size_bytes = size_bytes
        self.parallel = parallel
        self._pattern = memoryview(_pattern())

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield one extent: all of the image is data."""
        if start < self.size_bytes:
            yield Extent(start, self.size_bytes)

    def size_now(self) -> int:
        """Return the size, which never changes."""
        return self.size_bytes

    def signs_of_change(self, since: datetime | None = None) -> Iterator[SourceWarning]:  # noqa: ARG002
        """Yield nothing: the bytes are always the same."""
        return iter(())

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the image's bytes from `offset` on.

        Raises:
            SourceError: the image ends before the buffer is full.
        """
        stop = offset + len(buffer)
        if stop > self.size_bytes:
            raise SourceError(f"ends before byte {stop}", subject=self.name)
        first = offset // _SECTOR_BYTES * _SECTOR_BYTES
        if first == offset and len(buffer) % _SECTOR_BYTES == 0:
            self._make(first, buffer)
        else:
            around = bytearray(-(-(stop - first) // _SECTOR_BYTES) * _SECTOR_BYTES)
            self._make(first, memoryview(around))
            buffer[:] = memoryview(around)[offset - first : stop - first]

    def _make(self, offset: int, sectors: memoryview) -> None:
        """Fill whole sectors."""
        position = 0
        while position < len(sectors):
            start = (offset + position) % _PATTERN_BYTES
            piece = self._pattern[start : start + len(sectors) - position]
            sectors[position : position + len(piece)] = piece
            position += len(piece)
        first = offset // _SECTOR_BYTES
        numbers = array("Q", range(first, first + len(sectors) // _SECTOR_BYTES))
        if numbers:
            # One assignment for all sectors: a loop over them would take ten times as long.
            sectors.cast("Q")[:: _SECTOR_BYTES // _STAMP_BYTES] = memoryview(numbers)

    def close(self) -> None:
        """Do nothing: nothing is open."""


def _pattern() -> bytearray:
    pattern = bytearray(_PATTERN_BYTES)
    random = hashlib.shake_128(_SEED).digest(_PATTERN_BYTES // _SECTOR_BYTES * _RANDOM_BYTES)
    for position in range(len(random) // _RANDOM_BYTES):
        start = position * _SECTOR_BYTES
        pattern[start : start + _RANDOM_BYTES] = random[position * _RANDOM_BYTES : (position + 1) * _RANDOM_BYTES]
    return pattern
