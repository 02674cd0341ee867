"""Room on the file system of an SQLite file: whether there is any, and a reserve for the commands that make some.

The reserve is a file beside the database that holds nothing but allocated space. `rm`, `forget` and `cleanup` delete it
when the disk is full, so that they can write to the database at all. The next command that changes something makes it
again, once there is ample room. Killed in between, a command leaves the space free or the file there: both are fine.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress

from backyfs.files import open_file

RESERVE_SUFFIX = "-reserve"
_LEAST_BYTES = 256 << 10  # the database needs some 100 KiB for each step of a small repository
_MOST_BYTES = 4 << 20     # removing a version of 10 TiB changes some 1,000 pages of the file at once
_SHARE = 64               # of a file system; a small one gets a small reserve
_AMPLE = 2                # times its size has to be free before a reserve is made
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_log = logging.getLogger(__name__)


def lacks_room(path: str, size_bytes: int) -> bool:
    """Return whether so much cannot be allocated beside a file: the disk is full, or a quota or limit is reached.

    It is tried with a file that has no name: what `statvfs` says knows neither quotas nor limits.
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
    """Make the reserve of a database file if it is missing and there is ample room. Never fails."""
    reserve = path + RESERVE_SUFFIX
    try:
        system = os.statvfs(path)
        size = min(_MOST_BYTES, max(_LEAST_BYTES, system.f_blocks * system.f_frsize // _SHARE))
        if os.path.lexists(reserve) and os.lstat(reserve).st_size:
            return  # allocated before it got its size
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
    """Delete the reserve of a database file if its file system has no more room than that."""
    reserve = path + RESERVE_SUFFIX
    with suppress(OSError):  # there is none, or it cannot be deleted
        if lacks_room(path, max(os.lstat(reserve).st_size, 1)):
            os.unlink(reserve)
            _log.warning("the file system of %s is full; using the reserve %s to make room", path, reserve)
