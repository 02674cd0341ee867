"""Find the partitions of an image. Reads only through a given function, and has no state.

The content of the image never raises an error, and the work is bounded. Every returned partition is within the image
and not empty; partitions outside it are listed separately. The remarks of the table describe anything unusual.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from backyfs.images.partitions.disk import Disk
from backyfs.images.partitions.gpt import has_gpt_signature, read_gpt
from backyfs.images.partitions.mbr import EXTENDED_KINDS, parse_mbr, read_dos_table
from backyfs.images.partitions.signatures import has_known_content
from backyfs.images.partitions.table import Partition, PartitionTable, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Partition", "PartitionTable", "describe", "read_partitions"]

_LAST_PRIMARY = 4
_MOST_PARTITIONS = 128  # the default size of a GPT; each partition may get a loop device
_NO_TABLE = PartitionTable(scheme="", sector_bytes=512, partitions=(), remarks=())


def read_partitions(read: Callable[[int, int], bytes], image_bytes: int) -> PartitionTable:
    """Return the partition table of an image; it is empty if the image has none.

    `read(offset, size)` returns `size` bytes of the image. If it raises BackyfsError or OSError, they count as
    unreadable, and a remark says so. For most images it is called only a few times near the beginning. If the
    beginning refers to a GPT that is not intact, it is also called at the end.
    """
    disk = Disk(read, image_bytes)
    table = _find_table(disk) or _NO_TABLE
    found = sorted(table.partitions, key=lambda partition: partition.number)
    listed = found[:_MOST_PARTITIONS]
    if len(found) > len(listed):
        disk.remark(
            f"There are {len(found)} partitions; only the {_MOST_PARTITIONS} with the lowest numbers are listed."
        )
    partitions = tuple(_placed(disk, listed))
    overlapping = _find_overlaps(disk, partitions)
    outside = tuple(each for each in listed if each.size > 0 and each.start >= disk.image_bytes)
    return replace(
        table,
        partitions=partitions,
        remarks=disk.remarks,
        outside=outside,
        overlapping=overlapping,
        left_out=len(found) - len(listed),
    )


def _find_table(disk: Disk) -> PartitionTable | None:
    """Return the table that is in effect, exactly as the image has it."""
    sector = disk.read(0, 512)
    mbr = None if sector is None else parse_mbr(sector, disk.image_bytes)
    protects_gpt = mbr is not None and mbr.protects_gpt
    if mbr is not None and mbr.has_partitions and not protects_gpt:
        if has_gpt_signature(disk):  # left by a tool that does not know GPT; Linux also ignores it
            disk.remark("There is also an unused GPT: the MBR does not refer to it and has partitions.")
        return read_dos_table(disk, mbr)
    if sector is not None and not protects_gpt and has_known_content(disk, 0):
        return None  # one file system on the whole disk; a GPT after it is a leftover of an earlier use
    gpt = read_gpt(disk)
    if gpt is not None:
        if sector is not None and not protects_gpt:
            disk.remark("The GPT has no protective MBR.")
        if mbr is not None and mbr.has_partitions:
            disk.remark("The MBR also has partitions (it is hybrid); those of the GPT are used.")
        return gpt
    if protects_gpt:
        disk.remark("The MBR refers to a GPT, but none was found.")
    if mbr is not None and (mbr.has_partitions or not protects_gpt):
        return read_dos_table(disk, mbr)
    return None


def _placed(disk: Disk, partitions: Iterable[Partition]) -> Iterator[Partition]:
    """Yield the partitions that are within the image; cut one that crosses its end."""
    for partition in partitions:
        name = f"Partition {partition.number}"
        if partition.size <= 0:
            disk.remark(f"{name} ends before it starts; it is left out.")
        elif partition.start >= disk.image_bytes:
            disk.remark(f"{name} starts at byte {partition.start}, beyond the end of the image; it is left out.")
        elif partition.end > disk.image_bytes:
            disk.remark(f"{name} ends at byte {partition.end}, beyond the end of the image; it is cut there.")
            size = disk.image_bytes - partition.start
            yield replace(partition, size=size, missing=partition.size - size)
        else:
            yield partition


def _find_overlaps(disk: Disk, partitions: tuple[Partition, ...]) -> dict[int, int]:
    """Return partitions that share bytes, as the table describes, and add a remark on each.

    Logical partitions are expected to be inside an extended one.
    """
    found = dict(_overlaps_among([each for each in partitions if each.kind not in EXTENDED_KINDS]))
    primary = [each for each in partitions if each.number <= _LAST_PRIMARY]
    if any(each.kind in EXTENDED_KINDS for each in primary):
        for number, other in _overlaps_among(primary):
            found.setdefault(number, other)
    for number, other in found.items():
        disk.remark(f"Partition {number} overlaps partition {other}.")
    return found


def _overlaps_among(partitions: list[Partition]) -> Iterator[tuple[int, int]]:
    """Yield the number of each partition that an earlier one overlaps, and the number of the earlier one."""
    furthest: Partition | None = None
    for partition in sorted(partitions, key=lambda each: (each.start, each.number)):
        if furthest is not None and partition.start < furthest.end:
            yield partition.number, furthest.number
        if furthest is None or partition.end > furthest.end:
            furthest = partition
