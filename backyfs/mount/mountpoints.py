"""Mountpoints of this host: what is mounted where, and unmounting. Needs neither pyfuse3 nor a repository."""

from __future__ import annotations

import os
import re
import select
import subprocess
from contextlib import suppress
from dataclasses import dataclass

from backyfs.errors import MountError

FILE_SYSTEM_TYPE = "fuse.backyfs"
PID_ATTRIBUTE = "user.backyfs.pid"  # of the root directory of a mount: the process that serves it
_END_S = 10.0  # how long the process of a mount may take to end after its mount is gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of mountinfo."""

    mountpoint: str
    file_system_type: str
    device: str  # major:minor
    source: str


def list_mounts() -> list[Mount]:
    """Return what is mounted, in order, from /proc/self/mountinfo, proc(5)."""
    mounts = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields = line.rstrip("\n").split(" ")
            dash = fields.index("-")
            mounts.append(
                Mount(
                    mountpoint=_unescape(fields[4]),
                    file_system_type=fields[dash + 1],
                    device=fields[2],
                    source=_unescape(fields[dash + 2]),
                )
            )
    return mounts


def mount_at(path: str) -> Mount | None:
    """Return what is mounted on `path`, the uppermost if several are; None if nothing is."""
    wanted = os.path.realpath(path)
    found = [mount for mount in list_mounts() if mount.mountpoint == wanted]
    return found[-1] if found else None


def check_mountpoint(path: str, own_paths: tuple[str, ...]) -> None:
    """Make sure that a repository with these paths can be mounted on `path`.

    Raises:
        MountError: it is no directory, something of ours is mounted there, or it overlaps the repository.
    """
    present = mount_at(path)
    if present is not None and present.file_system_type == FILE_SYSTEM_TYPE:
        raise MountError(f"{path} is mounted already; run `backyfs umount {path}` first")
    if not os.path.isdir(path):
        raise MountError(f"{path} is not a directory; make it first (mkdir {path}) or name another one")
    wanted = os.path.realpath(path)
    for own in own_paths:
        if os.path.commonpath((wanted, own)) in (wanted, own):
            raise MountError(f"{path} overlaps the repository ({own}); mount it somewhere else")


def unmount(path: str) -> None:
    """Unmount a mount of ours, also one whose process is gone, and wait until its process has ended.

    Raises:
        MountError: there is none, it is in use, or it may not be unmounted.
    """
    present = mount_at(path)
    if present is None or present.file_system_type != FILE_SYSTEM_TYPE:
        raise MountError(f"nothing of backyfs is mounted on {path}; `findmnt -t {FILE_SYSTEM_TYPE}` shows what is")
    process = _open_process(path)
    try:
        _run_unmount(present.mountpoint)
        if process is not None:
            _wait_for_end(process, path)
    finally:
        if process is not None:
            os.close(process)


def _run_unmount(mountpoint: str) -> None:
    program = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    try:
        done = subprocess.run(
            [*program, "--", mountpoint],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},  # its words are searched for "busy"
        )
    except FileNotFoundError:
        raise MountError(f"{program[0]} is not installed; install the package fuse3 (mount for root)") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"{program[0]} ended with status {done.returncode}"
        remedy = f"; `fuser -vm {mountpoint}` shows who uses it" if "busy" in reason else ""
        raise MountError(f"{mountpoint} is still mounted: {reason}{remedy}")


def _open_process(path: str) -> int | None:
    """Return a descriptor for the process that serves a mount; None if there is none."""
    with suppress(OSError, ValueError):
        return os.pidfd_open(int(os.getxattr(path, PID_ATTRIBUTE)))
    return None


def _wait_for_end(process: int, path: str) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)  # a pidfd is readable once its process has ended, pidfd_open(2)
    if not poll.poll(_END_S * 1000):
        raise MountError(f"{path} is unmounted, but its process is still busy after {_END_S:.0f} s")


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
