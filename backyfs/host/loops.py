"""Loop devices: which there are, setting one up read-only, and letting go of one.

What is said of them comes from /sys, where reading asks no file system: a loop device may stand on a mount that
does not answer any more.
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

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Collection

_log = logging.getLogger(__name__)

_BLOCK = "/sys/block"
_CONTROL = "/dev/loop-control"
_GET_FREE = 0x4C82        # LOOP_CTL_GET_FREE of linux/loop.h
_GET_STATUS = 0x4C05      # LOOP_GET_STATUS64: struct loop_info64 begins with device, inode and rdevice of what backs it
_STATUS_BYTES = 232
_READ_AHEAD_KIB = 8192    # with direct I/O it decides how many requests are under way: 128 gives 2, this 12
_TRIES = 32               # of a free device that another program takes meanwhile
_RELEASE_S = 1.0          # udev looks at a device that appears, and keeps it open for a moment
_LOOK_S = 5.0
_DELETED = " (deleted)"

WITHOUT_LOOP_DEVICES = (
    "without them: `backyfs mount DIR`, then debugfs or fuse2fs (ext), 7z, guestmount, or qemu-nbd on a host that has "
    "them read the image DIR/by_name/NAME/latest/data or its partitions/N"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A loop device in use."""

    device: str                     # /dev/loop3
    backing_file: str               # as the kernel names it; not where a mount is that was unmounted lazily
    numbers: frozenset[str]         # major:minor of the device and of its partition nodes
    nodes: frozenset[str]           # /dev/loop3, /dev/loop3p1, …
    holders: tuple[str, ...]        # devices that stand on it, such as dm-0
    read_only: bool


def list_loops() -> list[Loop]:
    """Return the loop devices that are in use, by number; none without /sys."""
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
    """Return a loop device; None if it is not in use, or no loop device."""
    name = os.path.basename(device)
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
    except OSError:  # not in use, or no more
        return None


def with_backing_files(path: str) -> tuple[str, ...]:
    """Return a path and, if it is a loop device, the file that backs it, and so on if that is one as well."""
    paths = [path]
    while (loop := find_loop(os.path.realpath(paths[-1]))) is not None:
        paths.append(loop.backing_file)
    return tuple(paths)


def loops_on(about: os.stat_result, devices: Collection[int] = ()) -> list[Loop]:
    """Return the loop devices that are backed by a file, or by one of these block devices, whatever its name was."""
    return [loop for loop in list_loops() if _is_backed_by(loop, about, devices)]


def _is_backed_by(loop: Loop, about: os.stat_result, devices: Collection[int]) -> bool:
    status = bytearray(_STATUS_BYTES)
    try:
        fd = os.open(loop.device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _GET_STATUS, status)
        finally:
            os.close(fd)
    except OSError:  # this user may not open it, or a container does not have it: only the name is left
        try:
            return os.path.samestat(os.stat(loop.backing_file), about)
        except OSError:
            return False
    device, inode, block_device = struct.unpack_from("=QQQ", status)
    return block_device in devices if block_device else (device, inode) == (about.st_dev, about.st_ino)


def is_backed_by_device(loop: Loop, number: str) -> bool:
    """Tell whether the file of a loop device lies in the file system with this number; True if it cannot be told.

    It is asked of losetup: the answer may take a file system that hangs.
    """
    with suppress(MountError):
        done = run("losetup", "--list", "--noheadings", "--output", "BACK-MAJ:MIN", loop.device, timeout_s=_LOOK_S)
        told = done.stdout.strip()
        return told in {"", number}
    return True


def loops_on_file(path: str, found: os.stat_result) -> list[Loop]:
    """Return the loop devices that write to a file: recognised by its device and inode, or else by its path.

    It is asked of losetup: the answer may take a file system that hangs. Only root gets the inode.
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
    """Make sure that loop devices can be had; `control` is the device that gives them.

    Raises:
        MountError: they cannot, and why, and what can be done instead.
    """
    if os.geteuid() != 0:
        raise MountError(f"only root can set up loop devices and mount file systems; {WITHOUT_LOOP_DEVICES}")
    check_kernel_tables()
    _free_number(control)


def set_up(file: str, announce: Callable[[str], None], lock: int, *, writable: bool = False) -> str:
    """Set up a loop device for a file, with direct I/O where that is possible, and return it.

    `announce` is called with the device before it is set up, once more if another one has to be taken. `lock` is a
    locked descriptor: the lock lasts until the device is set up, even if this process is killed meanwhile.

    Raises:
        MountError: there is none, or it cannot be set up.
    """
    for _ in range(_TRIES):
        device = f"/dev/loop{_free_number()}"
        if not os.path.exists(device):
            number = device.removeprefix("/dev/loop")
            raise MountError(
                f"{device} does not exist; make it (mknod {device} b 7 {number}), in a container pass it in"
            )
        announce(device)
        done = _set_up(device, file, lock, writable=writable)
        if done.returncode == 0:
            _read_far_ahead(device)
            return device
        if find_loop(device) is None:
            raise MountError(f"{device} cannot be set up for {file}: {reason_of(done)}; {WITHOUT_LOOP_DEVICES}")
    raise MountError(f"every loop device that was free was taken by others meanwhile ({_TRIES} tries); try again")


def release(loop: Loop, *, patience_s: float = _RELEASE_S) -> bool:
    """Let go of a loop device and return whether it is free: it stays as long as somebody has it open.

    Raises:
        MountError: it cannot be let go.
    """
    if len(loop.nodes) > 1:  # nodes that partx made would outlive it
        run("partx", "--delete", loop.device)
    done = run("losetup", "--detach", loop.device)
    end = time.monotonic() + patience_s
    while (now := find_loop(loop.device)) is not None and now.backing_file == loop.backing_file:
        if done.returncode != 0:
            raise MountError(f"{loop.device} cannot be detached: {reason_of(done)}")
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _set_up(device: str, file: str, lock: int, *, writable: bool) -> subprocess.CompletedProcess[str]:
    mode = () if writable else ("--read-only",)
    # Without direct I/O every byte is kept twice, as a page of the image and as a page of the device.
    done = run("losetup", *mode, "--direct-io=on", device, file, inherits=(lock,))
    if done.returncode == 0 or find_loop(device) is not None:
        return done
    _log.debug("%s has no direct I/O: %s", device, reason_of(done))
    return run("losetup", *mode, device, file, inherits=(lock,))


def _read_far_ahead(device: str) -> None:
    """Have large reads, many at once. Where that is not possible, the device is slower."""
    setting = f"{_BLOCK}/{os.path.basename(device)}/queue/read_ahead_kb"
    with suppress(OSError), open(setting, "w", encoding="ascii") as file:
        file.write(str(_READ_AHEAD_KIB))


def _free_number(control: str = _CONTROL) -> int:
    try:
        fd = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise MountError(
            f"{control} does not exist; load the module (modprobe loop), in a container pass it in; "
            f"{WITHOUT_LOOP_DEVICES}"
        ) from None
    except OSError as error:
        raise MountError(f"{control} cannot be opened: {error.strerror}; {WITHOUT_LOOP_DEVICES}") from error
    try:
        return fcntl.ioctl(fd, _GET_FREE)
    except OSError as error:
        raise MountError(f"no loop device can be had: {error.strerror}; {WITHOUT_LOOP_DEVICES}") from error
    finally:
        os.close(fd)


def _read(path: str) -> str:
    """Return a value of the kernel.

    Raises:
        OSError: it is not there.
    """
    with open(path, "rb") as file:
        return os.fsdecode(file.read().removesuffix(b"\n"))
