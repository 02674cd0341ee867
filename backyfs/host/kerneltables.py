"""Read the tables of the kernel in /proc and /sys. A chroot or a minimal container may lack either.

Only a newline ends a line. The kernel writes names unchanged, with carriage returns and other characters at which
`str.splitlines` would split, so everything is read as bytes.
"""

from __future__ import annotations

import os

from backyfs.errors import MountError

MOUNTS = "/proc/self/mountinfo"
DEVICES = "/sys/block"
_REMEDIES = {MOUNTS: "mount -t proc proc /proc", DEVICES: "mount -t sysfs sysfs /sys"}


def shows_mounts() -> bool:
    """Return whether the kernel shows its mounts."""
    return os.path.exists(MOUNTS)


def check_kernel_tables() -> None:
    """Make sure that mounts and devices can be looked up, for work that depends on it.

    Raises:
        MountError: they cannot.
    """
    for path, remedy in _REMEDIES.items():
        if not os.path.exists(path):
            raise MountError(
                "does not exist, so mounts and devices in use cannot be seen", subject=path, remedy=f"run `{remedy}`"
            )


def read_lines(path: str) -> list[bytes]:
    """Return the lines of a table of the kernel, without their newlines.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def read_value(path: str) -> str:
    """Return the value in a file of the kernel, without the newline; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read().removesuffix(b"\n"))
    except OSError:
        return ""


def list_entries(directory: str) -> list[str]:
    """Return the sorted names in a directory of the kernel; none if it cannot be read."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
