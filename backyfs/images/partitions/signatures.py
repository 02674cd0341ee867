"""Recognise the content at some place of a disk: a file system, swap space, encrypted data, part of a volume group.

These are the signatures that are common under Linux and Windows: bytes at well-known places, as in `wipefs` and
libblkid. The boot sector is described in Microsoft's "FAT32 File System Specification" 1.03.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.images.partitions.disk import Disk

_SIGNATURES = (
    (0, b"XFSB"),
    (0, b"LUKS\xba\xbe"),
    (0, b"hsqs"),                  # squashfs
    (512, b"LABELONE"),            # a physical volume of LVM; the usual one of the four sectors it may be in
    (1024, b"\x10\x20\xf5\xf2"),   # f2fs
    (1080, b"\x53\xef"),           # ext2, ext3, ext4
    (4086, b"SWAPSPACE2"),         # with pages of 4 KiB
    (4096, b"\xfc\x4e\x2b\xa9"),   # a member of a Linux RAID, metadata 1.2
    (65600, b"_BHRfS_M"),          # btrfs
)
_BOOT_SECTORS = (b"NTFS    ", b"EXFAT   ", b"-FVE-FS-")  # the last one is BitLocker
_FAT_SECTORS = (512, 1024, 2048, 4096)  # bytes
# jump (3) | name of the system (8) | bytes per sector (2) | sectors per cluster (1) | reserved sectors (2)
# | number of FATs (1) | root entries (2) | sectors (2) | media (1)
_BOOT_SECTOR = struct.Struct("<3s8sHBHB4xB")


def is_boot_sector(sector: bytes) -> bool:
    """Return whether a sector is the first one of a FAT, exFAT or NTFS file system."""
    jump, system, sector_bytes, cluster, reserved, fats, media = _BOOT_SECTOR.unpack_from(sector)
    if system in _BOOT_SECTORS:
        return True
    return (
        (jump[0] == 0xE9 or (jump[0] == 0xEB and jump[2] == 0x90))
        and sector_bytes in _FAT_SECTORS
        and cluster.bit_count() == 1
        and reserved > 0
        and fats in {1, 2}
        and (media == 0xF0 or media >= 0xF8)
    )


def has_known_content(disk: Disk, start: int) -> bool:
    """Return whether known content starts at this byte. Damaged content counts as unknown."""
    sector = disk.read(start, 512)
    if sector is None:
        return False
    return is_boot_sector(sector) or any(
        disk.read(start + offset, len(signature)) == signature for offset, signature in _SIGNATURES
    )
