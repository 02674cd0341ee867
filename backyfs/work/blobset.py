"""Keep a set of blob ids in little memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.model import BlobId

if TYPE_CHECKING:
    from collections.abc import Iterator

_SHIFT = 9  # 512 ids share a chunk
_IDS = 1 << _SHIFT


class BlobSet:
    """A set of blob ids, in chunks of bits. The ids of 2.6 million blobs (10 TiB) take about 1 MB.

    A single id takes about 200 bytes, however large it is.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def add(self, blob_id: BlobId) -> bool:
        """Add an id; return whether it is new."""
        chunk = self._chunks.get(blob_id >> _SHIFT)
        if chunk is None:
            chunk = self._chunks[blob_id >> _SHIFT] = bytearray(_IDS // 8)
        position, bit = (blob_id & (_IDS - 1)) >> 3, 1 << (blob_id & 7)
        is_new = not chunk[position] & bit
        chunk[position] |= bit
        return is_new

    def __contains__(self, blob_id: BlobId) -> bool:
        chunk = self._chunks.get(blob_id >> _SHIFT)
        return chunk is not None and bool(chunk[(blob_id & (_IDS - 1)) >> 3] & 1 << (blob_id & 7))

    def __iter__(self) -> Iterator[BlobId]:
        """Yield the ids in order."""
        for number in sorted(self._chunks):
            for position, bits in enumerate(self._chunks[number]):
                if bits:
                    first = number << _SHIFT | position << 3
                    yield from (BlobId(first | bit) for bit in range(8) if bits & 1 << bit)
