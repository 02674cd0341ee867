"""Facts from superblocks that blkid does not print: the size of a file system, and the state of its journal.

Sources: fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h and fs/squashfs/squashfs_fs.h of
Linux, and the boot sector of NTFS. The content of an image never raises an error here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    Read = Callable[[int, int], bytes]  # (offset, size); fewer bytes at the end

_EXT = frozenset({"ext2", "ext3", "ext4"})
_EXT_SUPERBLOCK = 1024
_EXT_INCOMPAT = 0x60
_EXT_RECOVER = 0x4
_EXT_64BIT = 0x80
_BTRFS_SUPERBLOCK = 64 << 10
_MOST_SHIFT = 16  # of a block size: more is impossible


def declared_bytes(kind: str, read: Read) -> int | None:
    """Return the size that a file system of a type of blkid declares; None if unknown.

    Raises:
        OSError: `read` failed.
    """
    if kind in _EXT:
        block = read(_EXT_SUPERBLOCK, 512)
        shift = _little(block, 0x18, 4)
        count = _little(block, 0x4, 4)
        if _little(block, _EXT_INCOMPAT, 4) & _EXT_64BIT:
            count |= _little(block, 0x150, 4) << 32
        return count * 1024 << shift if shift <= _MOST_SHIFT else None
    if kind == "xfs":
        block = read(0, 512)
        return int.from_bytes(block[4:8], "big") * int.from_bytes(block[8:16], "big")
    if kind == "btrfs":
        block = read(_BTRFS_SUPERBLOCK, 512)
        has_one_device = _little(block, 0x88, 8) == 1
        return _little(block, 0x70, 8) if has_one_device else None
    if kind == "ntfs":
        block = read(0, 512)
        return _little(block, 0x0B, 2) * _little(block, 0x28, 8)
    if kind == "squashfs":
        return _little(read(0, 96), 40, 8)
    return None


def needs_replay(kind: str, read: Read) -> bool:
    """Return whether the journal of a file system may contain data that is nowhere else. True if unknown.

    Raises:
        OSError: `read` failed.
    """
    return kind not in _EXT or bool(_little(read(_EXT_SUPERBLOCK, 512), _EXT_INCOMPAT, 4) & _EXT_RECOVER)


def has_external_log(kind: str, read: Read) -> bool:
    """Return whether a file system is an xfs whose log is on another device. It cannot be mounted without its log.

    Raises:
        OSError: `read` failed.
    """
    return kind == "xfs" and read(0, 512)[48:56] == bytes(8)


def _little(block: bytes, offset: int, size: int) -> int:
    return int.from_bytes(block[offset : offset + size], "little")
