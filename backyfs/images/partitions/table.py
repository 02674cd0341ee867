"""A partition table as a value, and as text for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.text import human_size

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMES = {"gpt": "GPT", "dos": "MBR (DOS)"}

# Names as in fdisk of util-linux and the Discoverable Partitions Specification.
_KINDS = {
    "024dee41-33e7-11d3-9d69-0008c781f39f": "MBR partition scheme",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux server data",
    "44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
    "48465300-0000-11aa-aa11-00306543ecac": "Apple HFS/HFS+",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux variable data",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "4fbd7e29-9d25-41b8-afd0-062c0ceff05d": "Ceph OSD",
    "516e7cb4-6ecf-11d6-8ff8-00022d09712b": "FreeBSD data",
    "516e7cb5-6ecf-11d6-8ff8-00022d09712b": "FreeBSD swap",
    "516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Microsoft LDM metadata",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "Linux root (ARM)",
    "6a898cc3-1dd2-11b2-99a6-080020736631": "Solaris /usr or ZFS",
    "7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": "Linux temporary data",
    "7ffec5c9-2d00-49b7-8941-3ea10a5586b7": "Linux dm-crypt",
    "824cc7a0-36a8-11e3-890a-952519ad3f61": "OpenBSD data",
    "83bd6b9d-7f41-11dc-be0b-001560b84f0f": "FreeBSD boot",
    "8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
    "8da63339-0007-60c0-c436-083ac8230908": "Linux reserved",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC PReP boot",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "aa31e02a-400f-11db-9590-000c2911d1b8": "VMware VMFS",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "Microsoft LDM data",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM-64)",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI System",
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": "LUKS",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery environment",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Microsoft Storage Spaces",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "0x00": "Empty",
    "0x01": "FAT12",
    "0x04": "FAT16 below 32M",
    "0x05": "Extended",
    "0x06": "FAT16",
    "0x07": "NTFS or exFAT",
    "0x0b": "FAT32",
    "0x0c": "FAT32 (LBA)",
    "0x0e": "FAT16 (LBA)",
    "0x0f": "Extended (LBA)",
    "0x11": "Hidden FAT12",
    "0x14": "Hidden FAT16 below 32M",
    "0x16": "Hidden FAT16",
    "0x17": "Hidden NTFS",
    "0x1b": "Hidden FAT32",
    "0x1c": "Hidden FAT32 (LBA)",
    "0x1e": "Hidden FAT16 (LBA)",
    "0x27": "Windows recovery environment",
    "0x41": "PowerPC PReP boot",
    "0x42": "Microsoft dynamic disk",
    "0x82": "Linux swap",
    "0x83": "Linux filesystem",
    "0x85": "Linux extended",
    "0x8e": "Linux LVM",
    "0xa5": "FreeBSD",
    "0xa6": "OpenBSD",
    "0xa9": "NetBSD",
    "0xaf": "Apple HFS/HFS+",
    "0xbf": "Solaris",
    "0xda": "Data without file system",
    "0xde": "Dell Utility",
    "0xe8": "LUKS",
    "0xea": "Linux extended boot",
    "0xee": "GPT",
    "0xef": "EFI System",
    "0xfb": "VMware VMFS",
    "0xfd": "Linux RAID",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Bytes [start, start + size) of an image, as a partition table describes them."""

    number: int      # as Linux counts: entry of a GPT from 1; in an MBR 1 to 4, logical ones from 5
    start: int       # bytes
    size: int        # bytes
    kind: str        # the type: in a GPT a GUID in lower case, in an MBR like `0x83`
    name: str        # the label in a GPT, unchanged: anything except NUL
    uid: str         # Linux calls it PARTUUID; '' if there is none
    bootable: bool   # active in an MBR, bootable by a legacy BIOS in a GPT
    missing: int = 0  # further bytes that the table gives it, past the end of the image

    @property
    def end(self) -> int:
        """The first byte after the partition."""
        return self.start + self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionTable:
    """The partitions of an image. They can overlap; each is within the image and not empty."""

    scheme: str                        # 'gpt', 'dos', or '' if there is no table
    sector_bytes: int                  # 512 or 4096; 512 if there is no table
    partitions: tuple[Partition, ...]  # by number
    remarks: tuple[str, ...]           # on anything unusual: sentences in English
    outside: tuple[Partition, ...] = ()  # partitions past the end of the image, as in the table, by number
    overlapping: Mapping[int, int] = field(default_factory=dict)  # number -> number of an earlier one that overlaps it
    left_out: int = 0                    # how many further partitions were dropped


def describe(table: PartitionTable) -> str:
    """Return a table as text: lines of printable characters, whatever its labels contain."""
    lines = [*_head(table), *_rows(table.partitions)]
    if table.remarks:
        lines += ["", "Remarks:", *(f"  {_printable(remark)}" for remark in table.remarks)]
    return "\n".join(lines) + "\n"


def _head(table: PartitionTable) -> list[str]:
    if not table.scheme:
        return ["There is no partition table."]
    lines = [f"Partition table: {_SCHEMES.get(table.scheme, table.scheme)}", f"Sector size: {table.sector_bytes} bytes"]
    if not table.partitions:
        return [*lines, "There are no partitions."]
    return [*lines, "Start and end are in bytes; the end is the first byte after the partition.", ""]


def _rows(partitions: tuple[Partition, ...]) -> list[str]:
    """Return the partitions as lines in columns, after a line of headings; no lines if there are none."""
    if not partitions:
        return []
    rows = [("Number", "Start", "End", "Bytes", "Size", "Boot", "Type", "Uid", "Name")]
    rows += [
        (
            str(partition.number),
            str(partition.start),
            str(partition.end),
            str(partition.size),
            human_size(partition.size),
            "yes" if partition.bootable else "no",
            f"{partition.kind} {_KINDS.get(partition.kind, 'unknown')}",
            partition.uid or "-",
            # The last column, because its width on a terminal is unknown. Quotes show where it ends.
            f'"{_printable(partition.name, quoted=True)}"' if partition.name else "-",
        )
        for partition in partitions
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [_aligned(row, widths) for row in rows]


def _aligned(row: tuple[str, ...], widths: list[int]) -> str:
    """Return the cells of a row in columns, numbers aligned to the right, the others to the left."""
    numbers = [cell.rjust(width) for cell, width in zip(row[:5], widths[:5], strict=True)]
    others = [cell.ljust(width) for cell, width in zip(row[5:], widths[5:], strict=True)]
    return "  ".join([*numbers, *others]).rstrip()


def _printable(text: str, *, quoted: bool = False) -> str:
    r"""Return text that cannot steer a terminal: unprintable characters become `\n`, `\x1b`, `\u202e`.

    In quotes, a quote and a backslash become `\"` and `\\`, so the text is unambiguous.
    """
    if quoted:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
