"""The call that unmounts. umount(8) is not used: it asks the file system first, and one that hangs never answers.

Root calls the kernel, others fusermount3(1), which may unmount what they have mounted.
"""

from __future__ import annotations

import ctypes
import errno
import os

from backyfs.errors import MountError
from backyfs.host.programs import reason_of, run

_DETACH = 2    # MNT_DETACH of sys/mount.h: out of the tree at once, gone for good when nobody uses it any more
_NOFOLLOW = 8  # UMOUNT_NOFOLLOW: a mountpoint is no link
_PATIENCE_S = 30.0


class MountBusyError(MountError):
    """Somebody uses the file system."""


def call_umount(mountpoint: str, *, lazily: bool = False) -> None:
    """Unmount what is uppermost on a mountpoint.

    Raises:
        MountBusyError: it is in use. Not if `lazily`.
        MountError: it may not be unmounted, or nothing is mounted there.
    """
    if os.geteuid() == 0:
        _call_kernel(mountpoint, _NOFOLLOW | (_DETACH if lazily else 0))
    else:
        _call_fusermount(mountpoint, *(("-z",) if lazily else ()))


def _call_kernel(mountpoint: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # Python has no os.umount
    if libc.umount2(os.fsencode(mountpoint), flags) != 0:
        number = ctypes.get_errno()
        error = MountBusyError if number == errno.EBUSY else MountError
        raise error(f"{mountpoint} is still mounted: {os.strerror(number)}")


def _call_fusermount(mountpoint: str, *options: str) -> None:
    done = run("fusermount3", "-u", *options, "--", mountpoint, timeout_s=_PATIENCE_S)
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise MountBusyError(f"{mountpoint} is still mounted: it is busy")
    raise MountError(
        f"{mountpoint} is still mounted: {reason_of(done)}; a user can unmount what is his, root everything"
    )
