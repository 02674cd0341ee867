"""The records that `attach` writes before each step, so `detach` can undo it after a crash at any moment.

    DIR/.backyfs/record.json    the version, its mount, and the directories that were made for it
    DIR/.backyfs/mount          the mountpoint of the version, unless an existing mount shows it
    DIR/devices/2 -> /dev/loop5 the loop device of partition 2

A recorded step may not have been taken, and its result may be gone, as after a reboot. The kernel knows which.

Other users can make directories that look like this one. So everything that is read or removed here is in a directory
that nobody else can change, and is accessed through a descriptor of that directory (`backyfs.host.writers`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.kerneltables import check_kernel_tables
from backyfs.host.mounttable import list_mounts
from backyfs.host.writers import trusted_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = logging.getLogger(__name__)

DEFAULT_PLACE = "/run/backyfs"
DEVICES = "devices"
_HIDDEN = ".backyfs"
_RECORD = "record.json"
_MOUNT = "mount"
_MOST_RECORD_BYTES = 64 << 10
_LOOP_DEVICE = re.compile(r"/dev/loop[0-9]{1,9}")
_LOCK_S = 5.0  # longer than any program takes to set up a loop device


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One attached version."""

    version_uid: str
    mountpoint: str        # of the mount that shows the version
    made: tuple[str, ...]  # directories that were made for it, innermost last
    is_complete: bool = False


def hidden_directory(directory: str) -> str:
    """Return the directory of the record of an attachment."""
    return os.path.join(directory, _HIDDEN)


def own_mountpoint(directory: str) -> str:
    """Return the mountpoint of the version in an attachment that mounts it itself."""
    return os.path.join(directory, _HIDDEN, _MOUNT)


def is_own_mountpoint(mountpoint: str) -> bool:
    """Return whether a mountpoint belongs to an attachment that mounted the version itself."""
    return mountpoint.endswith(f"/{_HIDDEN}/{_MOUNT}")


def is_attachment(directory: str) -> bool:
    """Return whether something is attached in a directory, completely or in part, perhaps by another user."""
    try:
        return stat.S_ISDIR(os.lstat(hidden_directory(directory)).st_mode)
    except OSError:
        return False


def save(directory: str, record: Record) -> None:
    """Write a record atomically."""
    path = os.path.join(hidden_directory(directory), _RECORD)
    with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(asdict(record), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def load(directory: str) -> Record | None:
    """Return the record of an attachment; None if there is none that can be read, so nothing was done.

    Raises:
        MountError: others can write to the directory.
    """
    try:
        with _opened(directory, _HIDDEN) as hidden:
            text = _read(hidden, _RECORD)
        fields = json.loads(text.decode("utf-8", errors="surrogateescape"))
        return Record(
            version_uid=str(fields["version_uid"]),
            mountpoint=str(fields["mountpoint"]),
            made=tuple(str(made) for made in fields["made"]),
            is_complete=bool(fields["is_complete"]),
        )
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _read(directory: int, name: str) -> bytes:
    """Read a file that belongs to this user and is not longer than a record.

    Raises:
        OSError: it does not exist, or is something else.
    """
    # Non-blocking: opening a FIFO would wait for a writer.
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(fd, "rb") as file:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_size > _MOST_RECORD_BYTES:
            raise OSError(errno.EINVAL, "not a record", name)
        return file.read(_MOST_RECORD_BYTES)


@contextmanager
def _opened(directory: str, name: str) -> Iterator[int]:
    """Yield a descriptor of a directory inside the directory of an attachment.

    Raises:
        OSError: it does not exist, or is a link.
        MountError: others can write to the directory.
    """
    with trusted_directory(directory) as above:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        try:
            yield fd
        finally:
            os.close(fd)


def remove(directory: str) -> None:
    """Remove the record. This is the last step."""
    with suppress(FileNotFoundError), _opened(directory, _HIDDEN) as hidden:
        for name in (f"{_RECORD}.new", _RECORD):
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=hidden)
    with suppress(FileNotFoundError), trusted_directory(directory) as above:
        os.rmdir(_HIDDEN, dir_fd=above)


def note_device(directory: str, name: str, device: str) -> None:
    """Record the loop device that a partition will get."""
    devices = os.path.join(directory, DEVICES)
    os.makedirs(devices, exist_ok=True)
    link = os.path.join(devices, name)
    os.symlink(device, f"{link}.new")
    os.replace(f"{link}.new", link)


def forget_device(directory: str, name: str) -> None:
    """Remove the record of `note_device`."""
    with suppress(FileNotFoundError), _opened(directory, DEVICES) as devices:
        os.unlink(name, dir_fd=devices)


def noted_devices(directory: str) -> dict[str, str]:
    """Return the recorded loop devices by the names of their partitions."""
    found = {}
    with suppress(OSError), _opened(directory, DEVICES) as devices:
        for name in sorted(os.listdir(devices), key=lambda name: (len(name), name)):
            with suppress(OSError):
                device = os.readlink(name, dir_fd=devices)
                if _LOOP_DEVICE.fullmatch(device):
                    found[name] = device
    return found


@contextmanager
def locked(directory: str) -> Iterator[int]:
    """Lock a directory against other commands that attach or detach; yield the descriptor of the lock.

    Raises:
        MountError: another command is using the directory, or users other than this one and root can change it.
    """
    end = time.monotonic() + _LOCK_S
    with trusted_directory(directory) as found:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    try:
        while not _lock(descriptor):
            if time.monotonic() > end:
                raise MountError(
                    "is in use by another attach or detach", subject=directory, remedy="try again when it is done"
                )
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def list_attachments() -> list[str]:
    """Return the directories in which something is attached: in the default place, and those found by their mounts.

    Raises:
        MountError: the kernel does not show mounts.
    """
    check_kernel_tables()
    found = set()
    with suppress(OSError):
        found = {os.path.join(DEFAULT_PLACE, name) for name in os.listdir(DEFAULT_PLACE)}
    for mount in list_mounts():
        if not mount.is_made_by(os.geteuid()):
            continue
        if mount.is_ours and is_own_mountpoint(mount.mountpoint):
            found.add(mount.mountpoint.removesuffix(f"/{_HIDDEN}/{_MOUNT}"))
        elif os.path.basename(mount.source).startswith("loop"):
            found.add(os.path.dirname(mount.mountpoint))
    return sorted(directory for directory in found if _holds_attachment(directory))


def _holds_attachment(directory: str) -> bool:
    """Return whether this user attached something in a directory. Directories of other users are not examined."""
    try:
        with trusted_directory(directory) as fd:
            return stat.S_ISDIR(os.stat(_HIDDEN, dir_fd=fd, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False
    except MountError as error:
        _log.debug("%s", error)
        return False
