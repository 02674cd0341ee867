"""Undo what `backyfs.attach.attachment` did, or was doing when it was killed. Needs no repository.

The records list what may exist, the kernel lists what does exist, and only what both list is touched. A loop device
that another program has set up under the same number in the meantime is kept.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host import records
from backyfs.host.answers import State, ask
from backyfs.host.kerneltables import check_kernel_tables
from backyfs.host.loops import find_loop, list_loops
from backyfs.host.mountpoints import is_own, unmount_mount
from backyfs.host.mounttable import Mount, is_below, list_mounts, resolve
from backyfs.host.stack import stacked_on, tear_down
from backyfs.host.writers import opened_parent

if TYPE_CHECKING:
    from backyfs.host.loops import Loop
    from backyfs.host.records import Record
    from backyfs.host.stack import Thing

_PARTITION_FILE = re.compile(r"(?P<mountpoint>.*)/by_version_uid/(?P<uid>[^/]+)/(?:data|partitions/[0-9]+)", re.DOTALL)


@dataclass(slots=True, kw_only=True)
class Detachment:
    """The result of `detach`."""

    directory: str
    unmounted: list[str] = field(default_factory=list)  # mountpoints
    devices: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)       # directories with content that attach did not make


def detach(directory: str) -> Detachment:
    """Unmount everything in a directory of `attach`, and remove what attach made there.

    Raises:
        MountError: nothing is attached there, others can change the directory and its records, or something is in use.
            Everything that is not in use is removed.
    """
    check_kernel_tables()
    directory = resolve(directory)
    if not records.is_attachment(directory):
        others = [other for other in records.list_attachments() if other != directory]
        elsewhere = f"these directories have something attached: {', '.join(others)}" if others else None
        raise MountError(f"nothing is attached in {directory}", remedy=elsewhere)
    with records.locked(directory):
        return detach_locked(directory)


def detach_locked(directory: str) -> Detachment:
    """Do the same as `detach`; the caller holds the lock of the directory."""
    record = records.load(directory)
    detachment = Detachment(directory=directory)
    problems: list[MountError] = []
    image = None if record is None else _mount_at(record.mountpoint)
    # A dead mount returns nothing to anybody, so processes that have its files open lose nothing.
    is_dead = image is not None and ask(image.mountpoint).state is State.DEAD
    stuck: list[Thing] = []
    for thing, above in _things_in(directory, record):
        if any(each in stuck for each in above):
            continue
        try:
            tear_down(thing, lazily=is_dead)
        except MountError as error:
            problems.append(error)
            stuck.append(thing)
            continue
        if isinstance(thing, Mount):
            detachment.unmounted.append(thing.mountpoint)
        else:
            detachment.devices.append(thing.device)
    if not problems:
        _unmount_image(directory, detachment, problems)
    if problems:
        raise _combined(problems)
    _remove_directories(directory, record, detachment)
    return detachment


def _things_in(directory: str, record: Record | None) -> list[tuple[Thing, list[Thing]]]:
    """Return everything except the mount of the version, each with all that is stacked on it, uppermost first.

    These are the mounts below the directory, its loop devices, and everything stacked on them. Loop devices of other
    programs may be in the way, but are not ours to remove.
    """
    mounts = list_mounts()
    loops = [] if record is None else _own_loops(directory, record)
    image = records.own_mountpoint(directory)
    below = [
        mount
        for mount in reversed(mounts)
        if mount.mountpoint != directory and is_below(mount.mountpoint, directory) and mount.mountpoint != image
    ]
    things: list[Thing] = [*below, *loops]
    found: list[Thing] = []
    for thing in things:
        found += [each for each in (*stacked_on(thing, mounts, loops), thing) if each not in found]
    return [(thing, stacked_on(thing, mounts, loops)) for thing in found]


def _own_loops(directory: str, record: Record) -> list[Loop]:
    found = []
    for device in dict.fromkeys(records.noted_devices(directory).values()):
        loop = find_loop(device)
        if loop is not None and _is_own(loop, record, records.own_mountpoint(directory)):
            found.append(loop)
    return found


def _is_own(loop: Loop, record: Record, own_mountpoint: str) -> bool:
    """Return whether a loop device is backed by an image of the version, in a mount of this user.

    In mounts that attach did not make, it sets up only read-only devices.
    """
    matched = _PARTITION_FILE.fullmatch(loop.backing_file)
    if matched is None or matched["uid"] != record.version_uid:
        return False
    if not loop.read_only and record.mountpoint != own_mountpoint:
        return False
    mountpoint = matched["mountpoint"]
    # After a lazy unmount the kernel no longer shows where the mount was.
    return mountpoint in {"", record.mountpoint} or any(
        is_own(mount) and mount.mountpoint == mountpoint for mount in list_mounts()
    )


def _mount_at(mountpoint: str) -> Mount | None:
    found = [mount for mount in list_mounts() if is_own(mount) and mount.mountpoint == mountpoint]
    return found[-1] if found else None


def _unmount_image(directory: str, detachment: Detachment, problems: list[MountError]) -> None:
    """Unmount the version where attach mounted it, unless other programs have loop devices on it."""
    while (mount := _mount_at(records.own_mountpoint(directory))) is not None:
        strangers = [loop.device for loop in list_loops() if is_below(loop.backing_file, mount.mountpoint)]
        answer = ask(mount.mountpoint)
        if strangers and answer.state is not State.DEAD:
            commands = ", ".join(f"`losetup --detach {device}`" for device in strangers)
            problems.append(
                MountError(
                    "is in use by loop devices that attach did not make",
                    subject=mount.mountpoint,
                    remedy=f"unmount everything on them, run {commands}, then run this again",
                )
            )
            return
        try:
            unmount_mount(mount, answer)
        except MountError as error:
            problems.append(error)
            return
        detachment.unmounted.append(mount.mountpoint)


def _combined(errors: list[MountError]) -> MountError:
    """Return one error for several, each message once."""
    different = list({str(error): error for error in errors}.values())
    if len(different) == 1:
        return different[0]
    combined = MountError("; ".join(error.statement for error in different))
    for remedy in {str(error.remedy): error.remedy for error in different if error.remedy is not None}.values():
        combined.advise(remedy)
    return combined


def _remove_directories(directory: str, record: Record | None, detachment: Detachment) -> None:
    """Remove everything that attach made. The record goes last, so detach can be run again until then."""
    for name in records.noted_devices(directory):
        records.forget_device(directory, name)
    # Attach started with an empty directory, so every empty directory was a mountpoint or made for one.
    hidden = records.hidden_directory(directory)
    paths = [os.path.join(directory, name) for name in sorted(os.listdir(directory))]
    for path in [records.own_mountpoint(directory), *(path for path in paths if path != hidden)]:
        _remove(path)
    records.remove(directory)
    made = (directory,) if record is None and is_below(directory, records.DEFAULT_PLACE) else ()
    for path in reversed(record.made if record is not None else made):
        if path in {directory, *_parents(directory)} and not _remove(path):
            detachment.left.append(path)


def _parents(path: str) -> list[str]:
    found = []
    while path != "/":
        path = os.path.dirname(path)
        found.append(path)
    return found


def _remove(path: str) -> bool:
    """Remove an empty directory if it exists. Return False if it is not a directory, or not empty.

    Raises:
        MountError: something is mounted on it.
    """
    try:
        with opened_parent(path) as (above, name):
            os.rmdir(name, dir_fd=above)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno == errno.EBUSY:  # by a mount(8) that outlived a killed attach
            raise MountError("has been mounted in the meantime", subject=path, remedy="run this again") from error
        return False
    return True
