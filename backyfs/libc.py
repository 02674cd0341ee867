"""Functions of the C library that the os module of Python lacks. Other threads run while a call waits."""

from __future__ import annotations

import ctypes
import os

_PUNCH_HOLE = 0x03  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h


def umount(path: str, flags: int) -> None:
    """Unmount a file system, umount2(2).

    Raises:
        OSError: it is in use, or may not be unmounted.
    """
    _call("umount2", os.fsencode(path), flags)


def syncfs(fd: int) -> None:
    """Write all data of the file system that contains `fd` to its disk, and wait for that.

    Raises:
        OSError: some of it could not be written.
    """
    _call("syncfs", fd)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Turn bytes [offset, offset + length) of a file into a hole.

    Raises:
        OSError: the file system cannot do that.
    """
    _call("fallocate", fd, _PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length))


def set_file_user(uid: int, gid: int) -> None:
    """Let this thread access files as another user, setfsuid(2). Without the privilege, nothing changes."""
    libc = ctypes.CDLL(None)
    libc.setfsgid(ctypes.c_uint32(gid))
    libc.setfsuid(ctypes.c_uint32(uid))


def _call(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
