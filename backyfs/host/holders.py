"""Devices that the device mapper and the RAID driver stacked on others, and the commands to close them. Reads /sys."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.host.kerneltables import read_value
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Iterable

    from backyfs.host.mounttable import Mount

SYS_BLOCK = "/sys/block"
_LVM = "LVM-"        # start of the uuid in the device mapper; each user of the device mapper has its own
_CRYPT = "CRYPT-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A device that is stacked on another one."""

    name: str     # in the kernel: dm-0, md127
    label: str    # for people: vg-root
    uid: str      # in the device mapper; empty for other devices
    number: str   # major:minor

    @property
    def what(self) -> str:
        """A description for people."""
        if self.uid.startswith(_LVM):
            return f"logical volume {self.label}"
        if self.uid.startswith(_CRYPT):
            return f"opened LUKS device {self.label}"
        return self.label

    @property
    def command(self) -> str:
        """The command that closes it."""
        if self.uid.startswith(_CRYPT):
            return f"cryptsetup close {shell_word(self.label)}"
        if self.name.startswith("md"):
            return f"mdadm --stop {shell_word(f'/dev/{self.name}')}"
        return f"dmsetup remove {shell_word(self.label)}"


def holders_of(names: Iterable[str], block: str = SYS_BLOCK) -> list[Holder]:
    """Return everything stacked on devices with these kernel names, uppermost first."""
    found: list[Holder] = []
    for name in names:
        directory = f"{block}/{name}"
        try:
            above = sorted(os.listdir(f"{directory}/holders"))
        except OSError:  # the device is gone
            continue
        holder = Holder(
            name=name,
            label=read_value(f"{directory}/dm/name") or name,
            uid=read_value(f"{directory}/dm/uuid"),
            number=read_value(f"{directory}/dev"),
        )
        found += [each for each in [*holders_of(above, block), holder] if each not in found]
    return found


def commands_to_close(holders: Iterable[Holder], mounts: Iterable[Mount]) -> list[str]:
    """Return the commands that unmount and close devices, in order."""
    listed = list(holders)
    numbers = {holder.number for holder in listed}
    unmounts = [f"umount {shell_word(mount.mountpoint)}" for mount in mounts if mount.device in numbers]
    return [*reversed(unmounts), *(holder.command for holder in listed)]


def has_volume_group(group_uid: str, block: str = SYS_BLOCK) -> bool:
    """Return whether a logical volume of a volume group with this uid is active on this host."""
    wanted = _LVM + group_uid.replace("-", "")
    try:
        names = os.listdir(block)
    except OSError:
        return False
    return any(read_value(f"{block}/{name}/dm/uuid").startswith(wanted) for name in names if name.startswith("dm-"))
