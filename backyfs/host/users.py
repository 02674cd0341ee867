"""Find the processes that use a mount or a device, and so prevent its removal. Reads /proc, no other file system.

A user sees nothing of the processes of other users. Root sees all processes in its pid namespace.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.host.kerneltables import read_lines, read_value
from backyfs.host.mounttable import is_below, list_mounts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from backyfs.host.mounttable import Mount

_MOST_SHOWN = 5
_FUSE_DEVICE = os.makedev(10, 229)  # of linux/miscdevice.h
_LINKS = (("cwd", "working directory"), ("root", "root directory"), ("exe", "program"))


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A process that uses something, and its kind of use."""

    pid: int
    command: str
    how: str


def users_of(paths: Collection[str]) -> list[User]:
    """Return the processes that use these devices or files in these directories; paths are without links."""
    found = []
    for pid in _processes():
        how = next(_uses(pid, paths), None)
        if how is not None:
            found.append(User(pid=pid, command=_command(pid), how=how))
    return found


def mounts_in_other_namespaces() -> Iterator[tuple[int, list[Mount]]]:
    """Yield a process of each other mount namespace, and the mounts there."""
    seen = {_namespace("self")}
    for pid in _processes():
        namespace = _namespace(pid)
        if namespace in seen or namespace is None:
            continue
        seen.add(namespace)
        with suppress(OSError, ValueError):
            yield pid, list_mounts(pid)


def users_in_other_namespaces(numbers: Collection[str]) -> list[User]:
    """Return a process of each other mount namespace in which a device (major:minor) is mounted."""
    found = []
    for pid, mounts in mounts_in_other_namespaces():
        for mount in mounts:
            if mount.device in numbers:
                how = f"has it mounted on {mount.mountpoint} in another mount namespace"
                found.append(User(pid=pid, command=_command(pid), how=how))
                break
    return found


def serves_fuse(pid: int, user: int | None) -> bool:
    """Return whether a process of a user serves any FUSE mount. The kernel does not show which one."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != user:
            return False
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:  # it is gone, or belongs to another user
        return False
    return any(_is_fuse_device(f"/proc/{pid}/fd/{descriptor}") for descriptor in descriptors)


def _is_fuse_device(link: str) -> bool:
    if not _target(link).startswith("/dev/"):  # examining other files may access a file system that hangs
        return False
    try:
        return os.stat(link).st_rdev == _FUSE_DEVICE
    except OSError:
        return False


def describe(users: Collection[User]) -> str:
    """Return users as text: `bash (pid 12, working directory), less (pid 13, open file)`."""
    shown = [f"{user.command} (pid {user.pid}, {user.how})" for user in list(users)[:_MOST_SHOWN]]
    left_out = len(users) - len(shown)
    return ", ".join([*shown, *([f"and {left_out} more"] if left_out > 0 else [])])


def _processes() -> list[int]:
    own = os.getpid()
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:  # as in a bare chroot
        return []
    return sorted(int(name) for name in names if name.isdecimal() and int(name) != own)


def _uses(pid: int, paths: Collection[str]) -> Iterator[str]:
    for link, how in _LINKS:
        if _is_in(_target(f"/proc/{pid}/{link}"), paths):
            yield how
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        descriptors = []
    for descriptor in descriptors:
        if _is_in(_target(f"/proc/{pid}/fd/{descriptor}"), paths):
            yield "open file"
    for path in _mapped(pid):
        if _is_in(path, paths):
            yield "mapped file"


def _mapped(pid: int) -> Iterator[str]:
    """Yield the files that a process has mapped; see `maps` in proc(5)."""
    try:
        lines = read_lines(f"/proc/{pid}/maps")
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(b"/"):
            yield os.fsdecode(fields[5].replace(b"\\012", b"\n"))


def _is_in(path: str, directories: Collection[str]) -> bool:
    return any(is_below(path, directory) for directory in directories)


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _command(pid: int) -> str:
    return read_value(f"/proc/{pid}/comm") or "a process that has ended"


def _namespace(pid: int | str) -> str | None:
    return _target(f"/proc/{pid}/ns/mnt") or None
