"""Write, read and sync local files: one `syncfs` for many files, on file systems that can be trusted with it."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from backyfs.host.mounttable import shown_mounts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.model import Buffer

# For larger writes the kernel allocates larger pieces of memory, which a virtual machine may never have touched.
_WRITE_BYTES = 128 << 10
# File systems on which syncfs(2) writes data and waits for the disk. On others (FUSE, network) it may do nothing.
_SYNCFS_FILE_SYSTEMS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs", "zfs", "tmpfs"})


def write_all(fd: int, parts: Sequence[Buffer]) -> int:
    """Write parts to a new file and return their size in bytes."""
    size = sum(memoryview(part).nbytes for part in parts)
    if size <= _WRITE_BYTES and os.writev(fd, parts) == size:
        return size
    os.lseek(fd, 0, os.SEEK_SET)  # a short write hit a limit or a full disk: the next one reports which
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(fd, rest[:_WRITE_BYTES]) :]
    # Makes the kernel start to write the dirty pages, so that the disk is busy before the flush.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return size


def file_size(fd: int, most: int) -> int:
    """Return the size of an open file in bytes.

    Raises:
        OSError: it is not a regular file.
    """
    # lseek takes a third of the time of fstat. It fails on a FIFO, a socket or a terminal. On a directory or another
    # device it returns 0 or more than `most`. Only then fstat has to decide.
    size = os.lseek(fd, 0, os.SEEK_END)
    if not 0 < size <= most and not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    return size


def read_at(fd: int, offset: int, length: int) -> bytes:
    """Return `length` bytes of a file from `offset`, or fewer if it ends earlier. Bytes added meanwhile are ignored."""
    content = os.pread(fd, length, offset)
    if len(content) == length:
        return content
    pieces = [content]
    missing = length - len(content)
    while piece := os.pread(fd, missing, offset + length - missing):  # a network may give less than it was asked for
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def syncfs_can_be_trusted(path: str) -> bool:
    """Return whether `syncfs` waits for the disk on this file system, and reports bytes that did not reach it."""
    return has_trusted_syncfs(os.uname().release, file_system_type(path))


def has_trusted_syncfs(release: str, file_system: str) -> bool:
    """Return the same for the type of a file system and the release of a kernel."""
    # Before Linux 5.8 syncfs did not report write errors, syncfs(2).
    numbers = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    return numbers >= (5, 8) and file_system in _SYNCFS_FILE_SYSTEMS


def file_system_type(path: str) -> str:
    """Return the type of the file system that holds `path`; empty if unknown."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # Subvolumes of btrfs have separate device numbers, so fdatasync is used for them.
    with suppress(OSError):
        return next((mount.file_system_type for mount in shown_mounts() if mount.device == wanted), "")
    return ""
