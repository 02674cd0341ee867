"""List, set up and release loop devices.

Facts about them are read from /sys, which accesses no other file system: a loop device may be on a mount that no
longer answers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.kerneltables import check_kernel_tables
from backyfs.host.programs import reason_of, run
from backyfs.remedies import Advice, Remedy

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Collection

_log = logging.getLogger(__name__)

_BLOCK = "/sys/block"
_CONTROL = "/dev/loop-control"
_GET_FREE = 0x4C82        # LOOP_CTL_GET_FREE of linux/loop.h
_GET_STATUS = 0x4C05      # LOOP_GET_STATUS64: struct loop_info64 begins with device, inode and rdevice of its file
_STATUS_BYTES = 232
_READ_AHEAD_KIB = 8192    # with direct I/O it limits concurrent requests: 128 allows 2, this 12
_TRIES = 32               # in case other programs take each free device first
_RELEASE_S = 1.0          # udev examines a new device, and keeps it open for a moment
_LOOK_S = 5.0
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A loop device in use."""

    device: str                     # /dev/loop3
    backing_file: str               # as in the kernel; without the mountpoint after a lazy unmount
    numbers: frozenset[str]         # major:minor of the device and of its partition nodes
    nodes: frozenset[str]           # /dev/loop3, /dev/loop3p1, …
    holders: tuple[str, ...]        # devices stacked on it, such as dm-0
    read_only: bool


def list_loops() -> list[Loop]:
    """Return the loop devices that are in use, ordered by number; none without /sys."""
    found: list[Loop] = []
    try:
        names = os.listdir(_BLOCK)
    except FileNotFoundError:
        return found
    for name in sorted(names, key=lambda name: (len(name), name)):
        if name.startswith("loop"):
            loop = find_loop(f"/dev/{name}")
            if loop is not None:
                found.append(loop)
    return found


def find_loop(device: str) -> Loop | None:
    """Return a loop device; None if it is not in use, or not a loop device."""
    where, name = os.path.split(device)
    if where != "/dev":  # a file can have the name of a loop device
        return None
    directory = f"{_BLOCK}/{name}"
    try:
        backing_file = _read(f"{directory}/loop/backing_file")
        parts = [part for part in os.listdir(directory) if part.startswith(f"{name}p")]
        places = [directory, *(f"{directory}/{part}" for part in parts)]
        return Loop(
            device=f"/dev/{name}",
            backing_file=backing_file.removesuffix(_DELETED),
            numbers=frozenset(_read(f"{place}/dev") for place in places),
            nodes=frozenset(f"/dev/{part}" for part in (name, *parts)),
            holders=tuple(sorted({held for place in places for held in os.listdir(f"{place}/holders")})),
            read_only=_read(f"{directory}/ro") == "1",
        )
    except OSError:  # it is not in use, or no longer
        return None


def with_backing_files(path: str) -> tuple[str, ...]:
    """Return a path and, if it is a loop device, the file that backs it, and so on if that is one as well."""
    paths = [path]
    while (loop := find_loop(os.path.realpath(paths[-1]))) is not None and loop.backing_file not in paths:
        paths.append(loop.backing_file)
    return tuple(paths)


def loops_on(about: os.stat_result, devices: Collection[int] = ()) -> list[Loop]:
    """Return the loop devices that are backed by a file or by one of these block devices, under any name."""
    return [loop for loop in list_loops() if _is_backed_by(loop, about, devices)]


def _is_backed_by(loop: Loop, about: os.stat_result, devices: Collection[int]) -> bool:
    status = bytearray(_STATUS_BYTES)
    try:
        fd = os.open(loop.device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _GET_STATUS, status)
        finally:
            os.close(fd)
    except OSError:  # this user may not open it, or a container lacks it: compare by name
        try:
            return os.path.samestat(os.stat(loop.backing_file), about)
        except OSError:
            return False
    device, inode, block_device = struct.unpack_from("=QQQ", status)
    return block_device in devices if block_device else (device, inode) == (about.st_dev, about.st_ino)


def is_backed_by_device(loop: Loop, number: str) -> bool:
    """Return whether the file of a loop device is in the file system with this number; True if that is unknown.

    This runs losetup, because the answer may need a file system that hangs.
    """
    with suppress(MountError):
        done = run("losetup", "--list", "--noheadings", "--output", "BACK-MAJ:MIN", loop.device, timeout_s=_LOOK_S)
        return done.stdout.strip() in {"", number}
    return True


