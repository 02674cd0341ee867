"""The call that unmounts. umount(8) is not used: it asks the file system first, and one that hangs never answers.

Root calls the kernel, others fusermount3(1), which may unmount what they have mounted.

A mountpoint can lie in a directory of another user, who can put a link in the place of a part of its path. So the
directory that it lies in is opened one name at a time, never through a link, and what is mounted there has to be the
mount that was meant.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.kerneltables import shows_mounts
from backyfs.host.mounttable import mount_id_of
from backyfs.host.programs import reason_of, run
from backyfs.host.writers import opened_parent

if TYPE_CHECKING:
    from backyfs.host.mounttable import Mount

_DETACH = 2    # MNT_DETACH of sys/mount.h: out of the tree at once, gone for good when nobody uses it any more
_NOFOLLOW = 8  # UMOUNT_NOFOLLOW: a mountpoint is no link
_PATIENCE_S = 30.0


class MountBusyError(MountError):
    """Somebody uses the file system."""


def call_umount(mount: Mount, *, lazily: bool = False) -> None:
    """Unmount a mount, which has to be the uppermost on its mountpoint.

    Raises:
        MountBusyError: it is in use. Not if `lazily`.
        MountError: it may not be unmounted, or something else is mounted there by now, or nothing.
    """
    if os.geteuid() == 0:
        _unmount_as_root(mount, _NOFOLLOW | (_DETACH if lazily else 0))
    else:
        _call_fusermount(mount.mountpoint, *(("-z",) if lazily else ()))


def _unmount_as_root(mount: Mount, flags: int) -> None:
    if not shows_mounts():  # nor what is mounted where: there are only names
        _call_kernel(mount, mount.mountpoint, flags)
        return
    try:
        with opened_parent(mount.mountpoint) as (directory, name):
            _require_same(mount, directory, name)
            _call_kernel(mount, f"/proc/self/fd/{directory}/{name}", flags)
    except OSError as error:
        raise MountError(
            f"{mount.mountpoint} was changed while it was being unmounted ({error.strerror}); look at it, then run "
            "this again"
        ) from error


def _require_same(mount: Mount, directory: int, name: str) -> None:
    """Make sure that a name leads to a mount. It is not kept open, which would keep the mount busy.

    Raises:
        OSError: it leads nowhere.
        MountError: it leads to something else.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        found = mount_id_of(fd)
    finally:
        os.close(fd)
    if found != mount.mount_id:
        raise MountError(f"something else is at {mount.mountpoint} by now; look at it, then run this again")


def _call_kernel(mount: Mount, path: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # Python has no os.umount
    if libc.umount2(os.fsencode(path), flags) != 0:
        number = ctypes.get_errno()
        error = MountBusyError if number == errno.EBUSY else MountError
        raise error(f"{mount.mountpoint} is still mounted: {os.strerror(number)}")


def _call_fusermount(mountpoint: str, *options: str) -> None:
    done = run("fusermount3", "-u", *options, "--", mountpoint, timeout_s=_PATIENCE_S)
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise MountBusyError(f"{mountpoint} is still mounted: it is busy")
    raise MountError(
        f"{mountpoint} is still mounted: {reason_of(done)}; a user can unmount what is his, root everything"
    )
