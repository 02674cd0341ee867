"""Open the partitions of an image: examine each, set up its loop device, and mount its file system."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from backyfs.attach import filesystems
from backyfs.attach.filesystems import Content
from backyfs.attach.foreign import has_open_journal
from backyfs.attach.image import Slice
from backyfs.attach.superblocks import declared_bytes, has_external_log, needs_replay
from backyfs.errors import MountError
from backyfs.host import records
from backyfs.host.loops import find_loop, release, set_up
from backyfs.host.mounttable import list_mounts
from backyfs.host.unmounting import call_umount
from backyfs.text import shell_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.remedies import Remedy

_ELSEWHERE = "is on a device that this version does not contain"
_CAN_BE_MISSING = "files written shortly before the backup can be missing or damaged"


class Outcome(Enum):
    """The result for a partition."""

    MOUNTED = "mounted"
    BARE = "bare"        # mounted, but its journal could not be replayed
    READY = "ready"      # its loop device is ready for the commands that open it
    NOTHING = "nothing"  # it contains nothing to mount
    TRUNCATED = "truncated"  # it extends past the end of the image, and cannot be mounted
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Slice):
    """A partition of an attached image, or the image itself, and what `attach` did with it."""

    outcome: Outcome
    content: Content = field(default_factory=Content)
    device: str | None = None
    mountpoint: str | None = None
    options: str = ""          # of its mount
    remark: str = ""           # why it is not mounted, or what is missing from it
    commands: tuple[str | Remedy, ...] = ()  # to continue with, and then to undo that


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to open the partitions of an image."""

    directory: str      # of the attachment
    version_uid: str
    lock: int           # descriptor of the lock of the directory
    replay: bool        # replay journals
    is_writable: bool   # the mount accepts the writes of a journal
    scratch: str = ""   # the directory that takes these writes


class NeedsLayerError(MountError):
    """A partition must be written to, but the mount is read-only."""


def open_parts(slices: Sequence[Slice], access: Access) -> list[Part]:
    """Open partitions. If one fails, its part has the reason.

    Raises:
        NeedsLayerError: a journal may need to be replayed, but the mount is read-only.
    """
    examined = [_examine(each) for each in slices]
    journals = {part.name for part in examined if any(part.content.is_journal_of(each.content) for each in examined)}
    opened: dict[str, Part] = {}
    # Journals first: their file systems need the devices to be mounted.
    for part in sorted(examined, key=lambda part: part.name not in journals):
        opened[part.name] = _open(part, list(opened.values()), access, is_journal=part.name in journals)
    return [opened[each.name] for each in slices]


def close_parts(directory: str) -> None:
    """Unmount and detach everything that `open_parts` has opened in the directory of an attachment.

    Raises:
        MountError: something is already in use.
    """
    devices = records.noted_devices(directory)
    mounted = {mount.mountpoint: mount for mount in list_mounts()}
    for name in devices:
        mount = mounted.get(os.path.join(directory, name))
        if mount is not None:
            call_umount(mount)
    for device in devices.values():
        _release_device(device)


def with_missing_end(part: Part) -> Part:
    """Return a part with a remark if it, or its file system, extends past the end of the image."""
    fact = _missing_end(part)
    if fact is None:
        return part
    if part.outcome in {Outcome.FAILED, Outcome.TRUNCATED}:
        remark = f"{fact}, so it cannot be mounted{f' ({part.remark})' if part.remark else ''}"
        return replace(part, outcome=Outcome.TRUNCATED, remark=remark)
    return replace(part, remark=f"{part.remark}; {fact}" if part.remark else fact)


def _missing_end(part: Part) -> str | None:
    if part.file is None:
        return f"all of its {part.missing_bytes} bytes are past the end of the image"
    if part.missing_bytes:
        return f"its last {part.missing_bytes} bytes are past the end of the image"
    with suppress(OSError):
        declared = declared_bytes(part.content.kind, partial(_read, part))
        if declared is not None and declared > part.size_bytes:
            return f"its file system has {declared} bytes, but only {part.size_bytes} of them are in the image"
    return None


def _examine(each: Slice) -> Part:
    part = Part(**asdict(each), outcome=Outcome.FAILED)
    if each.file is None:
        return part
    if each.overlaps:  # a malicious table could request a device for each of a hundred views of the same bytes
        remark = f"it overlaps partition {each.overlaps} and gets no device; its bytes are in {each.file}"
        return replace(part, outcome=Outcome.NOTHING, remark=remark)
    try:
        return replace(part, content=filesystems.probe(each.file), outcome=Outcome.NOTHING)
    except MountError as error:
        return replace(part, remark=error.without(each.file))


