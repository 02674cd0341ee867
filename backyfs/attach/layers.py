"""Volume groups, encrypted devices and RAID in a backup: their descriptions, and the commands that open them.

They are not opened automatically. That may need a passphrase, or could collide with something of the same name that is
open on this host. If journals are replayed, the device accepts writes, which are dropped at the end.

Names of groups, volumes and pools come from the image, so anybody may have chosen them, and root copies these commands.
Therefore every word is quoted, and only names that LVM or ZFS allow are used. The commands mount file systems as
`attach` does: without setuid programs and device nodes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.attach.filesystems import ALWAYS
from backyfs.errors import MountError
from backyfs.host.holders import has_volume_group
from backyfs.host.programs import run
from backyfs.remedies import Advice, Remedy
from backyfs.text import shell_word, shell_words

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNKNOWN = "VG"  # if LVM is not installed, or does not report the name
_FORGED = "the image was tampered with or is damaged, so there are no commands for it"
# lvm(8), VALID NAMES, and zpool-create(8).
_LVM_NAME = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]{0,126}")
_ZFS_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.: -]{0,254}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A device that is a part of something larger: its description, and the commands that open it."""

    remark: str
    commands: tuple[str | Remedy, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """The volume group of a device, according to the metadata on the device."""

    name: str
    uid: str
    volumes: tuple[str, ...]  # the names of its logical volumes


def volume_group(device: str) -> VolumeGroup | None:
    """Return the volume group that a device belongs to; None if LVM does not report one."""
    fields = _lvm("pvs", device, "vg_name,vg_uuid")
    if not fields:
        return None
    *name, uid = fields[0]  # an invalid name may contain the separator
    volumes = ["|".join(row) for row in _lvm("lvs", device, "lv_name")]
    return VolumeGroup(name="|".join(name), uid=uid, volumes=tuple(volumes))


def describe_group(
    group: VolumeGroup | None, devices: Sequence[str], directory: str, image: str, *, replay: bool
) -> Layer:
    """Describe how to read the logical volumes on some devices. `image` is the file behind the first one."""
    name = group.name if group is not None else _UNKNOWN
    volumes = (group.volumes if group is not None else ()) or ("LV",)
    if not _LVM_NAME.fullmatch(name):
        return Layer(remark=_without_group(name), commands=())
    if group is not None and has_volume_group(group.uid):
        return _group_of_this_host(name, image)
    allowed = [volume for volume in volumes if _LVM_NAME.fullmatch(volume)]
    others = "".join(
        f"; its volume {volume!r} is left out, because LVM does not allow this name"
        for volume in volumes if volume not in allowed
    )  # fmt: skip
    return Layer(
        remark=f"part of the LVM volume group {name}{others}",
        commands=_group_commands(name, allowed, devices, os.path.dirname(directory), replay=replay),
    )


def _without_group(name: str) -> str:
    if not name:
        return f"an LVM physical volume without a volume group, or {_FORGED}"
    return f"part of an LVM volume group named {name!r}, which LVM does not allow: {_FORGED}"


def _group_commands(
    name: str, volumes: Sequence[str], devices: Sequence[str], above: str, *, replay: bool
) -> tuple[str, ...]:
    """Return the commands that mount volumes below a directory, and the commands that undo this."""
    if not volumes:
        return ()
    change = ("vgchange", "--devices", ",".join(devices), "--activate")
    # A writable volume cannot be mapped onto a read-only device; this list makes LVM map it read-only.
    read_only = () if replay else ("--config", f'activation/read_only_volume_list=["{name}"]')
    places = [os.path.join(above, f"{name}-{volume}") for volume in volumes]
    mounts = [
        _mount(f"/dev/{name}/{volume}", place, replay=replay) for volume, place in zip(volumes, places, strict=True)
    ]
    return (
        shell_words(*change, "y", *read_only, name),
        shell_words("mkdir", *places),
        *mounts,
        shell_words("umount", *places),
        shell_words(*change, "n", name),
    )


def _mount(device: str, directory: str, *, replay: bool) -> str:
    return shell_words("mount", "-o", ALWAYS if replay else f"{ALWAYS},noload", device, directory)


def _group_of_this_host(name: str, image: str) -> Layer:
    """Describe what to do if the original is active: rename the copy, because LVM would confuse the two."""
    root, _, rest = image.partition("/by_version_uid/")
    uid = rest.partition("/")[0]
    copy = f"{name}_backup"  # LVM allows this name, because it allows its first part
    return Layer(
        remark=f"part of the LVM volume group {name}, which is also active on this host: do not activate it as it is, "
        "but rename it in a writable mount",
        commands=(
            Advice.MOUNT_FOR_REPAIR(uid=shell_word(uid), place=copy),
            shell_words("losetup", "--find", "--show", f"/mnt{image.removeprefix(root)}"),
            f"vgimportclone --devices /dev/loopN --basevgname {copy} /dev/loopN",
            f"vgchange --devices /dev/loopN --activate y {copy}",
        ),
    )


def describe_luks(device: str, directory: str, *, replay: bool) -> Layer:
    """Describe how to read a LUKS device."""
    name = f"backyfs-{device.rpartition('/')[2]}"
    return Layer(
        remark="encrypted with LUKS: its passphrase opens it",
        commands=(
            shell_words("cryptsetup", "open", *(() if replay else ("--readonly",)), device, name),
            _mount(f"/dev/mapper/{name}", directory, replay=replay),
            shell_words("umount", directory),
            shell_words("cryptsetup", "close", name),
        ),
    )


def describe_bitlocker(device: str, directory: str) -> Layer:
    """Describe how to read a BitLocker device."""
    name = f"backyfs-{device.rpartition('/')[2]}"
    return Layer(
        remark="encrypted with BitLocker: its recovery key or password opens it",
        commands=(
            shell_words("cryptsetup", "open", "--readonly", "--type", "bitlk", device, name),
            _mount(f"/dev/mapper/{name}", directory, replay=True),  # ntfs has no option like noload
            shell_words("umount", directory),
            shell_words("cryptsetup", "close", name),
        ),
    )


def describe_raid(devices: Sequence[str], directory: str) -> Layer:
    """Describe how to read the members of a Linux RAID."""
    return Layer(
        # A writable array could start to copy one whole member onto another.
        remark="member of a Linux RAID; it starts without the other members only if it does not need them. Because it "
        "is started read-only, its journal is not replayed: files written shortly before the backup can be missing",
        commands=(
            shell_words("mdadm", "--assemble", "--readonly", "--run", "/dev/md/backyfs", *devices),
            _mount("/dev/md/backyfs", directory, replay=False),
            shell_words("umount", directory),
            "mdadm --stop /dev/md/backyfs",
        ),
    )


def describe_zfs(device: str, label: str, directory: str) -> Layer:
    """Describe how to read a device of a ZFS pool."""
    pool = label or "POOL"
    if not _ZFS_NAME.fullmatch(pool):
        return Layer(
            remark=f"part of a ZFS pool named {pool!r}, which ZFS does not allow: {_FORGED}",
            commands=(),
        )
    options = ("-o", "readonly=on", "-o", "nosuid,nodev", "-R", directory, "-d", device)
    return Layer(
        remark=f"part of the ZFS pool {pool}",
        commands=(shell_words("zpool", "import", *options, pool), shell_words("zpool", "export", pool)),
    )


def describe_other(kind: str, device: str) -> Layer:
    """Describe a device of another kind."""
    return Layer(remark=f"{kind}: a part of something larger; {device} is ready for programs that open it", commands=())


def _lvm(program: str, device: str, fields: str) -> list[list[str]]:
    """Return what LVM reports about one device, without looking at others and without locks."""
    options = ["--readonly", "--devices", device, "--noheadings", "--separator", "|", "--options", fields]
    try:
        done = run(program, *options, timeout_s=30)
    except MountError:  # not installed
        return []
    return [line.strip().split("|") for line in done.stdout.split("\n") if line.strip()]
