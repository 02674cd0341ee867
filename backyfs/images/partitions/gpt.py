"""Read a GUID partition table: its first copy, its backup, or what is left of them. Uses a `Disk`; no state.

The format is described in the UEFI specification 2.10, section 5.3. There are two copies: one after the first sector of
the disk, and one that ends with the last sector. Each copy has a header and an array of entries, with checksums.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from backyfs.images.partitions.table import Partition, PartitionTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.images.partitions.disk import Disk

_SECTOR_SIZES = (512, 4096)  # bytes
_SIGNATURE = b"EFI PART"
# signature (8) | revision (4) | bytes in the header (4) | its CRC-32, calculated with 0 here (4) | 0 (4)
# | sector of this header (8) | of the other one (8) | first sector for partitions (8) | last one (8) | GUID (16)
# | first sector of the entries (8) | number of entries (4) | bytes in an entry (4) | CRC-32 of the entries (4)
_HEADER = struct.Struct("<8s4xII4xQQ32xQIII")
_CRC_AT = 16
# type (16) | GUID (16) | first sector (8) | last sector (8) | attributes (8) | name in UTF-16, little endian (72)
_ENTRY = struct.Struct("<16s16sQQQ72s")
_UNUSED = bytes(16)
_LEGACY_BIOS_BOOTABLE = 1 << 2

_MOST_ENTRIES = 1024
_MOST_ENTRY_BYTES = 4096
_MOST_ARRAY_BYTES = 1 << 20  # at most this much is read; the usual 128 entries have 16 KiB
_PIECE_BYTES = 16 << 10      # of the array, read at a time: an unreadable byte loses one such piece


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    start: int  # bytes
    sector_bytes: int
    is_intact: bool  # its checksum is correct
    own_sector: int
    other_sector: int
    array_sector: int
    count: int
    entry_bytes: int
    array_crc: int

    @property
    def array_start(self) -> int:
        return self.array_sector * self.sector_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """One of the two copies; it is intact if it has no faults."""

    header: _Header
    entries: tuple[bytes, ...]  # all that were read, including unused ones
    header_faults: tuple[str, ...]
    array_fault: str
    odd_entries: int  # entries that cannot be partitions of this image

    @property
    def faults(self) -> tuple[str, ...]:
        return (*self.header_faults, self.array_fault) if self.array_fault else self.header_faults

    @property
    def is_usable(self) -> bool:
        return not self.faults or any(not entry.startswith(_UNUSED) for entry in self.entries)

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """The sort key of copies: the best copy comes first.

        Entries that match their checksum are correct, even if a part of the header is not.
        """
        return not self.is_usable, bool(self.array_fault), self.odd_entries, len(self.header_faults)


def has_gpt_signature(disk: Disk) -> bool:
    """Return whether the place of the first copy has the signature of a GPT."""
    return any(disk.read(size, len(_SIGNATURE)) == _SIGNATURE for size in _SECTOR_SIZES)


def read_gpt(disk: Disk) -> PartitionTable | None:
    """Return the partitions of a GPT, exactly as it lists them; None if there is no GPT. Remark on anything unusual.

    The first intact copy is used. If there is none, the best copy is used, unless nothing of it can be read.
    """
    copies: list[_Copy] = []
    for header in _headers(disk):
        copies.append(_read_copy(disk, header))
        if not copies[-1].faults:
            break
    for fault in (fault for copy in copies for fault in copy.faults):
        disk.remark(fault)
    best = min(copies, key=lambda copy: copy.rank, default=None)
    if best is None or not best.is_usable:
        return None
    _remark_on(disk, best)
    partitions = (
        _partition(number, entry, best.header.sector_bytes)
        for number, entry in enumerate(best.entries, 1)
        if not entry.startswith(_UNUSED)
    )
    return PartitionTable(
        scheme="gpt", sector_bytes=best.header.sector_bytes, partitions=tuple(partitions), remarks=()
    )


def _headers(disk: Disk) -> Iterator[_Header]:
    """Yield each header once: first copies, backups at the end of the disk, then backups that a header refers to."""
    first = [header for size in _SECTOR_SIZES if (header := _read_header(disk, size, size)) is not None]
    yield from first
    seen = {header.start for header in first}
    ends = [((disk.image_bytes // size - 1) * size, size) for size in _SECTOR_SIZES]
    named = [(header.other_sector * header.sector_bytes, header.sector_bytes) for header in first]
    for start, size in ends + named:
        if start in seen:
            continue
        seen.add(start)
        backup = _read_header(disk, start, size)
        if backup is not None:
            yield backup


def _read_header(disk: Disk, start: int, sector_bytes: int) -> _Header | None:
    """Return the header at a byte, unchecked; None if there is none."""
    sector = disk.read(start, sector_bytes)
    if sector is None or not sector.startswith(_SIGNATURE):
        return None
    _, size, crc, own, other, array, count, entry_bytes, array_crc = _HEADER.unpack_from(sector)
    return _Header(
        start=start,
        sector_bytes=sector_bytes,
        is_intact=_HEADER.size <= size <= sector_bytes and crc == _header_crc(sector[:size]),
        own_sector=own,
        other_sector=other,
        array_sector=array,
        count=count,
        entry_bytes=entry_bytes,
        array_crc=array_crc,
    )


def _header_crc(header: bytes) -> int:
    return zlib.crc32(header[:_CRC_AT] + bytes(4) + header[_CRC_AT + 4 :])


def _read_copy(disk: Disk, header: _Header) -> _Copy:
    """Return the copy that a header belongs to, with all its faults."""
    place = f"The GPT header at byte {header.start}"
    faults = []
    if not header.is_intact:
        faults.append(f"{place} has a wrong checksum.")
    if header.own_sector * header.sector_bytes != header.start:
        faults.append(f"{place} says that it is at byte {header.own_sector * header.sector_bytes}.")
    size = header.entry_bytes
    if not (_ENTRY.size <= size <= _MOST_ENTRY_BYTES and size.bit_count() == 1):
        fault = f"{place} gives an impossible size of its entries: {size} bytes."
        return _Copy(header=header, entries=(), header_faults=tuple(faults), array_fault=fault, odd_entries=0)
    array, fault = _read_array(disk, header)
    most = min(len(array) // size, _MOST_ENTRIES)
    entries = tuple(array[index * size : (index + 1) * size] for index in range(most))
    if array[_MOST_ENTRIES * size :].strip(b"\0"):
        disk.remark(f"{place} has {header.count} entries; those after number {_MOST_ENTRIES} are left out.")
    last_sector = disk.image_bytes // header.sector_bytes - 1
    return _Copy(
        header=header,
        entries=entries,
        header_faults=tuple(faults),
        array_fault=fault,
        odd_entries=sum(_is_odd(entry, last_sector) for entry in entries),
    )


def _read_array(disk: Disk, header: _Header) -> tuple[bytes, str]:
    """Return the bytes of all entries, with zeros for unreadable ones, and their fault."""
    size = min(header.count * header.entry_bytes, _MOST_ARRAY_BYTES)
    place = f"The GPT entries at byte {header.array_start}"
    pieces = []
    fault = ""
    for offset in range(0, size, _PIECE_BYTES):
        length = min(_PIECE_BYTES, size - offset)
        piece = disk.read(header.array_start + offset, length)
        if piece is None:
            fault = f"{place} cannot be read, or are partly outside the image."
        pieces.append(piece or bytes(length))
    array = b"".join(pieces)
    if size < header.count * header.entry_bytes:
        return array, f"{place} number {header.count} according to the header; only {size} bytes of them are read."
    if not fault and zlib.crc32(array) != header.array_crc:
        fault = f"{place} have a wrong checksum."
    return array, fault


def _remark_on(disk: Disk, copy: _Copy) -> None:
    """Remark on anything unusual about the copy that is used."""
    header = copy.header
    if header.start != header.sector_bytes:
        disk.remark(f"The first copy of the GPT is not usable; the backup at byte {header.start} is used.")
    if copy.faults:
        disk.remark(f"No copy of the GPT is intact; the partitions are those of the copy at byte {header.start}.")
        return
    disk_bytes = (max(header.own_sector, header.other_sector) + 1) * header.sector_bytes
    if disk_bytes != disk.image_bytes // header.sector_bytes * header.sector_bytes:
        disk.remark(f"The GPT was made for a disk of {disk_bytes} bytes; the image has {disk.image_bytes} bytes.")


def _is_odd(entry: bytes, last_sector: int) -> bool:
    """Return whether an entry is in use but refers to sectors that do not exist."""
    kind, _, first, last, *_ = _ENTRY.unpack_from(entry)
    return kind != _UNUSED and not 0 < first <= last <= last_sector


def _partition(number: int, entry: bytes, sector_bytes: int) -> Partition:
    kind, uid, first, last, attributes, name = _ENTRY.unpack_from(entry)
    return Partition(
        number=number,
        start=first * sector_bytes,
        size=(last + 1 - first) * sector_bytes,
        kind=str(UUID(bytes_le=kind)),
        name=name.decode("utf-16-le", errors="replace").partition("\0")[0],
        uid=str(UUID(bytes_le=uid)),
        bootable=bool(attributes & _LEGACY_BIOS_BOOTABLE),
    )