def _open(part: Part, opened: Sequence[Part], access: Access, *, is_journal: bool) -> Part:
    if part.outcome is Outcome.FAILED or part.remark:
        return part
    why_empty = part.content.why_empty
    part = replace(part, remark=why_empty or "")
    if why_empty is not None and not is_journal:
        return part
    try:
        if part.content.is_file_system:
            journal = next((each.device for each in opened if each.content.is_journal_of(part.content)), None)
            return _mount(part, journal, access)
        part = replace(part, device=_set_up(part, access, writable=access.replay))
    except NeedsLayerError:
        raise
    except (MountError, OSError) as error:
        return replace(part, outcome=Outcome.FAILED, remark=str(error))
    if is_journal:
        return part
    _make_mountpoint(part, access)
    return replace(part, outcome=Outcome.READY)


# File systems.


def _mount(part: Part, journal: str | None, access: Access) -> Part:
    """Mount a file system. Replay its journal if requested."""
    content = part.content
    if journal is None and has_external_log(content.kind, partial(_read, part)):
        commands = (shell_words("mount", "-o", f"{filesystems.ALWAYS},nouuid,logdev=LOG", part.file or "", "DIR"),)
        return replace(part, outcome=Outcome.FAILED, remark=f"its log {_ELSEWHERE}", commands=commands)
    obstacle = _obstacle(part, journal)
    can_be_replayed = content.has_journal and (journal is not None or not content.journal_uid)
    if obstacle is None and not can_be_replayed:
        return _mount_once(part, journal, access)
    if not access.replay:
        bare = _mount_once(part, journal, access)
        remark = f"the bare image: its journal was not replayed, as requested, so {_CAN_BE_MISSING}"
        return replace(bare, remark=remark) if bare.outcome is Outcome.MOUNTED else bare
    return _mount_replayed(part, journal, access) if obstacle is None else _mount_bare(part, journal, access, obstacle)


def _obstacle(part: Part, journal: str | None) -> str | None:
    """Return why a journal cannot be replayed; None if it can, or is empty."""
    content = part.content
    if has_open_journal(content.kind, partial(_read, part)):
        return "Linux does not replay it"
    if journal is None and content.journal_uid and needs_replay(content.kind, partial(_read, part)):
        return f"it {_ELSEWHERE}"
    return None


def _mount_replayed(part: Part, journal: str | None, access: Access) -> Part:
    """Mount a file system as it would be after a boot. If that fails, mount it as it is in the image."""
    errors_before = _write_errors(access)
    replayed = _mount_once(part, journal, access, replay=True)
    if replayed.outcome is Outcome.MOUNTED:
        return replayed
    if not access.is_writable:  # which is enough for an empty journal
        raise NeedsLayerError(replayed.remark)
    reason = replayed.remark
    if _write_errors(access) > errors_before:
        reason += f"; there was no room for it in {access.scratch}, set TMPDIR to a directory with more room"
    assert replayed.device is not None
    _release_device(replayed.device)
    return _mount_bare(part, journal, access, reason)


def _mount_bare(part: Part, journal: str | None, access: Access, reason: str) -> Part:
    bare = _mount_once(part, journal, access)
    if bare.outcome is not Outcome.MOUNTED:
        return bare
    return replace(
        bare,
        outcome=Outcome.BARE,
        remark=f"the bare image: its journal could not be replayed ({reason}), so {_CAN_BE_MISSING}",
        commands=filesystems.repair_commands(part.content.kind, access.version_uid, part.name),
    )


def _mount_once(part: Part, journal: str | None, access: Access, *, replay: bool = False) -> Part:
    kind = part.content.kind
    device = _set_up(part, access, writable=replay and access.is_writable)
    mountpoint = _make_mountpoint(part, access)
    part = replace(part, device=device)
    try:
        options = filesystems.mount(device, mountpoint, kind, replay=replay, journal=journal)
    except MountError as error:
        command = filesystems.other_command(kind, device, mountpoint)
        return replace(part, outcome=Outcome.FAILED, remark=error.without(f"{mountpoint}:"), commands=(command,))
    return replace(part, outcome=Outcome.MOUNTED, mountpoint=mountpoint, options=options)


def _set_up(part: Part, access: Access, *, writable: bool) -> str:
    assert part.file is not None
    if writable and not access.is_writable:
        raise NeedsLayerError("may have to be written to", subject=part.file)
    announce = partial(records.note_device, access.directory, part.name)
    return set_up(part.file, announce, access.lock, writable=writable)


def _release_device(device: str) -> None:
    loop = find_loop(device)
    if loop is not None:
        release(loop)


def _make_mountpoint(part: Part, access: Access) -> str:
    mountpoint = os.path.join(access.directory, part.name)
    with suppress(FileExistsError):
        os.mkdir(mountpoint, mode=0o700)
    return mountpoint


def _read(part: Part, offset: int, size: int) -> bytes:
    assert part.file is not None
    with open(part.file, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


def _write_errors(access: Access) -> int:
    """Return how many writes the mount of the attachment has refused."""
    path = os.path.join(records.own_mountpoint(access.directory), "stats")
    with suppress(OSError), open(path, encoding="ascii") as lines:
        for line in lines:
            name, _, number = line.partition(" ")
            if name == "write_errors":
                return int(number)
    return 0
