"""Attach a version: mount it, give its partitions loop devices, and mount every file system that is found.

What is to be done is written down before it is done (`backyfs.host.records`), so `backyfs.attach.detachment` can
undo it, whenever this was killed.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

from backyfs.attach import filesystems, layers
from backyfs.attach.detachment import detach_locked
from backyfs.attach.filesystems import Content
from backyfs.errors import MountError
from backyfs.host import records
from backyfs.host.answers import State, ask
from backyfs.host.kerneltables import check_kernel_tables
from backyfs.host.loops import check_loop_devices, set_up
from backyfs.host.mounttable import list_mounts, resolve
from backyfs.host.records import Record
from backyfs.mount.tree import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.attach.layers import Layer
    from backyfs.model import Version

_log = logging.getLogger(__name__)
_WHOLE = "data"  # the name of an image that has no partitions


class Outcome(Enum):
    """What became of a partition."""

    MOUNTED = "mounted"
    READY = "ready"      # a loop device is there for the commands that go on
    NOTHING = "nothing"  # it holds nothing to see
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A partition of an attached image, or the image itself."""

    name: str                  # number of the partition; `data`: the whole image
    file: str                  # in the mount of the version
    size_bytes: int
    outcome: Outcome
    content: Content = field(default_factory=Content)
    device: str | None = None
    mountpoint: str | None = None
    options: str = ""          # it is mounted with
    remark: str = ""           # why it is not mounted
    commands: tuple[str, ...] = ()  # to go on, and afterwards to undo


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What `attach` has done."""

    directory: str
    version_uid: str
    image: str       # the whole image, in a mount
    is_reused: bool  # that mount was there before
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """What to attach, and where."""

    version: Version
    repository_uid: str
    own_paths: tuple[str, ...]  # of the repository; nothing may be mounted over them
    start_mount: Callable[[str], None]  # mount the version on a directory, or raise MountError
    directory: str | None = None  # None: a new one in the usual place


def usual_directory(version: Version) -> str:
    """Return where a version is attached unless another place is named."""
    name = escape(version.name).decode("utf-8", errors="surrogateescape")
    return os.path.join(records.USUAL_PLACE, f"{name}_{version.created_at:%Y-%m-%dT%H-%M-%S}")


def attach(request: AttachRequest) -> Attachment:
    """Attach a version. To be called by root.

    Raises:
        MountError: loop devices cannot be had, the directory is not empty, the version cannot be mounted, or there
            is nothing in it to see; what was done is undone.
    """
    check_kernel_tables()
    check_loop_devices()
    directory = resolve(request.directory or usual_directory(request.version))
    _check_place(directory, request.own_paths)
    _clear_leftovers(directory)
    made = _make_directory(directory)
    with records.locked(directory) as lock:
        if os.listdir(directory):
            raise MountError(f"{directory} is not empty; name a directory that is empty, or one that is not there yet")
        try:
            return _attach(request, directory, made, lock)
        except BaseException as error:
            _undo(directory, made, error)
            raise


def _attach(request: AttachRequest, directory: str, made: tuple[str, ...], lock: int) -> Attachment:
    uid = request.version.uid
    found = _find_mount(request.repository_uid, uid)
    record = Record(version_uid=uid, mountpoint=found or records.own_mountpoint(directory), made=made)
    os.mkdir(records.hidden_directory(directory), mode=0o700)
    records.save(directory, record)
    if found is None:
        os.mkdir(record.mountpoint)
        request.start_mount(record.mountpoint)
    image = os.path.join(record.mountpoint, "by_version_uid", uid)
    parts = [_open_part(directory, name, file, lock) for name, file in _files_of(image)]
    if all(part.device is None for part in parts):
        reasons = "; ".join(f"{part.name}: {part.remark}" for part in parts)
        raise MountError(f"version {uid} has nothing that could be mounted ({reasons})")
    parts = [_describe_layer(part, parts, directory) for part in parts]
    records.save(directory, replace(record, is_complete=True))
    return Attachment(
        directory=directory,
        version_uid=uid,
        image=os.path.join(image, _WHOLE),
        is_reused=found is not None,
        parts=tuple(parts),
    )


# Where.


def _check_place(directory: str, own_paths: tuple[str, ...]) -> None:
    for own in own_paths:
        if os.path.commonpath((directory, own)) in (directory, own):
            raise MountError(f"{directory} overlaps the repository ({own}); attach it somewhere else")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise MountError(f"{directory} is not a directory; name another one")


def _make_directory(directory: str) -> tuple[str, ...]:
    """Make a directory and what is above it, and return what was made, innermost last, but for the usual place."""
    missing = []
    path = directory
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for path in reversed(missing):
            # For root alone: the files below belong to users of another system, whose numbers mean others here.
            os.mkdir(path, mode=0o700 if path == directory else 0o755)
    except OSError as error:
        raise MountError(f"{directory} cannot be made: {error.strerror}; name another directory") from error
    return tuple(path for path in reversed(missing) if path != records.USUAL_PLACE)


def _clear_leftovers(directory: str) -> None:
    """Take away what an attach left there that was killed, or whose mount was.

    Raises:
        MountError: something is attached there, or is being attached.
    """
    if not records.is_attachment(directory):
        return
    with records.locked(directory):
        record = records.load(directory)
        if record is not None and record.is_complete and _is_alive(record.mountpoint):
            raise MountError(
                f"version {record.version_uid} is attached in {directory} already; run `backyfs detach {directory}` "
                "first, or name another directory"
            )
        _log.warning("%s holds what is left of an attach or mount that was killed; it is taken away", directory)
        detach_locked(directory)


def _is_alive(mountpoint: str) -> bool:
    is_mounted = any(mount.is_ours and mount.mountpoint == mountpoint for mount in list_mounts())
    return is_mounted and ask(mountpoint).state is not State.DEAD


def _undo(directory: str, made: tuple[str, ...], error: BaseException) -> None:
    try:
        detach_locked(directory)
    except MountError as left:
        _log.error("%s; `backyfs detach %s` takes away what is left", left, directory)
        _log.debug("it is left there because of an error", exc_info=error)
        return
    for path in reversed(made):  # where the record was not yet written
        with suppress(OSError):
            os.rmdir(path)


def _find_mount(repository_uid: str, version_uid: str) -> str | None:
    """Return the mountpoint of a mount that shows a version, cannot be written to, and answers; None if none does."""
    for mount in reversed(list_mounts()):
        if mount.is_ours and mount.read_only and not records.is_own_mountpoint(mount.mountpoint):
            answer = ask(mount.mountpoint, f"by_version_uid/{version_uid}/partitions")
            if answer.repository == repository_uid and answer.has_directory:
                return mount.mountpoint
    return None


# What.


def _files_of(image: str) -> list[tuple[str, str]]:
    """Return names and files of the partitions of an image; of one that has none, the image itself."""
    partitions = os.path.join(image, "partitions")
    try:
        numbers = sorted(int(name) for name in os.listdir(partitions) if name.isdecimal())
    except OSError as error:
        raise MountError(f"the partitions of {image} cannot be read: {error.strerror}") from error
    if not numbers:
        return [(_WHOLE, os.path.join(image, _WHOLE))]
    return [(str(number), os.path.join(partitions, str(number))) for number in numbers]


def _open_part(directory: str, name: str, file: str, lock: int) -> Part:
    """Look what a partition holds and mount it. What goes wrong is told in what is returned."""
    part = Part(name=name, file=file, size_bytes=0, outcome=Outcome.FAILED)
    try:
        part = replace(part, size_bytes=os.stat(file).st_size)
        part = replace(part, content=filesystems.probe(file))
        if part.content.nothing_to_see is not None:
            return replace(part, outcome=Outcome.NOTHING, remark=part.content.nothing_to_see)
        device = set_up(file, lambda device: records.note_device(directory, name, device), lock)
    except (MountError, OSError) as error:
        return replace(part, remark=str(error))
    part = replace(part, device=device)
    mountpoint = os.path.join(directory, name)
    os.mkdir(mountpoint, mode=0o700)
    if not part.content.is_file_system:
        return replace(part, outcome=Outcome.READY)
    try:
        options = filesystems.mount(device, mountpoint, part.content.kind)
    except MountError as error:
        command = filesystems.other_command(part.content.kind, device, mountpoint)
        return replace(part, remark=str(error), commands=(command,))
    return replace(part, outcome=Outcome.MOUNTED, mountpoint=mountpoint, options=options)


def _describe_layer(part: Part, parts: list[Part], directory: str) -> Part:
    """Add to a part that is no file system what it is a part of, and the commands that open it."""
    if part.outcome is not Outcome.READY or part.device is None:
        return part
    alike = [
        other.device for other in parts if other.device is not None and other.content.kind == part.content.kind
    ]
    layer = _layer(part, part.device, alike, os.path.join(directory, part.name))
    return replace(part, remark=layer.remark, commands=layer.commands)


def _layer(part: Part, device: str, alike: list[str], mountpoint: str) -> Layer:
    content = part.content
    match content.kind:
        case "LVM2_member":
            group = layers.volume_group(device)
            of_it = [device] if group is None else [other for other in alike if layers.volume_group(other) == group]
            return layers.describe_group(group, of_it, mountpoint, part.file)
        case "crypto_LUKS":
            return layers.describe_luks(device, mountpoint)
        case "BitLocker":
            return layers.describe_bitlocker(device, mountpoint)
        case "linux_raid_member":
            return layers.describe_raid(alike, mountpoint)
        case "zfs_member":
            return layers.describe_zfs(device, content.label, mountpoint)
        case _:
            return layers.describe_other(content.kind or " or ".join(content.ambivalent), device)
