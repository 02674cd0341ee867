"""Encryption version 2, seekable: a block is cut into segments, each compressed and sealed separately.

A table at the beginning has their lengths, so reading a part of a block takes one small read and one exact read.
`docs/reference/format.md` specifies the bytes.

Each data key seals one block, once, so no nonce is used twice with one key: nonces are the numbers of the segments, and
for the table a number that no segment has. This also binds segments to their blob: a segment from another blob, or from
another place in this one, does not open. Sealing two blocks with the same data key would reveal both.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backyfs.errors import IntegrityError
from backyfs.model import DEFAULT_COMPRESSION_LEVEL
from backyfs.sealing.frames import compressor, decompress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backyfs.model import Buffer

# sealed table | sealed segments, in order
# Sealed: ciphertext | tag (16). Plain table: for each segment its length without the tag (4); the highest bit is set
# if it is not compressed, otherwise it is one zstd frame.
# Nonce (12): number of the segment, 2^32 - 1 for the table.
# Associated data: that number (4) | segments of the block (4) | bytes of the block (8). Integers are little-endian.
SEGMENT_BYTES = 256 << 10
_TAG_BYTES = 16
_ENTRY_BYTES = 4
_KEPT_PLAIN = 1 << 31
_TABLE_NUMBER = (1 << 32) - 1
_BOUND = struct.Struct("<IIQ")
_LIKELY_BYTES = 288 << 10  # that are read to find one segment: some more than it has at most
# With zstd's default parameters for inputs of this size, objects would be 2 % smaller and sealing 10 % slower
# (level 1; from level 12 on, 3 % smaller at a third of the speed).
_WINDOW_LOG = 18


class Segments:
    """Objects whose segments can be opened separately. A data key must never be used for a second block."""

    uses_data_key = True
    segment_bytes = SEGMENT_BYTES

    @property
    def seekable(self) -> Segments:
        """Return this version, because it can open parts."""
        return self

    def sealer(
        self, compression_level: int = DEFAULT_COMPRESSION_LEVEL
    ) -> Callable[[Buffer, bytes], Sequence[Buffer]]:
        """Return a function that returns the sealed table and segments of a block."""
        return partial(_seal, compressor(compression_level, _WINDOW_LOG))

    def open(self, stored: Buffer, data_key: bytes, size: int) -> bytes:
        """Return the plain bytes of a block. The object must not have any further bytes."""
        view = memoryview(stored)
        opener = _Opener(data_key, size)
        table = opener.table(view[: table_bytes(size)])
        if len(view) != table.ends[-1]:
            raise IntegrityError(f"has {len(view)} bytes, but its table describes {table.ends[-1]}")
        return b"".join(opener.segments(table, view[table.ends[0] :], range(opener.count)))

    def table_bytes(self, size: int) -> int:
        """Return the length of the table at the beginning of the object of a block of `size` bytes."""
        return table_bytes(size)

    def likely_bytes(self, size: int, stored_size: int, segments: range) -> range:
        """Return which bytes of an object probably have these segments, if all compressed alike.

        The range is somewhat larger, because they never do. The first segment begins where the table ends. A segment
        is never longer than its plain bytes and a tag, so the estimate is exact for data that cannot be compressed.
        """
        begin = table_bytes(size)
        if stored_size <= _LIKELY_BYTES:
            return range(begin, stored_size)
        typical = (stored_size - begin) / segment_count(size)
        slack = int(min(typical / 2, (_LIKELY_BYTES - typical * len(segments)) / 2))
        start = begin + int(segments.start * typical) - max(0, slack)
        stop = begin + int(segments.stop * typical) + max(0, slack)
        if segments.start == 0:
            stop = min(stop, begin + segments.stop * (SEGMENT_BYTES + _TAG_BYTES))
        return range(max(begin, start), min(stored_size, stop))

    def open_range(
        self, read_at: Callable[[int, int], Buffer], data_key: bytes, size: int, segments: range
    ) -> list[bytes]:
        """Return one or more consecutive segments of a block of `size` bytes.

        `read_at(offset, length)` returns bytes of the object, fewer at its end. It is called for the table first, then
        for exactly these segments.
        """
        opener = _Opener(data_key, size)
        table = opener.table(read_at(0, table_bytes(size)))
        start, stop = table.ends[segments.start], table.ends[segments.stop]
        return opener.segments(table, memoryview(read_at(start, stop - start)), segments)


def segment_count(size: int) -> int:
    """Return the number of segments of a block of `size` bytes."""
    return -(-size // SEGMENT_BYTES)


def table_bytes(size: int) -> int:
    """Return the length of the sealed table of a block of `size` bytes."""
    return segment_count(size) * _ENTRY_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True)
class _Table:
    """The table of an object."""

    ends: tuple[int, ...]        # offsets in the object: of the end of the table, then of each segment with its tag
    is_compressed: tuple[bool, ...]


class _Cipher:
    """AES-256-GCM with one data key, bound to the positions in a block of one size."""

    def __init__(self, data_key: bytes, size: int) -> None:
        self.count = segment_count(size)
        self._size = size
        self._gcm = AESGCM(data_key)

    def seal(self, number: int, plain: Buffer, sealed: memoryview) -> None:
        self._gcm.encrypt_into(_nonce(number), plain, self._bound(number), sealed)

    def open(self, number: int, sealed: memoryview) -> bytearray:
        if len(sealed) < _TAG_BYTES:
            raise IntegrityError("is truncated")
        plain = bytearray(len(sealed) - _TAG_BYTES)
        try:
            self._gcm.decrypt_into(_nonce(number), sealed, self._bound(number), plain)
        except InvalidTag:
            raise IntegrityError("fails authentication: damaged, or not the object of this blob") from None
        return plain

    def _bound(self, number: int) -> bytes:
        return _BOUND.pack(number, self.count, self._size)


class _Opener:
    """Opens the table and segments of one block."""

    def __init__(self, data_key: bytes, size: int) -> None:
        self._cipher = _Cipher(data_key, size)
        self._size = size
        self.count = self._cipher.count

    def table(self, sealed: Buffer) -> _Table:
        """Return what the sealed table says."""
        length = table_bytes(self._size)
        if memoryview(sealed).nbytes != length:
            raise IntegrityError(f"is truncated: {memoryview(sealed).nbytes} bytes")
        plain = self._cipher.open(_TABLE_NUMBER, memoryview(sealed))
        entries = struct.unpack(f"<{self.count}I", plain)
        lengths = [(entry & ~_KEPT_PLAIN) + _TAG_BYTES for entry in entries]
        return _Table(
            ends=tuple(accumulate(lengths, initial=length)),
            is_compressed=tuple(not entry & _KEPT_PLAIN for entry in entries),
        )

    def segments(self, table: _Table, sealed: memoryview, numbers: range) -> list[bytes]:
        """Return segments, given their consecutive sealed bytes."""
        decompressor = zstandard.ZstdDecompressor()
        base = table.ends[numbers.start]
        bounds = pairwise(table.ends[numbers.start : numbers.stop + 1])
        found = []
        for number, (start, stop) in zip(numbers, bounds, strict=True):
            part = sealed[start - base : stop - base]
            if len(part) != stop - start:
                raise IntegrityError(f"is truncated: it ends within segment {number}")
            plain = self._cipher.open(number, part)
            expected = min(SEGMENT_BYTES, self._size - number * SEGMENT_BYTES)
            if table.is_compressed[number]:
                found.append(decompress(decompressor, plain, expected))
            elif len(plain) == expected:
                found.append(bytes(plain))
            else:
                raise IntegrityError(f"contains {len(plain)} bytes, but segment {number} has {expected}")
        return found


def _seal(compressor: zstandard.ZstdCompressor, block: Buffer, data_key: bytes) -> Sequence[Buffer]:
    view = memoryview(block).cast("B")
    kept: list[Buffer] = []
    entries = []
    for start in range(0, len(view), SEGMENT_BYTES):
        segment = view[start : start + SEGMENT_BYTES]
        frame = compressor.compress(segment)
        is_smaller = len(frame) < len(segment)
        kept.append(frame if is_smaller else segment)
        entries.append(len(frame) if is_smaller else len(segment) | _KEPT_PLAIN)
    cipher = _Cipher(data_key, len(view))
    ends = list(accumulate((len(part) + _TAG_BYTES for part in kept), initial=table_bytes(len(view))))
    sealed = memoryview(bytearray(ends[-1]))
    cipher.seal(_TABLE_NUMBER, struct.pack(f"<{len(entries)}I", *entries), sealed[: ends[0]])
    for number, (part, (start, stop)) in enumerate(zip(kept, pairwise(ends), strict=True)):
        cipher.seal(number, part, sealed[start:stop])
    return (sealed,)


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "little")
