"""What uses a file or block device and would be damaged if it were overwritten.

A file is recognised by device and inode, so it does not matter by which name, mount or mount namespace others use it.
The kernel itself refuses block devices that are mounted or otherwise claimed (O_EXCL, open(2)). This module finds
what the kernel does not refuse: loop devices, and locks such as virtual machines hold.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.host.holders import commands_to_close, holders_of
from backyfs.host.kerneltables import read_lines, read_value
from backyfs.host.loops import loops_on
from backyfs.host.mounttable import list_mounts
from backyfs.host.users import describe, users_of
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.host.mounttable import Mount

_SYS_DEVICES = "/sys/dev/block"
_SYS_CLASS = "/sys/class/block"
_SWAPS = "/proc/swaps"
# struct flock of fcntl(2): type, whence, start, length, pid. QEMU locks single bytes from 100 and from 200 on
# (block/file-posix.c), libvirt's virtlockd byte 0, others the whole file: so the whole file is asked about.
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_LOCKED = (errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Use:
    """That something is in use: by what, and how to end that, each as a part of a sentence."""

    fact: str
    remedy: str


@dataclass(slots=True)
class _Uses:
    """What uses something, and the commands that end that."""

    facts: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def use_of(fd: int) -> Use | None:
    """Return what uses an open file or block device; None: nothing."""
    about = os.fstat(fd)
    mounts = _mounts()
    use = _Uses()
    if stat.S_ISBLK(about.st_mode):
        names = _family(about.st_rdev)
        _look_at_devices(names, mounts, use)
        _look_at_loops(about, {number for name in names if (number := _number(name))}, mounts, use)
    else:
        _look_at_loops(about, (), mounts, use)
        path = _path(fd)
        for mount in mounts:  # by the kernel, as erofs can be, or by a FUSE program
            if mount.source == path:
                use.facts.append(f"it is mounted on {mount.mountpoint}")
                use.commands.append(f"umount {shell_word(mount.mountpoint)}")
    if use.facts:
        commands = ", ".join(f"`{command}`" for command in dict.fromkeys(use.commands))
        return Use(", ".join(use.facts), f"run {commands} first")
    return _lock_of(fd) if _is_locked(fd) else None


def lock(fd: int) -> Use | None:
    """Lock an open file or block device against virtual machines and other restores, until the descriptor is closed.

    Return what has already locked it; None: nothing, or its file system has no locks.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except OSError as error:
        return _lock_of(fd) if error.errno in _LOCKED else None
    return None


def _is_locked(fd: int) -> bool:
    with suppress(OSError):
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
    return False


def _lock_of(fd: int) -> Use:
    users = users_of([_path(fd)])
    who = describe(users) if users else "another program, perhaps a virtual machine"
    return Use(f"{who} has locked it", "shut it down, or restore to another target")


def _look_at_loops(about: os.stat_result, devices: Iterable[int], mounts: list[Mount], use: _Uses) -> None:
    for loop in loops_on(about, frozenset(devices)):
        use.facts.append(f"{loop.device} is backed by it")
        _look_at_devices([os.path.basename(node) for node in sorted(loop.nodes)], mounts, use)
        use.commands.append(f"losetup --detach {loop.device}")


def _look_at_devices(names: Iterable[str], mounts: list[Mount], use: _Uses) -> None:
    """Add what is mounted from devices, swaps on them or stands on them."""
    swaps = _swaps()
    for name in names:
        found = read_value(f"{_SYS_CLASS}/{name}/dev")
        for mount in reversed(mounts):
            if mount.device == found or mount.source == f"/dev/{name}":  # btrfs has numbers of its own
                use.facts.append(f"/dev/{name} is mounted on {mount.mountpoint}")
                use.commands.append(f"umount {shell_word(mount.mountpoint)}")
        if name in swaps:
            use.facts.append(f"/dev/{name} is swap")
            use.commands.append(f"swapoff /dev/{name}")
        holders = holders_of(_listed(f"{_SYS_CLASS}/{name}/holders"))
        use.facts += [f"{holder.what} stands on /dev/{name}" for holder in holders]
        use.commands += commands_to_close(holders, mounts)


def _family(device: int) -> list[str]:
    """Return the kernel's names of a block device and of its partitions, or of the disk that it is a partition of."""
    directory = os.path.realpath(f"{_SYS_DEVICES}/{os.major(device)}:{os.minor(device)}")
    name = os.path.basename(directory)
    if os.path.exists(f"{directory}/partition"):
        return [name, os.path.basename(os.path.dirname(directory))]
    return [name, *(part for part in _listed(directory) if os.path.exists(f"{directory}/{part}/partition"))]


def _number(name: str) -> int | None:
    major, _, minor = read_value(f"{_SYS_CLASS}/{name}/dev").partition(":")
    return os.makedev(int(major), int(minor)) if minor else None


def _swaps() -> set[str]:
    """Return the names of the block devices that are swap, proc(5)."""
    try:
        lines = read_lines(_SWAPS)[1:]
    except OSError:  # no /proc
        return set()
    fields = [line.split() for line in lines]
    return {os.path.basename(os.fsdecode(each[0])) for each in fields if each[1:2] == [b"partition"]}


def _mounts() -> list[Mount]:
    try:
        return list_mounts()
    except OSError:  # no /proc
        return []


def _path(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def _listed(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
