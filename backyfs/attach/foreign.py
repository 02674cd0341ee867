"""Journals of other systems, which Linux does not replay when it mounts their file systems read-only.

Sources: layout.h and logfile.h of ntfs-3g ($LogFile), jfs_superblock.h of jfsutils, and Apple's Technical Note 1150 for
HFS Plus. The content of an image never raises an error here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backyfs.attach.superblocks import Read

_JFS_SUPERBLOCK = 0x8000
_JFS_STATE = 40
_HFS_HEADER = 1024
_HFS_UNMOUNTED = 1 << 8
_HFS_JOURNALED = 1 << 13
_NTFS_LOG_RECORD = 2    # of the master file table: $LogFile
_NTFS_DATA = 0x80       # type of an attribute
_NTFS_NO_CLIENT = 0xFFFF
_NTFS_IS_CLEAN = 2      # flag of a restart area
_MOST_RECORD_BYTES = 64 << 10


def has_open_journal(kind: str, read: Read) -> bool:
    """Return whether a file system was in use, so its journal may contain data that is nowhere else.

    Raises:
        OSError: `read` failed.
    """
    if kind == "ntfs":
        return _has_open_ntfs_log(read)
    if kind == "jfs":
        block = read(_JFS_SUPERBLOCK, 64)
        return block.startswith(b"JFS1") and _little(block, _JFS_STATE, 4) != 0
    if kind == "hfsplus":
        attributes = int.from_bytes(read(_HFS_HEADER + 4, 4), "big")
        return bool(attributes & _HFS_JOURNALED) and not attributes & _HFS_UNMOUNTED
    return False


def _has_open_ntfs_log(read: Read) -> bool:
    boot = read(0, 512)
    if len(boot) < 512:
        return False
    cluster = _little(boot, 0x0B, 2) * boot[0x0D]
    per_record = int.from_bytes(boot[0x40:0x41], "little", signed=True)  # negative: a power of two, in bytes
    record_bytes = per_record * cluster if per_record > 0 else 1 << -per_record
    if not 0 < record_bytes <= _MOST_RECORD_BYTES:
        return False
    start = _little(boot, 0x30, 8) * cluster + _NTFS_LOG_RECORD * record_bytes
    first = _first_cluster_of_data(read(start, record_bytes))
    if first is None:
        return False
    # There are two restart pages, and the newer one counts. The first is as new as the second, or almost.
    page = read(first * cluster, 4096)
    area = _little(page, 0x18, 2)
    if not page.startswith(b"RSTR") or area + 16 > len(page):
        return False  # never used, or emptied
    is_clean = _little(page, area + 14, 2) & _NTFS_IS_CLEAN
    return _little(page, area + 12, 2) != _NTFS_NO_CLIENT and not is_clean


def _first_cluster_of_data(record: bytes) -> int | None:
    """Return the first cluster of the data of a file that are outside its record; None if there are none."""
    at = _little(record, 0x14, 2)
    while record.startswith(b"FILE") and at + 0x22 <= len(record):
        kind, length = _little(record, at, 4), _little(record, at + 4, 4)
        if kind == _NTFS_DATA and record[at + 8]:
            run = at + _little(record, at + 0x20, 2)
            if run >= len(record):
                return None
            count_bytes, cluster_bytes = record[run] & 15, record[run] >> 4
            return _little(record, run + 1 + count_bytes, cluster_bytes)
        if length == 0:
            return None
        at += length
    return None


def _little(block: bytes, offset: int, size: int) -> int:
    return int.from_bytes(block[offset : offset + size], "little")