def loops_on_file(path: str, found: os.stat_result) -> list[Loop]:
    """Return the loop devices that write to a file. Compare its device and inode, or else its path.

    This runs losetup, because the answer may need a file system that hangs. Only root gets the inode.
    """
    loops = [loop for loop in list_loops() if not loop.read_only]
    if not loops:
        return []
    inodes: dict[str, tuple[str, str]] = {}
    with suppress(MountError):
        done = run("losetup", "--list", "--noheadings", "--output", "NAME,BACK-INO,BACK-MAJ:MIN", timeout_s=_LOOK_S)
        lines = [line.split() for line in done.stdout.splitlines()]
        inodes = {words[0]: (words[1], words[2]) for words in lines if len(words) == 3}
    inode = (str(found.st_ino), f"{os.major(found.st_dev)}:{os.minor(found.st_dev)}")
    real = os.path.realpath(path)
    return [loop for loop in loops if inodes.get(loop.device, inode if loop.backing_file == real else None) == inode]


def check_loop_devices(control: str = _CONTROL) -> None:
    """Make sure that loop devices are available; `control` is the device that hands them out.

    Raises:
        MountError: they are not.
    """
    if os.geteuid() != 0:
        raise MountError(
            "only root can set up loop devices and mount file systems", remedy=Advice.READ_WITHOUT_LOOP_DEVICES()
        )
    check_kernel_tables()
    _free_number(control)


def set_up(file: str, announce: Callable[[str], None], lock: int, *, writable: bool = False) -> str:
    """Set up a loop device for a file, with direct I/O if possible, and return the device.

    `announce` is called with the device before it is set up, and again if another one must be used. `lock` is a locked
    descriptor: the lock lasts until the device is set up, even if this process is killed before.

    Raises:
        MountError: there is no free device, or it cannot be set up.
    """
    for _ in range(_TRIES):
        device = f"/dev/loop{_free_number()}"
        if not os.path.exists(device):
            number = device.removeprefix("/dev/loop")
            raise MountError(
                "does not exist",
                subject=device,
                remedy=f"make it (mknod {device} b 7 {number}), in a container pass it in",
            )
        announce(device)
        done = _set_up(device, file, lock, writable=writable)
        if done.returncode == 0:
            _read_far_ahead(device)
            return device
        if find_loop(device) is None:
            raise MountError(
                f"cannot be set up for {file}: {reason_of(done)}",
                subject=device,
                remedy=Advice.READ_WITHOUT_LOOP_DEVICES(),
            )
    raise MountError(f"other programs took every free loop device first ({_TRIES} tries)", remedy="try again")


def release(loop: Loop, *, patience_s: float = _RELEASE_S) -> bool:
    """Detach a loop device and return whether it is free. It remains in use while any process has it open.

    Raises:
        MountError: it cannot be detached.
    """
    if len(loop.nodes) > 1:  # nodes made by partx would survive the device
        run("partx", "--delete", loop.device)
    done = run("losetup", "--detach", loop.device)
    end = time.monotonic() + patience_s
    while (now := find_loop(loop.device)) is not None and now.backing_file == loop.backing_file:
        if done.returncode != 0:
            raise MountError(f"cannot be detached: {reason_of(done)}", subject=loop.device)
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _set_up(device: str, file: str, lock: int, *, writable: bool) -> subprocess.CompletedProcess[str]:
    mode = () if writable else ("--read-only",)
    # Without direct I/O every byte is cached twice, in a page of the image and in a page of the device.
    done = run("losetup", *mode, "--direct-io=on", device, file, inherits=(lock,))
    if done.returncode == 0 or find_loop(device) is not None:
        return done
    _log.debug("%s has no direct I/O: %s", device, reason_of(done))
    return run("losetup", *mode, device, file, inherits=(lock,))


def _read_far_ahead(device: str) -> None:
    """Allow large and concurrent reads. If that fails, the device is slower."""
    setting = f"{_BLOCK}/{os.path.basename(device)}/queue/read_ahead_kb"
    with suppress(OSError), open(setting, "w", encoding="ascii") as file:
        file.write(str(_READ_AHEAD_KIB))


def _free_number(control: str = _CONTROL) -> int:
    try:
        fd = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        remedy = Remedy("load the module (modprobe loop), in a container pass it in")
        raise MountError(
            "does not exist", subject=control, remedy=remedy.then(Advice.READ_WITHOUT_LOOP_DEVICES())
        ) from None
    except OSError as error:
        raise MountError(
            f"cannot be opened: {error.strerror}", subject=control, remedy=Advice.READ_WITHOUT_LOOP_DEVICES()
        ) from error
    try:
        return fcntl.ioctl(fd, _GET_FREE)
    except OSError as error:
        raise MountError(
            f"has no free loop device: {error.strerror}", subject=control, remedy=Advice.READ_WITHOUT_LOOP_DEVICES()
        ) from error
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """Return a value of the kernel.

    Raises:
        OSError: it does not exist.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read().removesuffix(b"\n"))
