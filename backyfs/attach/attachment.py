"""Attach a version: mount it, give its partitions loop devices, and mount every file system that is found.

A mount of the repository that is there is used as long as nothing has to be written. Otherwise the version gets a
mount of its own, in which journals can be replayed: what is written there is thrown away.

What is to be done is recorded before it is done (`backyfs.host.records`), so `backyfs.attach.detachment` can undo it,
whenever this was killed.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from backyfs.attach import layers
from backyfs.attach.detachment import detach_locked
from backyfs.attach.image import WHOLE, list_slices
from backyfs.attach.parts import Access, NeedsLayerError, Outcome, Part, close_parts, open_parts, with_remark_on_end
from backyfs.errors import MountError
from backyfs.host import records
from backyfs.host.answers import State, ask
from backyfs.host.loops import check_loop_devices
from backyfs.host.mountpoints import is_own
from backyfs.host.mounttable import list_mounts, resolve
from backyfs.host.records import Record
from backyfs.host.writers import require_own_way, writers_of
from backyfs.moments import time_name
from backyfs.mount.tree import escape
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.attach.layers import Layer
    from backyfs.model import Version

_log = logging.getLogger(__name__)


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
    scratch: str | None = None    # where that mount puts what journals write; None: they are not replayed


def usual_directory(version: Version) -> str:
    """Return where a version is attached unless another place is named."""
    name = escape(version.name).decode("utf-8", errors="surrogateescape")
    return os.path.join(records.USUAL_PLACE, f"{name}_{time_name(version.created_at)}")


def attach(request: AttachRequest) -> Attachment:
    """Attach a version. To be called by root.

    Raises:
        MountError: loop devices cannot be had, the directory is not empty or others can change it, the version cannot
            be mounted, or there is nothing in it to see; what was done is undone.
    """
    check_loop_devices()
    directory = resolve(request.directory or usual_directory(request.version))
    _check_place(directory, request.own_paths)
    _clear_leftovers(directory)
    made = _make_directory(directory)
    with records.locked(directory) as lock:
        if os.listdir(lock):
            raise MountError(f"{directory} is not empty; name a directory that is empty, or one that is not there yet")
        _warn_of_readers(directory, lock)
        try:
            return _attach(request, directory, made, lock)
        except BaseException as error:
            _undo(directory, made, error)
            raise


def _attach(request: AttachRequest, directory: str, made: tuple[str, ...], lock: int) -> Attachment:
    uid = request.version.uid
    found = _find_mount(request.repository_uid, uid)
    os.mkdir(records.hidden_directory(directory), mode=0o700)
    record = Record(version_uid=uid, mountpoint=found or records.own_mountpoint(directory), made=made)
    access = Access(
        directory=directory,
        version_uid=uid,
        lock=lock,
        replay=request.scratch is not None,
        is_writable=found is None,
        scratch=request.scratch or "",
    )
    try:
        parts = _open_image(request, record, access)
    except NeedsLayerError as error:
        _log.debug("%s cannot be used: %s", found, error)
        close_parts(directory)
        record = replace(record, mountpoint=records.own_mountpoint(directory))
        parts = _open_image(request, record, replace(access, is_writable=True))
    if all(part.device is None for part in parts):
        reasons = "; ".join(f"{part.name}: {part.remark}" for part in parts)
        raise MountError(f"version {uid} has nothing that could be mounted ({reasons})")
    records.save(directory, replace(record, is_complete=True))
    return Attachment(
        directory=directory,
        version_uid=uid,
        image=os.path.join(_image_of(record), WHOLE),
        is_reused=record.mountpoint == found,
        parts=tuple(parts),
    )


def _open_image(request: AttachRequest, record: Record, access: Access) -> list[Part]:
    """Mount the version where the record says, unless that was done, and open its partitions."""
    records.save(access.directory, record)
    if record.mountpoint == records.own_mountpoint(access.directory):
        os.mkdir(record.mountpoint)
        request.start_mount(record.mountpoint)
    slices = list_slices(_image_of(record))
    parts = open_parts(slices, access)
    return [
        with_remark_on_end(_describe_layer(part, parts, access), each)
        for part, each in zip(parts, slices, strict=True)
    ]


def _image_of(record: Record) -> str:
    return os.path.join(record.mountpoint, "by_version_uid", record.version_uid)


# Where.


def _check_place(directory: str, own_paths: tuple[str, ...]) -> None:
    for own in own_paths:
        if os.path.commonpath((directory, own)) in (directory, own):
            raise MountError(f"{directory} overlaps the repository ({own}); attach it somewhere else")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise MountError(f"{directory} is not a directory; name another one")
    above = directory
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    # One that is there is looked at again, more strictly, when it is locked.
    require_own_way(above, directory)


def _warn_of_readers(directory: str, lock: int) -> None:
    if os.fstat(lock).st_mode & stat.S_IRWXO:
        _log.warning(
            "others can look into %s, and the files there are shown with the owners and modes they had: users of this "
            "host read what users with the same numbers could; run `chmod 700 %s`",
            directory,
            shell_word(directory),
        )


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
                f"version {record.version_uid} is attached in {directory} already; run "
                f"`backyfs detach {shell_word(directory)}` first, or name another directory"
            )
        _log.warning("%s holds what is left of an attach or mount that was killed; it is taken away", directory)
        detach_locked(directory)


def _is_alive(mountpoint: str) -> bool:
    is_mounted = any(is_own(mount) and mount.mountpoint == mountpoint for mount in list_mounts())
    return is_mounted and ask(mountpoint).state is not State.DEAD


def _undo(directory: str, made: tuple[str, ...], error: BaseException) -> None:
    try:
        detach_locked(directory)
    except MountError as left:
        _log.error("%s; `backyfs detach %s` takes away what is left", left, shell_word(directory))
        _log.debug("it is left there because of an error", exc_info=error)
        return
    for path in reversed(made):  # where the record was not yet written
        with suppress(OSError):
            os.rmdir(path)


def _find_mount(repository_uid: str, version_uid: str) -> str | None:
    """Return the mountpoint of a mount that shows a version, cannot be written to, and answers; None if none does.

    Only a mount of this user counts, on a path that nobody else can change: another one could show any image.
    """
    for mount in reversed(list_mounts()):
        if is_own(mount) and mount.read_only and not records.is_own_mountpoint(mount.mountpoint):
            if writers_of(os.path.dirname(mount.mountpoint), (0, os.geteuid())):
                continue
            answer = ask(mount.mountpoint, f"by_version_uid/{version_uid}/partitions")
            if answer.repository == repository_uid and answer.has_directory:
                return mount.mountpoint
    return None


# What.


def _describe_layer(part: Part, parts: list[Part], access: Access) -> Part:
    """Add to a part that is not a file system what it belongs to, and the commands that open it."""
    if part.outcome is not Outcome.READY or part.device is None or part.file is None:
        return part
    alike = [
        other.device for other in parts if other.device is not None and other.content.kind == part.content.kind
    ]
    mountpoint = os.path.join(access.directory, part.name)
    layer = _layer(part, part.device, alike, mountpoint, replay=access.replay)
    bare = "" if access.replay else "; these commands show it bare, without replaying its journal (--no-replay)"
    return replace(part, remark=layer.remark + (bare if layer.commands else ""), commands=layer.commands)


def _layer(part: Part, device: str, alike: list[str], mountpoint: str, *, replay: bool) -> Layer:
    content = part.content
    match content.kind:
        case "LVM2_member":
            group = layers.volume_group(device)
            of_it = [device] if group is None else [other for other in alike if layers.volume_group(other) == group]
            return layers.describe_group(group, of_it, mountpoint, part.file or "", replay=replay)
        case "crypto_LUKS":
            return layers.describe_luks(device, mountpoint, replay=replay)
        case "BitLocker":
            return layers.describe_bitlocker(device, mountpoint)
        case "linux_raid_member":
            return layers.describe_raid(alike, mountpoint)
        case "zfs_member":
            return layers.describe_zfs(device, content.label, mountpoint)
        case _:
            return layers.describe_other(content.kind or " or ".join(content.ambivalent), device)
