"""Read a partition table in a master boot record, with its extended partitions. Reads through a `Disk`; no state.

The format has no owner. It is read as Linux reads it (block/partitions/msdos.c), so partitions get the same numbers as
under Linux. Every sector is read at most once, wherever the links between sectors lead.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from backyfs.images.partitions.signatures import has_known_content, is_boot_sector
from backyfs.images.partitions.table import Partition, PartitionTable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.images.partitions.disk import Disk

# boot code (440) | signature of the disk (4) | unused (2) | 4 entries of 16 | 0x55 0xAA
_SECTOR_BYTES = 512  # also on disks with larger sectors
_SIGNATURE_AT = 440
_ENTRIES_AT = 446
_END_AT = 510
_END = b"\x55\xaa"
# 0x80 if active, else 0 (1) | first sector as cylinder, head, sector (3) | type (1) | last sector likewise (3)
# | first sector (4) | sectors (4)
_ENTRY = struct.Struct("<B3xB3xII")

_GPT = 0xEE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
EXTENDED_KINDS = frozenset(f"0x{kind:02x}" for kind in _EXTENDED)
_FIRST_LOGICAL = 5
_MOST_LOGICAL = 256  # partitions, and sectors that list them


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """An entry of the table, in sectors from the beginning of the disk."""

    boot: int  # 0x80: active
    kind: int
    first: int
    sectors: int

    @property
    def is_link(self) -> bool:
        return self.sectors > 0 and self.kind in _EXTENDED

    @property
    def is_data(self) -> bool:
        return self.sectors > 0 and self.kind not in _EXTENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Mbr:
    """A master boot record."""

    signature: int
    entries: tuple[_Entry, ...]  # always four

    @property
    def protects_gpt(self) -> bool:
        """Whether it declares that the disk has a GPT."""
        return any(entry.kind == _GPT for entry in self.entries)

    @property
    def has_partitions(self) -> bool:
        """Whether it lists any partitions itself."""
        return any(entry.sectors and entry.kind != _GPT for entry in self.entries)


def parse_mbr(sector: bytes, image_bytes: int) -> Mbr | None:
    """Return the first 512 bytes of a disk as a master boot record; None if they are not one."""
    if sector[_END_AT:] != _END:
        return None
    entries = _entries(sector, base=0)
    if any(entry.boot not in {0, 0x80} for entry in entries):
        return None  # code or text: a boot sector also ends in 0x55 0xAA
    if is_boot_sector(sector) and not _is_sure(entries, image_bytes):
        return None
    return Mbr(signature=int.from_bytes(sector[_SIGNATURE_AT : _SIGNATURE_AT + 4], "little"), entries=entries)


def read_dos_table(disk: Disk, mbr: Mbr) -> PartitionTable:
    """Return the partitions of a master boot record, exactly as it lists them. Remark on anything unusual."""
    sector_bytes = _sector_bytes(disk, mbr)
    primary = [(number, entry) for number, entry in enumerate(mbr.entries, 1) if entry.sectors and entry.kind != _GPT]
    logical = list(islice(_logical_entries(disk, mbr, sector_bytes), _MOST_LOGICAL + 1))
    if len(logical) > _MOST_LOGICAL:
        disk.remark(f"There are more than {_MOST_LOGICAL} logical partitions; the rest are left out.")
        logical.pop()
    return PartitionTable(
        scheme="dos",
        sector_bytes=sector_bytes,
        partitions=tuple(
            Partition(
                number=number,
                start=entry.first * sector_bytes,
                size=entry.sectors * sector_bytes,
                kind=f"0x{entry.kind:02x}",
                name="",
                uid=f"{mbr.signature:08x}-{number:02x}" if mbr.signature else "",
                bootable=entry.boot == 0x80,
            )
            for number, entry in [*primary, *enumerate(logical, _FIRST_LOGICAL)]
        ),
        remarks=(),
    )


def _entries(sector: bytes, *, base: int) -> tuple[_Entry, ...]:
    """Return the four entries of a sector; they count sectors starting at `base`."""
    return tuple(
        _Entry(boot=boot, kind=kind, first=base + first, sectors=sectors)
        for boot, kind, first, sectors in _ENTRY.iter_unpack(sector[_ENTRIES_AT:_END_AT])
    )


def _is_sure(entries: tuple[_Entry, ...], image_bytes: int) -> bool:
    """Return whether this is a table, although its sector looks like the first one of a file system.

    A disk that was one file system and was partitioned later can keep the old description. A file system has nothing
    in place of the table, or the single entry for the whole disk that mkfs.vfat writes.
    """
    if any(entry.kind == _GPT and entry.first == 1 for entry in entries):
        return True
    used = [entry for entry in entries if entry.sectors]
    return bool(used) and all(
        entry.kind and entry.first and (entry.first + entry.sectors) * _SECTOR_BYTES <= image_bytes for entry in used
    )


# The table does not contain the size of a sector. Linux asks the disk, but an image has no such information. Nearly all
# disks have sectors of 512 bytes. If the partitions would not fit into the image with sectors of 4096, the answer is
# 512. Otherwise look for known content where the partitions would start in both cases. The answer is 4096 only if that
# finds more.
def _sector_bytes(disk: Disk, mbr: Mbr) -> int:
    used = [entry for entry in mbr.entries if entry.sectors and entry.kind != _GPT]
    if any((entry.first + entry.sectors) * 4096 > disk.image_bytes for entry in used):
        return 512
    found = {size: sum(_is_start(disk, entry, size) for entry in used) for size in (512, 4096)}
    return 4096 if found[4096] > found[512] else 512


def _is_start(disk: Disk, entry: _Entry, sector_bytes: int) -> bool:
    """Return whether known content is at the start of this partition, if sectors have this size."""
    start = entry.first * sector_bytes
    if entry.is_link:
        return disk.read(start + _END_AT, len(_END)) == _END
    return has_known_content(disk, start)


def _logical_entries(disk: Disk, mbr: Mbr, sector_bytes: int) -> Iterator[_Entry]:
    """Yield the entries of all logical partitions, in the order in which Linux numbers them."""
    visited: set[int] = set()
    for extended in mbr.entries:
        if extended.is_link:
            yield from _chain(disk, extended, sector_bytes, visited)


def _chain(disk: Disk, extended: _Entry, sector_bytes: int, visited: set[int]) -> Iterator[_Entry]:
    """Yield the entries of the logical partitions of one extended partition.

    The chain starts with a sector like a master boot record. It has one partition, counted from this sector, and a
    link to the next such sector, counted from the start of the extended partition.
    """
    link = extended
    while True:
        place = f"The list of logical partitions at byte {link.first * sector_bytes}"
        if link.first in visited:
            disk.remark(f"{place} was read before: the list is a loop, and ends here.")
            return
        if len(visited) == _MOST_LOGICAL:
            disk.remark(f"{place} is one of more than {_MOST_LOGICAL} and is not read.")
            return
        visited.add(link.first)
        if link.first * sector_bytes >= disk.image_bytes:
            disk.remark(f"{place} is beyond the end of the image; it ends here.")
            return
        sector = disk.read(link.first * sector_bytes, _SECTOR_BYTES)
        if sector is None or sector[_END_AT:] != _END:
            disk.remark(f"{place} {'cannot be read' if sector is None else 'has no signature'}; it ends here.")
            return
        entries = _entries(sector, base=link.first)
        yield from _data_entries(entries, link, extended)
        links = [entry for entry in _entries(sector, base=extended.first) if entry.is_link]
        if not links:
            return
        link = links[0]


def _data_entries(entries: tuple[_Entry, ...], link: _Entry, extended: _Entry) -> Iterator[_Entry]:
    """Yield the entries that are logical partitions: the last two of the four can contain garbage."""
    for index, entry in enumerate(entries):
        if not entry.is_data:
            continue
        end = entry.first + entry.sectors
        if index < 2 or (end <= link.first + link.sectors and end <= extended.first + extended.sectors):
            yield entry
