"""The format of a cached copy: an object in cells, each with a digest. Bytes in, bytes out: no I/O, no state.

A copy may have any of its cells. A cell that does not verify counts as absent, so it does not matter how a file came to
be what it is. The object never changes, so processes that write the same cell at the same time write the same bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

if TYPE_CHECKING:
    from backyfs.model import BlobUid, Buffer

# BLAKE3 of the data, with a key that depends on the blob (32) | number of the cell (4) | length of the data (4) | data
# Integers are little-endian. Cell n is at n times CELL_BYTES. Only the last cell of an object has less than DATA_BYTES
# of data, if necessary none at all: it is how the end of the object is known.
#
# Larger cells would be verified faster: 256 KiB take 62 us now, and 49 in cells of 64 KiB. But a request to the storage
# begins and ends with a cell, and so reads up to two cells too many. The data are a power of two because BLAKE3 takes
# twice the time for 32 bytes less.
DATA_BYTES = 16 << 10
_HEADER = struct.Struct("<32sII")
CELL_BYTES = _HEADER.size + DATA_BYTES

_KEY_CONTEXT = "backyfs disk cache, version 1: copy of a blob"


@dataclass(frozen=True, slots=True)
class CopyKey:
    """What the digests of a copy depend on. It is not secret."""

    digest_key: bytes

    @property
    def path(self) -> str:
        """The path of the file: 256 directories, and no name that was chosen by anybody."""
        name = self.digest_key.hex()
        return f"{name[:2]}/{name[2:]}"


def copy_key(repository: str, uid: BlobUid) -> CopyKey:
    """Return the key of the copy of a blob. Repositories can share a cache: their blobs have different keys."""
    return CopyKey(blake3(f"{repository}/{uid}".encode(), derive_key_context=_KEY_CONTEXT).digest())


def cells_covering(offset: int, length: int) -> range:
    """Return the numbers of the cells with bytes [offset, offset + length) of an object; at least one byte."""
    return range(offset // DATA_BYTES, (offset + length - 1) // DATA_BYTES + 1)


def pack(key: CopyKey, first: int, content: Buffer, *, is_end: bool) -> list[tuple[bytes, memoryview]]:
    """Return consecutive cells as header and data. `content` begins with the data of cell `first`.

    With `is_end` the object ends with `content`; otherwise `content` fills all cells.
    """
    view = memoryview(content)
    cells = []
    for number, start in enumerate(range(0, len(view) + is_end, DATA_BYTES), first):
        data = view[start : start + DATA_BYTES]
        header = _HEADER.pack(blake3(data, key=key.digest_key).digest(), number, len(data))
        cells.append((header, data))
    return cells


def unpack(key: CopyKey, first: int, stored: Buffer) -> list[memoryview | None]:
    """Return the data of consecutive cells, of which `first` is the first; None for one that does not verify."""
    view = memoryview(stored)
    digest_key = key.digest_key
    found: list[memoryview | None] = []
    for number, start in enumerate(range(0, len(view) - _HEADER.size + 1, CELL_BYTES), first):
        digest, written_as, length = _HEADER.unpack_from(view, start)
        data = view[start + _HEADER.size : start + _HEADER.size + length]
        is_sound = (
            written_as == number
            and len(data) == length <= DATA_BYTES
            and blake3(data, key=digest_key).digest() == digest
        )
        found.append(data if is_sound else None)
    return found
