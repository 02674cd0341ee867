"""The call that unmounts. umount(8) is not used, because it accesses the file system first, which may hang.

Root calls the kernel. Other users call fusermount3(1), which may unmount their own mounts.

A mountpoint may be in a directory of another user, who can replace a part of its path by a link. So its directory is
opened one name at a time, never through a link, and the mount found there must be the expected one.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.kerneltables import shows_mounts
from backyfs.host.mounttable import mount_id_of
from backyfs.host.programs import reason_of, run
from backyfs.host.writers import opened_parent
from backyfs.libc import umount

if TYPE_CHECKING:
    from backyfs.host.mounttable import Mount

_DETACH = 2    # MNT_DETACH of sys/mount.h: out of the tree immediately, gone once it is unused
_NOFOLLOW = 8  # UMOUNT_NOFOLLOW: a mountpoint is not a link
_PATIENCE_S = 30.0

BUSY = "is still mounted: it is busy"


class MountBusyError(MountError):
    """The file system is in use."""


def call_umount(mount: Mount, *, lazily: bool = False) -> None:
    """Unmount a mount, which must be the uppermost on its mountpoint.

    Raises:
        MountBusyError: it is in use, unless `lazily`.
        MountError: it may not be unmounted, or another mount or none is there now.
    """
    if os.geteuid() == 0:
        _unmount_as_root(mount, _NOFOLLOW | (_DETACH if lazily else 0))
    else:
        _call_fusermount(mount.mountpoint, *(("-z",) if lazily else ()))


def _unmount_as_root(mount: Mount, flags: int) -> None:
    if not shows_mounts():  # then mounts have no numbers either, only names
        _call_kernel(mount, mount.mountpoint, flags)
        return
    try:
        with opened_parent(mount.mountpoint) as (directory, name):
            _require_same(mount, directory, name)
            _call_kernel(mount, f"/proc/self/fd/{directory}/{name}", flags)
    except OSError as error:
        raise MountError(
            f"was changed while it was being unmounted ({error.strerror})",
            subject=mount.mountpoint,
            remedy="look at it, then run this again",
        ) from error


def _require_same(mount: Mount, directory: int, name: str) -> None:
    """Make sure that a name leads to a mount. Do not keep it open, which would keep the mount busy.

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
        raise MountError(
            "is now something else", subject=mount.mountpoint, remedy="look at it, then run this again"
        )


def _call_kernel(mount: Mount, path: str, flags: int) -> None:
    try:
        umount(path, flags)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise MountBusyError(BUSY, subject=mount.mountpoint) from error
        raise MountError(f"is still mounted: {error.strerror}", subject=mount.mountpoint) from error


def _call_fusermount(mountpoint: str, *options: str) -> None:
    done = run("fusermount3", "-u", *options, "--", mountpoint, timeout_s=_PATIENCE_S)
    if done.returncode == 0:
        return
    if "busy" in done.stderr:
        raise MountBusyError(BUSY, subject=mountpoint)
    raise MountError(
        f"is still mounted: {reason_of(done)}",
        subject=mountpoint,
        remedy="users can unmount only their own mounts, root can unmount any",
    )
