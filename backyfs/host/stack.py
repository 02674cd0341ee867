"""Find and remove everything that is stacked on a mount: file systems on loop devices on its files, and so on.

Things are removed one at a time from the top down. A process that is killed in between can simply be run again: it
keeps no state and reads everything from the kernel.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeAlias

from backyfs.errors import MountError
from backyfs.host.holders import commands_to_close, holders_of
from backyfs.host.loops import Loop, is_backed_by_device, list_loops, release
from backyfs.host.mounttable import Mount, is_below, list_mounts, shown_mounts
from backyfs.host.unmounting import BUSY, MountBusyError, call_umount
from backyfs.host.users import describe, users_in_other_namespaces, users_of
from backyfs.remedies import Remedy
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable

# A mount is busy while df(1) or a monitoring agent looks at it, and they are gone when we search for them.
_PASSING_S = 3.0
_PAUSE_S = 0.05

_log = logging.getLogger(__name__)

Thing: TypeAlias = "Mount | Loop"


def stacked_on(below: Thing, mounts: list[Mount], loops: list[Loop]) -> list[Thing]:
    """Return everything stacked on a mount or loop device, uppermost first, without itself. Pure."""
    found: list[Thing] = []
    _collect(below, mounts, loops, found)
    return found[:-1]


def _collect(below: Thing, mounts: list[Mount], loops: list[Loop], found: list[Thing]) -> None:
    for above in _directly_on(below, mounts, loops):
        if above not in found and above != below:
            _collect(above, mounts, loops, found)
    if below not in found:
        found.append(below)


def _directly_on(below: Thing, mounts: list[Mount], loops: list[Loop]) -> list[Thing]:
    if isinstance(below, Loop):
        return list(reversed(mounts_of(below, mounts)))
    return [
        *(mount for mount in reversed(mounts) if mount.parent_id == below.mount_id),
        *(loop for loop in loops if is_below(loop.backing_file, below.mountpoint)),
    ]


def mounts_of(loop: Loop, mounts: Iterable[Mount]) -> list[Mount]:
    """Return the mounts of the file systems on a loop device. Pure.

    The number of a btrfs is not the number of its device, so its source is compared as well. Any user can choose the
    source of a FUSE mount, so that counts only if root made the mount.
    """
    return [
        mount
        for mount in mounts
        if mount.device in loop.numbers or (mount.source in loop.nodes and mount.is_made_by(0))
    ]


def stack_on(mount: Mount) -> list[Thing]:
    """Return everything that is now stacked on a mount, uppermost first.

    Without /proc or /sys the list is incomplete; the kernel then reports that the mount is busy.
    """
    loops = [
        loop
        for loop in list_loops()
        # A container may have another mount under the same path.
        if not is_below(loop.backing_file, mount.mountpoint) or is_backed_by_device(loop, mount.device)
    ]
    return stacked_on(mount, shown_mounts(), loops)


def tear_down(thing: Thing, *, lazily: bool = False) -> None:
    """Unmount a mount, or detach a loop device.

    `lazily`: if it is in use, remove it from the tree immediately, and completely once it is unused. Only for dead
    mounts, whose users can do nothing with them.

    Raises:
        MountError: it is in use, or may not be removed.
    """
    if isinstance(thing, Mount):
        unmount_top(thing, lazily=lazily)
        _log.info("%s is unmounted", thing.mountpoint)
    else:
        _detach(thing, lazily=lazily)


def unmount_top(mount: Mount, *, lazily: bool = False) -> None:
    """Unmount a mount, which must be the uppermost on its mountpoint.

    Raises:
        MountError: it is in use, or it may not be unmounted.
    """
    end = time.monotonic() + _PASSING_S
    while True:
        try:
            call_umount(mount)
        except MountBusyError as error:
            if lazily:
                call_umount(mount, lazily=True)
                return
            found = _busy(mount.mountpoint)
            if found is not None:
                raise found from error
            if time.monotonic() > end:
                error.advise(Remedy(f"`fuser -vm {shell_word(mount.mountpoint)}` lists its users"))
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def _busy(mountpoint: str) -> MountError | None:
    """Return an error that lists the users of a mount, and what to do; None if no users are visible."""
    loops = [loop for loop in list_loops() if is_below(loop.backing_file, mountpoint)]
    if loops:
        names = ", ".join(loop.device for loop in loops)
        return MountError(
            f"{BUSY}, {names} is stacked on it",
            subject=mountpoint,
            remedy="run `losetup --detach` for it, then run this again",
        )
    users = users_of([mountpoint])
    if users:
        return MountError(
            f"{BUSY}, used by {describe(users)}", subject=mountpoint, remedy="end that, then run this again"
        )
    return None


def _detach(loop: Loop, *, lazily: bool) -> None:
    if loop.holders:
        holders = holders_of(loop.holders)
        what = ", ".join(holder.what for holder in holders)
        commands = ", ".join(f"`{command}`" for command in commands_to_close(holders, list_mounts()))
        raise MountError(f"is in use by {what}", subject=loop.device, remedy=f"run {commands}, then run this again")
    if lazily:
        release(loop, patience_s=0)
    elif not release(loop):
        users = [*users_of(loop.nodes), *users_in_other_namespaces(loop.numbers)]
        who = describe(users) if users else "a process that is not visible here"
        raise MountError(
            f"is in use by {who}",
            subject=loop.device,
            remedy="it is detached once that has ended; then run this again",
        )
    _log.info("%s is detached", loop.device)
