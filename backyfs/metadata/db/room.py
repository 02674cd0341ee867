"""Check for space on the file system of an SQLite file, and keep a reserve for the commands that free space.

The reserve is a file next to the database with nothing but allocated space. `rm`, `forget` and `cleanup` delete it when
the disk is full, so that they can write to the database at all. The next command that changes something creates it
again once there is enough space. A command killed in between leaves either free space or the file, and both are fine.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress

from backyfs.files import open_file

RESERVE_SUFFIX = "-reserve"
_LEAST_BYTES = 256 << 10  # the database needs about 100 KiB for each step of a small repository
_MOST_BYTES = 4 << 20     # removing a version of 10 TiB changes about 1,000 pages of the file in one step
_SHARE = 64               # at most this fraction of a file system, so a small one gets a small reserve
_AMPLE = 2                # create a reserve only if this many times its size is free
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def lacks_room(path: str, size_bytes: int) -> bool:
    """Return whether `size_bytes` cannot be allocated next to a file: the disk is full, or a quota or limit is reached.

    This tries it with an unnamed file, because `statvfs` knows neither quotas nor limits.
    """
    directory = os.path.dirname(os.path.abspath(path))
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size_bytes)
        finally:
            os.close(fd)
    except OSError as error:
        return error.errno in _NO_ROOM
    return False


def keep_reserve(path: str) -> None:
    """Create the reserve of a database file if it is missing and there is enough space. Never fails."""
    reserve = path + RESERVE_SUFFIX
    try:
        system = os.statvfs(path)
        size = min(_MOST_BYTES, max(_LEAST_BYTES, system.f_blocks * system.f_frsize // _SHARE))
        if os.path.lexists(reserve) and os.lstat(reserve).st_size:
            return  # it has a size, so it was allocated
        if system.f_bavail * system.f_frsize < _AMPLE * size:
            return
        fd = open_file(reserve, os.O_WRONLY | os.O_NOFOLLOW)
    except OSError as error:
        _log.debug("there is no reserve %s: %s", reserve, error)
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        _log.debug("there is no reserve %s: %s", reserve, error)
        with suppress(OSError):
            os.unlink(reserve)
    finally:
        os.close(fd)


def use_reserve(path: str) -> None:
    """Delete the reserve of a database file if its file system has less free space than the reserve takes."""
    reserve = path + RESERVE_SUFFIX
    with suppress(OSError):  # it does not exist or cannot be deleted
        if lacks_room(path, max(os.lstat(reserve).st_size, 1)):
            os.unlink(reserve)
            _log.warning("the file system of %s is full; deleting the reserve %s to free space", path, reserve)
