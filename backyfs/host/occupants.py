"""Find users of a file or block device that would be damaged if it were overwritten.

Files are compared by device and inode, so the name, mount or mount namespace that others use does not matter. The
kernel itself refuses block devices that are mounted or otherwise claimed (O_EXCL, open(2)). This module finds the users
that the kernel does not refuse: loop devices, and programs with locks, such as virtual machines.
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
from backyfs.host.kerneltables import list_entries, read_lines, read_value
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
# struct flock of fcntl(2): type, whence, start, length, pid. QEMU locks single bytes starting at 100 and at 200
# (block/file-posix.c), libvirt's virtlockd byte 0, and other programs the whole file. So test the whole file.
_FLOCK = struct.Struct("@hhqqi4x")
_WHOLE_FILE = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_LOCKED = (errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Use:
    """The users of something, and how to end their use, each as part of a sentence."""

    fact: str
    remedy: str


@dataclass(slots=True)
class _Uses:
    """The users of something, and the commands that end their use."""

    facts: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def use_of(fd: int) -> Use | None:
    """Return the users of an open file or block device; None: none."""
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

    Return the process that already has it locked; None: there is none, or its file system has no locks.
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
    """Add the mounts, swap space and stacked devices of some devices."""
    swaps = _swaps()
    for name in names:
        found = read_value(f"{_SYS_CLASS}/{name}/dev")
        for mount in reversed(mounts):
            if mount.device == found or mount.source == f"/dev/{name}":  # btrfs uses other device numbers
                use.facts.append(f"/dev/{name} is mounted on {mount.mountpoint}")
                use.commands.append(f"umount {shell_word(mount.mountpoint)}")
        if name in swaps:
            use.facts.append(f"/dev/{name} is swap")
            use.commands.append(f"swapoff /dev/{name}")
        holders = holders_of(list_entries(f"{_SYS_CLASS}/{name}/holders"))
        use.facts += [f"{holder.what} is stacked on /dev/{name}" for holder in holders]
        use.commands += commands_to_close(holders, mounts)


def _family(device: int) -> list[str]:
    """Return the kernel names of a block device and its partitions, or of a partition and its disk."""
    directory = os.path.realpath(f"{_SYS_DEVICES}/{os.major(device)}:{os.minor(device)}")
    name = os.path.basename(directory)
    if os.path.exists(f"{directory}/partition"):
        return [name, os.path.basename(os.path.dirname(directory))]
    return [name, *(part for part in list_entries(directory) if os.path.exists(f"{directory}/{part}/partition"))]


def _number(name: str) -> int | None:
    major, _, minor = read_value(f"{_SYS_CLASS}/{name}/dev").partition(":")
    return os.makedev(int(major), int(minor)) if minor else None


def _swaps() -> set[str]:
    """Return the names of the block devices that are used as swap, proc(5)."""
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
