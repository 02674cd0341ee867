"""What `attach` writes down, before it does it, so that `detach` can undo it after a crash at any moment.

    DIR/.backyfs/record.json    which version, on which mount, which directories were made for it
    DIR/.backyfs/mount          where the version is mounted, unless a mount was found that shows it
    DIR/devices/2 -> /dev/loop5 the loop device of partition 2

What is written may not have been done, and what was done may be gone, as after a reboot: the kernel is asked.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.kerneltables import check_kernel_tables
from backyfs.host.mounttable import list_mounts

if TYPE_CHECKING:
    from collections.abc import Iterator

USUAL_PLACE = "/run/backyfs"
DEVICES = "devices"
_HIDDEN = ".backyfs"
_RECORD = "record.json"
_MOUNT = "mount"
_LOCK_S = 5.0  # longer than any program takes that sets up a loop device


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One attached version."""

    version_uid: str
    mountpoint: str        # of the mount that shows the version
    made: tuple[str, ...]  # directories that were made for it, innermost last
    is_complete: bool = False


def hidden_directory(directory: str) -> str:
    """Return where the record of an attachment lies."""
    return os.path.join(directory, _HIDDEN)


def own_mountpoint(directory: str) -> str:
    """Return where an attachment mounts the version, if it does so itself."""
    return os.path.join(directory, _HIDDEN, _MOUNT)


def is_own_mountpoint(mountpoint: str) -> bool:
    """Tell whether an attachment has mounted a version there."""
    return mountpoint.endswith(f"/{_HIDDEN}/{_MOUNT}")


def is_attachment(directory: str) -> bool:
    """Tell whether something is attached in a directory, or was begun to be."""
    return os.path.lexists(hidden_directory(directory))


def save(directory: str, record: Record) -> None:
    """Write a record: it is there whole, or not at all."""
    path = os.path.join(hidden_directory(directory), _RECORD)
    with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(asdict(record), file, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)


def load(directory: str) -> Record | None:
    """Return the record of an attachment; None if there is none that can be read: then nothing was done."""
    try:
        path = os.path.join(hidden_directory(directory), _RECORD)
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            fields = json.load(file)
        return Record(
            version_uid=str(fields["version_uid"]),
            mountpoint=str(fields["mountpoint"]),
            made=tuple(str(made) for made in fields["made"]),
            is_complete=bool(fields["is_complete"]),
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def remove(directory: str) -> None:
    """Take the record away, last of all."""
    hidden = hidden_directory(directory)
    for name in (f"{_RECORD}.new", _RECORD):
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(hidden, name))
    with suppress(FileNotFoundError):
        os.rmdir(hidden)


def note_device(directory: str, name: str, device: str) -> None:
    """Write down which loop device a partition is to have."""
    devices = os.path.join(directory, DEVICES)
    os.makedirs(devices, exist_ok=True)
    link = os.path.join(devices, name)
    os.symlink(device, f"{link}.new")
    os.replace(f"{link}.new", link)


def forget_device(directory: str, name: str) -> None:
    """Take away what `note_device` wrote."""
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, DEVICES, name))


def noted_devices(directory: str) -> dict[str, str]:
    """Return the loop devices that were written down, by the names of the partitions."""
    devices = os.path.join(directory, DEVICES)
    found = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(devices), key=lambda name: (len(name), name)):
            with suppress(OSError):
                found[name] = os.readlink(os.path.join(devices, name))
    return found


@contextmanager
def locked(directory: str) -> Iterator[int]:
    """Keep other commands from attaching and detaching in a directory meanwhile; give the descriptor of the lock.

    Raises:
        MountError: one of them is at work there.
    """
    end = time.monotonic() + _LOCK_S
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not _lock(descriptor):
            if time.monotonic() > end:
                raise MountError(f"another attach or detach is at work in {directory}; try again when it is done")
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
    """Return the directories in which something is attached: in the usual place, and where the kernel shows it.

    Raises:
        MountError: it shows nothing.
    """
    check_kernel_tables()
    found = set()
    with suppress(OSError):
        found = {os.path.join(USUAL_PLACE, name) for name in os.listdir(USUAL_PLACE)}
    for mount in list_mounts():
        if mount.is_ours and is_own_mountpoint(mount.mountpoint):
            found.add(mount.mountpoint.removesuffix(f"/{_HIDDEN}/{_MOUNT}"))
        elif os.path.basename(mount.source).startswith("loop"):
            found.add(os.path.dirname(mount.mountpoint))
    return sorted(directory for directory in found if is_attachment(directory))
