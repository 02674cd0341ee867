"""Test data without a disk: `null://SIZE`, the same bytes each time, at memory speed.

Each sector of 512 bytes is its number (8 bytes, in the byte order of the machine), 248 bytes that look random,
and 256 zeros. So no two blocks are equal, whatever the block size, and compression halves them. A smaller image
is the beginning of a larger one.
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

    from backyfs.sources.change import SourceWarning

NULL_SCHEME = "null://"

_SECTOR_BYTES = 512
_RANDOM_BYTES = 256        # of a sector; its number replaces the first eight
_STAMP_BYTES = 8
_PATTERN_BYTES = 4 << 20   # what looks random comes again after so much: far more than zstd looks back at level 1
_SEED = b"backyfs null://"
_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_MAX_BYTES = 2**63 - 1     # what a database column holds


def size_of(uri: str) -> int:
    """Return how many bytes an image `null://SIZE` has; SIZE is a number and k, M, G, T or P, of 1,024 each.

    Raises:
        SourceError: the size is none.
    """
    # As backy2: a B may follow, and K is not a unit.
    found = re.fullmatch("([0-9]{1,19})([kMGTP]?)B?", uri.removeprefix(NULL_SCHEME))
    size = int(found[1]) * _UNITS[found[2]] if found else -1
    if not 0 <= size <= _MAX_BYTES:
        raise SourceError(
            f"{uri} does not say a size; write a whole number of bytes, perhaps with k, M, G, T or P: null://10G"
        )
    return size


class NullSource:
    """An image that is made as it is read."""

    def __init__(self, size_bytes: int) -> None:
        self.name = f"{NULL_SCHEME}{size_bytes}"
        self.size_bytes = size_bytes
        self._pattern = memoryview(_pattern())

    def data_extents(self, start: int = 0) -> Iterator[Extent]:
        """Yield the one extent that the image is, from `start` on."""
        if start < self.size_bytes:
            yield Extent(start, self.size_bytes)

    def size_now(self) -> int:
        """Return the size, which stays as it is."""
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
            raise SourceError(f"{self.name} ends before byte {stop}")
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
