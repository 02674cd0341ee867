"""Find block devices that share bytes, and the mounts that can write to them. Reads /sys and /proc.

A disk has partitions. Disks and partitions can have holders (dm, md, bcache) and loop devices on top, which can have
partitions, too. Each of these can have a mounted file system.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from backyfs.host.kerneltables import list_entries, read_value
from backyfs.host.loops import list_loops, loops_on_file
from backyfs.host.mounttable import list_mounts
from backyfs.host.users import mounts_in_other_namespaces

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backyfs.host.loops import Loop
    from backyfs.host.mounttable import Mount

_SYS = "/sys"
_NO_DEVICE = "0:"  # major number of file systems that do not use the number of their device: btrfs, FUSE


def writable_mounts(path: str, found: os.stat_result) -> list[Mount]:
    """Return the read-write mounts of file systems on an image, which is a block device or a file with loop devices.

    Each file system is returned once, however often it is mounted, in any mount namespace whose processes are visible.
    The list is empty if /sys or /proc cannot be read.
    """
    with suppress(OSError):
        loops = list_loops()
        if stat.S_ISBLK(found.st_mode):
            begin = [number_of(found.st_rdev)]
        else:
            begin = [number for loop in loops_on_file(path, found) for number in sorted(loop.numbers)]
        numbers = overlapping(begin, loops) if begin else frozenset()
        return _writing(numbers, _all_mounts()) if numbers else []
    return []


def number_of(device: int) -> str:
    """Return the number of a device in the form of /sys and mountinfo: major:minor."""
    return f"{os.major(device)}:{os.minor(device)}"


def overlapping(begin: Iterable[str], loops: Iterable[Loop], sys: str = _SYS) -> frozenset[str]:
    """Return the numbers (major:minor) of these devices and of all devices that share bytes with them.

    These are all devices stacked on them, the disk of a partition with everything stacked on the whole disk, and other
    loop devices on the same file. Other partitions of the same disk share no bytes.
    """
    stack = _Stack(list(loops), sys)
    for number in begin:
        stack.add(number)
        for loop in stack.loops_beside(number):
            stack.add_loop(loop)
        whole = stack.disk_of(number)
        if whole is not None:
            stack.add(whole, with_partitions=False)
    stack.add_members_of_btrfs()
    return frozenset(stack.numbers)


class _Stack:
    """The devices that were found, from the bottom up."""

    def __init__(self, loops: list[Loop], sys: str) -> None:
        self._loops = loops
        self._below = [_device_number(loop.backing_file) for loop in loops]
        self._sys = sys
        self.numbers: set[str] = set()

    def add(self, number: str, *, with_partitions: bool = True) -> None:
        """Add a device and everything stacked on it."""
        if not number or number in self.numbers:  # empty: the device is gone
            return
        self.numbers.add(number)
        directory = self._directory(number)
        if with_partitions:
            for partition in list_entries(directory):
                if os.path.exists(f"{directory}/{partition}/partition"):
                    self.add(read_value(f"{directory}/{partition}/dev"))
        for holder in list_entries(f"{directory}/holders"):
            self.add(read_value(f"{self._sys}/class/block/{holder}/dev"))
        for loop, below in zip(self._loops, self._below, strict=True):
            if below == number:
                self.add_loop(loop)

    def add_loop(self, loop: Loop) -> None:
        """Add a loop device and everything stacked on it."""
        for number in sorted(loop.numbers):
            self.add(number)

    def loops_beside(self, number: str) -> list[Loop]:
        """Return the other loop devices on the file of a loop device."""
        files = {loop.backing_file for loop in self._loops if number in loop.numbers}
        return [loop for loop in self._loops if loop.backing_file in files and number not in loop.numbers]

    def disk_of(self, number: str) -> str | None:
        """Return the disk of a partition; None if it is not a partition."""
        directory = self._directory(number)
        return read_value(f"{os.path.dirname(directory)}/dev") if os.path.exists(f"{directory}/partition") else None

    def add_members_of_btrfs(self) -> None:
        """Add all devices of each btrfs that uses one of the devices, because its mount shows only one of them."""
        for file_system in list_entries(f"{self._sys}/fs/btrfs"):
            directory = f"{self._sys}/fs/btrfs/{file_system}/devices"
            members = {read_value(f"{directory}/{name}/dev") for name in list_entries(directory)} - {""}
            if members & self.numbers:
                self.numbers |= members

    def _directory(self, number: str) -> str:
        return os.path.realpath(f"{self._sys}/dev/block/{number}")


def _all_mounts() -> Iterator[Mount]:
    yield from list_mounts()
    for _, mounts in mounts_in_other_namespaces():
        yield from mounts


def _writing(numbers: frozenset[str], mounts: Iterable[Mount]) -> list[Mount]:
    found: dict[tuple[str, str], Mount] = {}
    for mount in mounts:
        if mount.file_system_read_only:
            continue
        own = mount.device in numbers
        if own or (mount.device.startswith(_NO_DEVICE) and _device_number(mount.source) in numbers):
            found.setdefault((mount.device, mount.source), mount)
    return list(found.values())


def _device_number(path: str) -> str | None:
    """Return the number of the block device at a path; None if it is not one. Accesses no file system except /dev."""
    if not path.startswith("/dev/"):
        return None
    try:
        found = os.stat(path)
    except OSError:
        return None
    return number_of(found.st_rdev) if stat.S_ISBLK(found.st_mode) else None
