"""What stands on a mount, and taking it away: file systems on loop devices on files of that mount, and so on.

Things are taken away from the top down, one at a time. Whoever is killed in between has taken away what was on
top, and can go on from there: nothing is remembered, all is seen anew in the kernel.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeAlias

from backyfs.errors import MountError
from backyfs.host.holders import commands_to_close, holders_of
from backyfs.host.loops import Loop, is_backed_by_device, list_loops, release
from backyfs.host.mounttable import Mount, is_below, list_mounts, shown_mounts
from backyfs.host.unmounting import MountBusyError, call_umount
from backyfs.host.users import describe, holders_elsewhere, users_of
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable

# A mount is busy for as long as df(1) or a monitoring agent looks at it, and when we look for them, they are gone.
_PASSING_S = 3.0
_PAUSE_S = 0.05

_log = logging.getLogger(__name__)

Thing: TypeAlias = "Mount | Loop"


def standing_on(below: Thing, mounts: list[Mount], loops: list[Loop]) -> list[Thing]:
    """Return what stands on a mount or loop device, uppermost first, without itself. Pure."""
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

    The number of a btrfs is not that of its device, so the name counts as well. That of a FUSE mount is whatever the
    user who made it says, and counts only if that is root.
    """
    return [
        mount
        for mount in mounts
        if mount.device in loop.numbers or (mount.source in loop.nodes and mount.is_made_by(0))
    ]


def things_on(mount: Mount) -> list[Thing]:
    """Return what stands on a mount now, uppermost first.

    Without /proc or /sys that is less than there is: the kernel then says that the mount is busy.
    """
    loops = [
        loop
        for loop in list_loops()
        # A container may have a mount of its own under the same path.
        if not is_below(loop.backing_file, mount.mountpoint) or is_backed_by_device(loop, mount.device)
    ]
    return standing_on(mount, shown_mounts(), loops)


def take_away(thing: Thing, *, lazily: bool = False) -> None:
    """Unmount a mount, or detach a loop device.

    `lazily`: where it is in use, it vanishes from the tree at once, and for good when it is used no more. That is
    for what is dead anyhow.

    Raises:
        MountError: it is in use, or it may not be taken away.
    """
    if isinstance(thing, Mount):
        take_mount_away(thing, lazily=lazily)
        _log.info("%s is unmounted", thing.mountpoint)
    else:
        _detach(thing, lazily=lazily)


def take_mount_away(mount: Mount, *, lazily: bool = False) -> None:
    """Unmount a mount, which has to be the uppermost on its mountpoint.

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
            at = mount.mountpoint
            users = _who_uses(at)
            if users or time.monotonic() > end:
                users = users or f"; `fuser -vm {shell_word(at)}` shows who uses it"
                raise MountError(f"{at} is still mounted: it is busy{users}") from error
            time.sleep(_PAUSE_S)
        else:
            return


def _who_uses(mountpoint: str) -> str:
    """Return the rest of a sentence: who keeps a mount busy, and what to do. It is empty if nobody can be seen."""
    loops = [loop for loop in list_loops() if is_below(loop.backing_file, mountpoint)]
    if loops:
        names = ", ".join(loop.device for loop in loops)
        return f", {names} stands on it; run `losetup --detach` for it, then run this again"
    users = users_of([mountpoint])
    if users:
        return f", used by {describe(users)}; end that, then run this again"
    return ""


def _detach(loop: Loop, *, lazily: bool) -> None:
    if loop.holders:
        holders = holders_of(loop.holders)
        what = ", ".join(holder.what for holder in holders)
        commands = ", ".join(f"`{command}`" for command in commands_to_close(holders, list_mounts()))
        raise MountError(f"{loop.device} is in use by {what}; run {commands}, then run this again")
    if lazily:
        release(loop, patience_s=0)
    elif not release(loop):
        users = [*users_of(loop.nodes), *holders_elsewhere(loop.numbers)]
        who = describe(users) if users else "a process that cannot be seen from here"
        raise MountError(f"{loop.device} is in use by {who}; it is detached once that has ended: then run this again")
    _log.info("%s is detached", loop.device)
