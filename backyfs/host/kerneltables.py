"""What the kernel shows of itself below /proc and /sys. A chroot or a bare container may lack either."""

from __future__ import annotations

import os

from backyfs.errors import MountError

MOUNTS = "/proc/self/mountinfo"
DEVICES = "/sys/block"
_REMEDIES = {MOUNTS: "mount -t proc proc /proc", DEVICES: "mount -t sysfs sysfs /sys"}


def shows_mounts() -> bool:
    """Tell whether the kernel shows what is mounted."""
    return os.path.exists(MOUNTS)


def check_kernel_tables() -> None:
    """Make sure that mounts and devices can be looked up, for work that would go wrong without.

    Raises:
        MountError: they cannot.
    """
    for path, remedy in _REMEDIES.items():
        if not os.path.exists(path):
            raise MountError(f"{path} does not exist, and what is mounted or in use cannot be seen; run `{remedy}`")
