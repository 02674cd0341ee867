"""List the mounts of this mount namespace, as reported by the kernel. Accesses none of the listed file systems.

A mount whose process is gone answers ENOTCONN. A mount whose process hangs does not answer at all. Therefore paths are
resolved without accessing mountpoints.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.host.kerneltables import read_lines

if TYPE_CHECKING:
    from collections.abc import Collection

FILE_SYSTEM_TYPE = "fuse.backyfs"
_MOST_LINKS = 40  # MAXSYMLINKS of Linux
_FUSE_TYPES = ("fuse", "fuseblk")  # a subtype may follow, after a point
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of mountinfo, proc(5)."""

    mount_id: int
    parent_id: int  # the mount that contains the mountpoint
    mountpoint: str
    file_system_type: str
    device: str     # major:minor
    root: str = "/"  # the mounted directory or file of the file system, without links
    source: str
    read_only: bool
    file_system_read_only: bool = False  # the file system itself, not only this mount
    user_id: int | None = None  # of a FUSE mount: the user who made it, from the kernel; None for others

    @property
    def is_fuse(self) -> bool:
        """Whether a program serves it, which may belong to any user."""
        return self.file_system_type.partition(".")[0] in _FUSE_TYPES

    @property
    def is_ours(self) -> bool:
        """Whether `backyfs mount` made it, or a program that claims so: any user can choose this type."""
        return self.file_system_type == FILE_SYSTEM_TYPE

    def is_made_by(self, user: int) -> bool:
        """Return whether this user made it. Only root can mount file systems other than FUSE, with any source."""
        return self.user_id == user if self.is_fuse else user == 0


def list_mounts(pid: int | str = "self") -> list[Mount]:
    """Return the mounts in the mount namespace of a process, in order. Skip lines in another form.

    Raises:
        OSError: the process is gone or may not be examined, or there is no /proc.
    """
    return list(filter(None, map(parse, read_lines(f"/proc/{pid}/mountinfo"))))


def shown_mounts() -> list[Mount]:
    """Return the mounts in this mount namespace; none without /proc."""
    try:
        return list_mounts()
    except FileNotFoundError:
        return []


def mount_at(path: str) -> Mount | None:
    """Return the uppermost mount on `path`; None if there is none, or no /proc."""
    mounts = shown_mounts()
    wanted = resolve(path, {mount.mountpoint for mount in mounts})
    found = [mount for mount in mounts if mount.mountpoint == wanted]
    return found[-1] if found else None


def resolve(path: str, mountpoints: Collection[str] | None = None) -> str:
    """Return an absolute path without links, like `os.path.realpath`, but without accessing a mountpoint.

    A mountpoint is never a link. A part of the path that does not exist or does not answer is kept unchanged.
    `mountpoints` are the mountpoints from `list_mounts`.
    """
    if mountpoints is None:
        mountpoints = {mount.mountpoint for mount in shown_mounts()}
    absolute = path if os.path.isabs(path) else os.path.join(os.getcwd(), path)
    waiting = absolute.split("/")[::-1]
    at = "/"
    links = 0
    while waiting:
        name = waiting.pop()
        if name in {"", "."}:
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        step = os.path.join(at, name)
        target = None if step in mountpoints or links >= _MOST_LINKS else _link_target(step)
        if target is None:
            at = step
            continue
        links += 1
        waiting += target.split("/")[::-1]
        if target.startswith("/"):
            at = "/"
    return at


def place_of(path: str) -> tuple[str, str] | None:
    """Return the file system (major:minor) of a file or directory, and its path in it; None if unknown.

    The result does not depend on the mount, link or mount namespace that leads to the file. Hard links differ in it.
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        mount_id = mount_id_of(fd)
        mount = next(mount for mount in list_mounts() if mount.mount_id == mount_id)
        below = os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), mount.mountpoint)
        return mount.device, os.path.normpath(os.path.join(mount.root, below))
    except (OSError, StopIteration):  # no /proc, or a mount outside the root directory of this process
        return None
    finally:
        os.close(fd)


def mount_id_of(fd: int) -> int:
    """Return the number of the mount that an open file or directory was reached through.

    Raises:
        OSError: there is no /proc.
    """
    for line in read_lines(f"/proc/self/fdinfo/{fd}"):
        if line.startswith(b"mnt_id:"):
            return int(line.removeprefix(b"mnt_id:"))
    raise OSError(errno.ENOSYS, "the kernel does not show through which mount a file was reached")


def is_below(path: str, directory: str) -> bool:
    """Return whether a path is a directory or something in it; both are without links."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # not a link, or it does not exist
        return None


def parse(line: bytes) -> Mount | None:
    """Parse a line of mountinfo; return None if it has another form. Pure."""
    fields = line.split(b" ")
    try:
        dash = fields.index(b"-", 6)  # optional fields come before it
        file_system_options = fields[dash + 3].split(b",")
        file_system_read_only = b"ro" in file_system_options
        return Mount(
            mount_id=int(fields[0]),
            parent_id=int(fields[1]),
            device=fields[2].decode("ascii"),
            root=_unescape(fields[3]),
            mountpoint=_unescape(fields[4]),
            read_only=file_system_read_only or b"ro" in fields[5].split(b","),
            file_system_read_only=file_system_read_only,
            file_system_type=_unescape(fields[dash + 1]),
            source=_unescape(fields[dash + 2]),
            user_id=_user_id(file_system_options),
        )
    except (ValueError, IndexError):
        return None


def _user_id(options: list[bytes]) -> int | None:
    values = [option.removeprefix(b"user_id=") for option in options if option.startswith(b"user_id=")]
    return int(values[-1]) if values and values[-1].isdigit() else None


def _unescape(field: bytes) -> str:
    r"""Undo the escapes of the kernel, such as `\040` for a space."""
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), field))
