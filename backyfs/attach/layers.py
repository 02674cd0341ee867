"""Volume groups, encrypted devices and RAID in a backup: what they are, and the commands that open them.

They are not opened automatically: that takes a passphrase, or could meet what is open on this host under the same
name. Where journals are to be replayed, the device takes what is written, and it is thrown away at the end.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.holders import has_volume_group
from backyfs.host.programs import run

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNKNOWN = "VG"  # where LVM is not installed, or does not tell


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
    if not fields or len(fields[0]) != 2:
        return None
    name, uid = fields[0]
    volumes = [row[0] for row in _lvm("lvs", device, "lv_name") if row]
    return VolumeGroup(name=name, uid=uid, volumes=tuple(volumes))


def describe_group(
    group: VolumeGroup | None, devices: Sequence[str], directory: str, image: str, *, replay: bool
) -> Layer:
    """Say how the logical volumes on some devices are read. `image` is the file behind the first one."""
    name = group.name if group is not None else _UNKNOWN
    volumes = (group.volumes if group is not None else ()) or ("LV",)
    if group is not None and has_volume_group(group.uid):
        return _group_of_this_host(name, image)
    listed = ",".join(devices)
    # An LV that may be written to cannot be mapped onto a read-only device; the list makes LVM map it read-only.
    read_only = "" if replay else f""" --config 'activation/read_only_volume_list=["{name}"]'"""
    places = [os.path.join(os.path.dirname(directory), f"{name}-{volume}") for volume in volumes]
    mounts = [
        _mount(f"/dev/{name}/{volume}", place, replay=replay) for volume, place in zip(volumes, places, strict=True)
    ]
    return Layer(
        remark=f"part of the LVM volume group {name}",
        commands=(
            f"vgchange --devices {listed} --activate y{read_only} {name}",
            f"mkdir {' '.join(map(quote, places))}",
            *mounts,
            f"umount {' '.join(map(quote, places))}",
            f"vgchange --devices {listed} --activate n {name}",
        ),
    )


def _mount(device: str, directory: str, *, replay: bool) -> str:
    return f"mount -o {'ro' if replay else 'ro,noload'} {device} {quote(directory)}"


def _group_of_this_host(name: str, image: str) -> Layer:
    """Say what to do where the original is active: LVM would take one for the other; a copy gets another name."""
    root, _, rest = image.partition("/by_version_uid/")
    uid = rest.partition("/")[0]
    copy = f"{name}_backup"
    return Layer(
        remark=f"part of the LVM volume group {name}, which is active on this host: do not activate it as it is, "
        "rename it in a mount that can be written to",
        commands=(
            f"backyfs mount --version {uid} --writable /var/tmp/{copy} --discard /mnt",
            f"losetup --find --show /mnt{image.removeprefix(root)}",
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
            f"cryptsetup open {'' if replay else '--readonly '}{device} {name}",
            _mount(f"/dev/mapper/{name}", directory, replay=replay),
            f"umount {quote(directory)}",
            f"cryptsetup close {name}",
        ),
    )


def describe_bitlocker(device: str, directory: str) -> Layer:
    """Say how a BitLocker device is read."""
    name = f"backyfs-{device.rpartition('/')[2]}"
    return Layer(
        remark="encrypted with BitLocker: its recovery key or password opens it",
        commands=(
            f"cryptsetup open --readonly --type bitlk {device} {name}",
            f"mount -o ro /dev/mapper/{name} {quote(directory)}",
            f"umount {quote(directory)}",
            f"cryptsetup close {name}",
        ),
    )


def describe_raid(devices: Sequence[str], directory: str) -> Layer:
    """Say how the members of a Linux RAID are read."""
    return Layer(
        # An array that may be written to could begin to copy all of one member onto another.
        remark="member of a Linux RAID; without the others it starts only if it does not need them. Started read-only, "
        "it is shown without replaying the journal in it: files written shortly before the backup can be missing",
        commands=(
            f"mdadm --assemble --readonly --run /dev/md/backyfs {' '.join(devices)}",
            _mount("/dev/md/backyfs", directory, replay=False),
            f"umount {quote(directory)}",
            "mdadm --stop /dev/md/backyfs",
        ),
    )


def describe_zfs(device: str, label: str, directory: str) -> Layer:
    """Say how a device of a ZFS pool is read."""
    pool = label or "POOL"
    return Layer(
        remark=f"part of the ZFS pool {pool}",
        commands=(
            f"zpool import -o readonly=on -R {quote(directory)} -d {device} {quote(pool)}",
            f"zpool export {quote(pool)}",
        ),
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
    return [line.strip().split("|") for line in done.stdout.splitlines() if line.strip()]
