"""The programs of the host that loop devices and file systems take: losetup, blkid, mount and their like.

They run in the C locale, because their words are looked at, and are found in /usr/sbin as well, which the PATH of
a user or of cron may lack.
"""

from __future__ import annotations

import os
import subprocess

from backyfs.errors import MountError

_PACKAGES = {"fusermount3": "fuse3", "mount": "mount", "losetup": "mount"}  # else util-linux


def run(
    program: str, *arguments: str, timeout_s: float | None = None, inherits: tuple[int, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program, which gets the descriptors `inherits`, and return its status and what it printed.

    Raises:
        MountError: it is not installed, or not done in time.
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
        raise MountError(f"{program} is not installed; install the package {package}") from None
    except subprocess.TimeoutExpired:
        raise MountError(f"`{' '.join((program, *arguments))}` is not done after {timeout_s:g} s") from None


def reason_of(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program that failed said, on one line, without its own name in front."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip() and "dmesg(1)" not in line]
    text = " ".join(lines) or f"{done.args[0]} ended with status {done.returncode}"
    return text.removeprefix(f"{os.path.basename(done.args[0])}: ").rstrip(".")
