"""Attach a version: mount it, set up loop devices for its partitions, and mount every file system found.

If the repository is already mounted, that mount is used unless something must be written. Otherwise the version gets a
separate mount in which journals can be replayed; everything written there is dropped.

Each step is recorded before it is taken (`backyfs.host.records`), so `backyfs.attach.detachment` can undo it even if
this process is killed at any moment.
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
from backyfs.attach.parts import Access, NeedsLayerError, Outcome, Part, close_parts, open_parts, with_missing_end
from backyfs.errors import MountError
from backyfs.host import records
from backyfs.host.answers import State, ask
from backyfs.host.loops import check_loop_devices
from backyfs.host.mountpoints import is_own
from backyfs.host.mounttable import list_mounts, resolve
from backyfs.host.records import Record
from backyfs.host.writers import require_trusted_path, writers_of
from backyfs.moments import time_name
from backyfs.mount.tree import escape
from backyfs.remedies import Advice
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.attach.layers import Layer
    from backyfs.model import Version

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """The result of `attach`."""

    directory: str
    version_uid: str
    image: str       # the whole image, in a mount
    is_reused: bool  # the mount existed before
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """The version to attach, and where."""

    version: Version
    repository_uid: str
    own_paths: tuple[str, ...]  # of the repository; nothing may be mounted over them
    start_mount: Callable[[str], None]  # mounts the version on a directory, or raises MountError
    directory: str | None = None  # None: a new one in the default place
    scratch: str | None = None    # takes what journals write; None: journals are not replayed


def default_directory(version: Version) -> str:
    """Return the directory in which a version is attached by default."""
    name = escape(version.name).decode("utf-8", errors="surrogateescape")
    return os.path.join(records.DEFAULT_PLACE, f"{name}_{time_name(version.created_at)}")


def attach(request: AttachRequest) -> Attachment:
    """Attach a version. Only root can do this.

    Raises:
        MountError: there are no loop devices, the directory is not empty or others can change it, the version cannot
            be mounted, or it contains nothing to mount. Everything done so far is undone.
    """
    check_loop_devices()
    directory = resolve(request.directory or default_directory(request.version))
    _check_place(directory, request.own_paths)
    _clear_leftovers(directory)
    made = _make_directory(directory)
    with records.locked(directory) as lock:
        if os.listdir(lock):
            raise MountError("is not empty", subject=directory, remedy="name one that is empty or does not exist")
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
        raise MountError(f"has nothing that could be mounted ({reasons})", subject=f"version {uid}")
    records.save(directory, replace(record, is_complete=True))
    return Attachment(
        directory=directory,
        version_uid=uid,
        image=os.path.join(_image_of(record), WHOLE),
        is_reused=record.mountpoint == found,
        parts=tuple(parts),
    )


def _open_image(request: AttachRequest, record: Record, access: Access) -> list[Part]:
    """Mount the version as recorded, unless it is mounted already, and open its partitions."""
    records.save(access.directory, record)
    if record.mountpoint == records.own_mountpoint(access.directory):
        os.mkdir(record.mountpoint)
        request.start_mount(record.mountpoint)
    parts = open_parts(list_slices(_image_of(record)), access)
    return [with_missing_end(_describe_layer(part, parts, access)) for part in parts]


def _image_of(record: Record) -> str:
    return os.path.join(record.mountpoint, "by_version_uid", record.version_uid)


# Where.


def _check_place(directory: str, own_paths: tuple[str, ...]) -> None:
    for own in own_paths:
        if os.path.commonpath((directory, own)) in (directory, own):
            raise MountError(f"overlaps the repository ({own})", subject=directory, remedy="attach it somewhere else")
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise MountError("is not a directory", subject=directory, remedy="name another one")
    above = directory
    while not os.path.lexists(above):
        above = os.path.dirname(above)
    # If the directory exists, locking it checks it again, more strictly.
    require_trusted_path(above, directory)


def _warn_of_readers(directory: str, lock: int) -> None:
    if os.fstat(lock).st_mode & stat.S_IRWXO:
        _log.warning(
            "others can look into %s, and its files keep their owners and modes: users of this host can read the files "
            "of users with the same numbers; run `chmod 700 %s`",
            directory,
            shell_word(directory),
        )


def _make_directory(directory: str) -> tuple[str, ...]:
    """Make a directory and its missing parents. Return what was made, innermost last, except for the default place."""
    missing = []
    path = directory
    while not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for path in reversed(missing):
            # Only for root: the files below belong to users of another system, whose numbers mean other users here.
            os.mkdir(path, mode=0o700 if path == directory else 0o755)
    except OSError as error:
        raise MountError(
            f"cannot be made: {error.strerror}", subject=directory, remedy="name another directory"
        ) from error
    return tuple(path for path in reversed(missing) if path != records.DEFAULT_PLACE)


def _clear_leftovers(directory: str) -> None:
    """Remove the leftovers of an attach that was killed, or whose mount was.

    Raises:
        MountError: something is attached there, or is being attached.
    """
    if not records.is_attachment(directory):
        return
    with records.locked(directory):
        record = records.load(directory)
        if record is not None and record.is_complete and _is_alive(record.mountpoint):
            raise MountError(
                f"is already attached in {directory}",
                subject=f"version {record.version_uid}",
                remedy=Advice.DETACH_OR_NAME_DIRECTORY(path=directory),
            )
        _log.warning("removing what a killed attach or mount left in %s", directory)
        detach_locked(directory)


def _is_alive(mountpoint: str) -> bool:
    is_mounted = any(is_own(mount) and mount.mountpoint == mountpoint for mount in list_mounts())
    return is_mounted and ask(mountpoint).state is not State.DEAD


def _undo(directory: str, made: tuple[str, ...], error: BaseException) -> None:
    try:
        detach_locked(directory)
    except MountError as left:
        left.advise(Advice.DETACH_REST(path=directory))
        _log.error("%s", left)
        _log.debug("the error that is being undone:", exc_info=error)
        return
    for path in reversed(made):  # in case the record was not written yet
        with suppress(OSError):
            os.rmdir(path)


def _find_mount(repository_uid: str, version_uid: str) -> str | None:
    """Return the mountpoint of a read-only mount that shows a version and answers; None if there is none.

    Use only a mount of this user, on a path that nobody else can change. Any other mount could show any image.
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
    """Add a description of a part that is not a file system, and the commands that open it."""
    if part.outcome is not Outcome.READY or part.device is None or part.file is None:
        return part
    alike = [
        other.device for other in parts if other.device is not None and other.content.kind == part.content.kind
    ]
    mountpoint = os.path.join(access.directory, part.name)
    layer = _layer(part, part.device, alike, mountpoint, replay=access.replay)
    bare = "" if access.replay else "; these commands mount it without replaying its journal, as requested"
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
