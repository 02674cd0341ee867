"""A set of blobs, by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.model import BlobId

if TYPE_CHECKING:
    from collections.abc import Iterator


class BlobSet:
    """A set of blob ids, a bit for each id there can be: 2.6 million blobs, 10 TiB, take 330 KB."""

    def __init__(self) -> None:
        self._bits = bytearray()

    def add(self, blob_id: BlobId) -> bool:
        """Add an id; return whether it is new."""
        position, bit = blob_id >> 3, 1 << (blob_id & 7)
        if position >= len(self._bits):
            self._bits.extend(bytes(position + 1 - len(self._bits)))
        is_new = not self._bits[position] & bit
        self._bits[position] |= bit
        return is_new

    def __contains__(self, blob_id: BlobId) -> bool:
        position = blob_id >> 3
        return position < len(self._bits) and bool(self._bits[position] & 1 << (blob_id & 7))

    def __iter__(self) -> Iterator[BlobId]:
        for position, bits in enumerate(self._bits):
            if bits:
                for bit in range(8):
                    if bits & 1 << bit:
                        yield BlobId(position << 3 | bit)
