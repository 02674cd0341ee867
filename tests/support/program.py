"""The installed program: what it is told, the mounts it makes, and their end, which comes whatever happens."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.host.mounttable import mount_at

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKYFS = str(Path(sys.executable).with_name("backyfs"))
PATIENCE_S = 30.0


def why_not_mount() -> str | None:
    """Say why nothing can be mounted here; None if it can."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "fusermount3 is not installed"
    return None


def why_not_loop() -> str | None:
    """Say why images cannot be loop-mounted here; None if they can."""
    if os.geteuid() != 0:
        return "only root can set up loop devices"
    found = subprocess.run(["losetup", "--find"], capture_output=True, text=True, check=False)
    return None if found.returncode == 0 else f"no loop device: {found.stderr.strip()}"


def backyfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the program as installed."""
    return subprocess.run(
        [BACKYFS, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def mount(config_file: Path, mountpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `backyfs mount`."""
    return backyfs("-c", config_file, "mount", *options, mountpoint)


def process_of(mountpoint: Path) -> int:
    """Return the id of the process that serves a mount."""
    return int(os.getxattr(mountpoint, "user.backyfs.pid"))


@contextmanager
def mounting(config_file: Path, mountpoint: Path, *options: str) -> Iterator[Path]:
    """Mount a repository; at the end unmount it, unless that was done, and see its process end."""
    mountpoint.mkdir(exist_ok=True)
    mounted = mount(config_file, mountpoint, *options)
    unmounted = None
    try:
        assert mounted.returncode == 0, mounted.stderr
        with process_ending(process_of(mountpoint)):
            try:
                yield mountpoint
            finally:
                if mount_at(str(mountpoint)) is not None:
                    unmounted = backyfs("umount", mountpoint)
                    clear(mountpoint)
    finally:
        clear(mountpoint)
    assert unmounted is None or unmounted.returncode == 0, unmounted.stderr


@contextmanager
def process_ending(pid: int) -> Iterator[None]:
    """Make sure that a process has ended at the end: kill it where it does not end by itself."""
    process = os.pidfd_open(pid)
    try:
        yield
    finally:
        if not ends(process):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        os.close(process)


def ends(process: int, timeout_s: float = 5.0) -> bool:
    """Wait for the end of a process, given as descriptor; False if it does not come."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def clear(mountpoint: Path) -> None:
    """Take away whatever is mounted on a directory, in use or not."""
    while mount_at(str(mountpoint)) is not None:
        subprocess.run(["umount", "-l", "--", str(mountpoint)], check=True)
