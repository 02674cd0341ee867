"""Run the programs of the host that handle loop devices and file systems: losetup, blkid, mount and so on.

They run in the C locale, because their output is parsed. They are also searched in /usr/sbin, which is often missing
from the PATH of users and of cron.
"""

from __future__ import annotations

import os
import subprocess

from backyfs.errors import MountError

_PACKAGES = {"fusermount3": "fuse3", "mount": "mount", "losetup": "mount"}  # all others: util-linux


def run(
    program: str, *arguments: str, timeout_s: float | None = None, inherits: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program, which inherits the descriptors `inherits`. Return its status and output.

    Raises:
        MountError: it is not installed, or takes longer than `timeout_s`.
    """
    try:
        return subprocess.run(
            [program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            env={**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin:/sbin:/bin"},
            timeout=timeout_s,
            pass_fds=inherits,
        )
    except FileNotFoundError:
        package = _PACKAGES.get(program, "util-linux")
        raise MountError("is not installed", subject=program, remedy=f"install the package {package}") from None
    except subprocess.TimeoutExpired:
        command = " ".join((program, *arguments))
        raise MountError(f"did not finish within {timeout_s:g} s", subject=f"`{command}`") from None


def reason_of(done: subprocess.CompletedProcess[str], about: str = "") -> str:
    """Return the error output of a program on one line, without its name and the file it is about in front."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and "dmesg(1)" not in line]
    text = " ".join(lines) or f"{done.args[0]} ended with status {done.returncode}"
    text = text.removeprefix(f"{os.path.basename(done.args[0])}: ")
    return text.removeprefix(f"{about}: ").rstrip(".")
