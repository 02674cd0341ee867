"""What the kernel shows of itself below /proc and /sys. A chroot or a bare container may lack either.

Lines end with a newline and with nothing else: the kernel writes names as they are, with carriage returns and all that
`str.splitlines` takes for the end of a line. So everything is read as bytes.
"""

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


def read_lines(path: str) -> list[bytes]:
    """Return the lines of a table of the kernel, without their newlines.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


def read_value(path: str) -> str:
    """Return what a file of the kernel with a single value says, without the newline; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read().removesuffix(b"\n"))
    except OSError:
        return ""
