"""Volume groups, encrypted devices and RAID in a backup: what they are, and the commands that open them.

They are not opened automatically: that takes a passphrase, or could meet what is open on this host under the same
name. Where journals are to be replayed, the device takes what is written, and it is thrown away at the end.

The names of groups, volumes and pools come from the image, so anybody may have chosen them, and root copies these
commands: every word is quoted, and none is a name that LVM or ZFS would not have taken. What is in the image is mounted
as `attach` itself does it, without programs with the rights of others and without device nodes.
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
from backyfs.text import shell_word, shell_words

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNKNOWN = "VG"  # where LVM is not installed, or does not tell
_FORGED = "the image was tampered with or is damaged, and there are no commands for it"
# lvm(8), VALID NAMES, and zpool-create(8).
_LVM_NAME = re.compile(r"(?!\.{1,2}\Z)[a-zA-Z0-9+_.][a-zA-Z0-9+_.-]{0,126}")
_ZFS_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.: -]{0,254}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What a device is a part of, and how one gets at what is in it."""

    remark: str
    commands: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeGroup:
    """The volume group of a device, as its own metadata have it."""

    name: str
    uid: str
    volumes: tuple[str, ...]  # the names of its logical volumes


def volume_group(device: str) -> VolumeGroup | None:
    """Return the volume group that a device belongs to; None if LVM does not tell."""
    fields = _lvm("pvs", device, "vg_name,vg_uuid")
    if not fields:
        return None
    *name, uid = fields[0]  # a name that LVM does not allow can have the separator in it
    volumes = ["|".join(row) for row in _lvm("lvs", device, "lv_name")]
    return VolumeGroup(name="|".join(name), uid=uid, volumes=tuple(volumes))


def describe_group(
    group: VolumeGroup | None, devices: Sequence[str], directory: str, image: str, *, replay: bool
) -> Layer:
    """Say how the logical volumes on some devices are read. `image` is the file behind the first one."""
    name = group.name if group is not None else _UNKNOWN
    volumes = (group.volumes if group is not None else ()) or ("LV",)
    if not _LVM_NAME.fullmatch(name):
        return Layer(remark=_without_group(name), commands=())
    if group is not None and has_volume_group(group.uid):
        return _group_of_this_host(name, image)
    allowed = [volume for volume in volumes if _LVM_NAME.fullmatch(volume)]
    others = "".join(
        f"; its volume {volume!r} has a name that LVM does not allow, and is left out"
        for volume in volumes if volume not in allowed
    )  # fmt: skip
    return Layer(
        remark=f"part of the LVM volume group {name}{others}",
        commands=_group_commands(name, allowed, devices, os.path.dirname(directory), replay=replay),
    )


def _without_group(name: str) -> str:
    if not name:
        return f"an LVM physical volume of which LVM reports no volume group: it is in none, or {_FORGED}"
    return f"part of an LVM volume group with the name {name!r}, which LVM does not allow: {_FORGED}"


def _group_commands(
    name: str, volumes: Sequence[str], devices: Sequence[str], above: str, *, replay: bool
) -> tuple[str, ...]:
    """Return the commands that mount volumes below a directory, and those that undo it."""
    if not volumes:
        return ()
    change = ("vgchange", "--devices", ",".join(devices), "--activate")
    # An LV that may be written to cannot be mapped onto a read-only device; the list makes LVM map it read-only.
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
    """Say what to do where the original is active: LVM would take one for the other; a copy gets another name."""
    root, _, rest = image.partition("/by_version_uid/")
    uid = rest.partition("/")[0]
    copy = f"{name}_backup"  # a name that LVM allows, as its first part is
    return Layer(
        remark=f"part of the LVM volume group {name}, which is active on this host: do not activate it as it is, "
        "rename it in a mount that can be written to",
        commands=(
            f"backyfs mount --version {shell_word(uid)} --writable /var/tmp/{copy} --discard /mnt",
            shell_words("losetup", "--find", "--show", f"/mnt{image.removeprefix(root)}"),
            f"vgimportclone --devices /dev/loopN --basevgname {copy} /dev/loopN",
            f"vgchange --devices /dev/loopN --activate y {copy}",
        ),
    )


def describe_luks(device: str, directory: str, *, replay: bool) -> Layer:
    """Say how a LUKS device is read."""
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
    """Say how a BitLocker device is read."""
    name = f"backyfs-{device.rpartition('/')[2]}"
    return Layer(
        remark="encrypted with BitLocker: its recovery key or password opens it",
        commands=(
            shell_words("cryptsetup", "open", "--readonly", "--type", "bitlk", device, name),
            _mount(f"/dev/mapper/{name}", directory, replay=True),  # ntfs: it has no option like noload
            shell_words("umount", directory),
            shell_words("cryptsetup", "close", name),
        ),
    )


def describe_raid(devices: Sequence[str], directory: str) -> Layer:
    """Say how the members of a Linux RAID are read."""
    return Layer(
        # An array that may be written to could begin to copy all of one member onto another.
        remark="member of a Linux RAID; without the others it starts only if it does not need them. Started read-only, "
        "it is shown without replaying the journal in it: files written shortly before the backup can be missing",
        commands=(
            shell_words("mdadm", "--assemble", "--readonly", "--run", "/dev/md/backyfs", *devices),
            _mount("/dev/md/backyfs", directory, replay=False),
            shell_words("umount", directory),
            "mdadm --stop /dev/md/backyfs",
        ),
    )


def describe_zfs(device: str, label: str, directory: str) -> Layer:
    """Say how a device of a ZFS pool is read."""
    pool = label or "POOL"
    if not _ZFS_NAME.fullmatch(pool):
        return Layer(
            remark=f"part of a ZFS pool with the name {pool!r}, which ZFS does not allow: {_FORGED}",
            commands=(),
        )
    options = ("-o", "readonly=on", "-o", "nosuid,nodev", "-R", directory, "-d", device)
    return Layer(
        remark=f"part of the ZFS pool {pool}",
        commands=(shell_words("zpool", "import", *options, pool), shell_words("zpool", "export", pool)),
    )


def describe_other(kind: str, device: str) -> Layer:
    """Say what is known of a device of another kind."""
    return Layer(remark=f"{kind}: a part of something larger; {device} is ready for what opens it", commands=())


def _lvm(program: str, device: str, fields: str) -> list[list[str]]:
    """Return what LVM tells of one device, without looking at others and without locks."""
    options = ["--readonly", "--devices", device, "--noheadings", "--separator", "|", "--options", fields]
    try:
        done = run(program, *options, timeout_s=30)
    except MountError:  # not installed
        return []
    return [line.strip().split("|") for line in done.stdout.split("\n") if line.strip()]
