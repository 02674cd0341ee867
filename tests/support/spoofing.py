"""FUSE mounts of other users, as they appear to root: made by root in their name, so the host need not allow it.

The kernel shows the user for whom a mount is made (`user_id=`), as it does for mounts by fusermount3.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.support.program import clear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_READ_ONLY, _NO_SUID, _NO_DEV = 1, 2, 4  # of sys/mount.h
_START_S = 60.0

# Serves a tree of directories, given as paths below the root, that all claim to belong to root.
_PROGRAM = """
import errno, json, os, stat, sys
import pyfuse3, trio

fd, user = int(sys.argv[1]), int(sys.argv[2])
paths = ["", *json.loads(sys.argv[3])]
attributes = {name.encode(): value.encode() for name, value in json.loads(sys.argv[4]).items()}
os.setgroups([])
os.setgid(user)
os.setuid(user)


class Tree(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755
        return entry

    async def lookup(self, parent, name, ctx=None):
        path = os.path.join(paths[parent - 1], os.fsdecode(name))
        if path not in paths:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(paths.index(path) + 1)

    async def getxattr(self, inode, name, ctx):
        if inode != 1 or name not in attributes:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return attributes[name]


async def serve():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        print("ready", flush=True)

pyfuse3.init(Tree(), f"/dev/fd/{fd}", {"fsname=x"})
trio.run(serve)
"""


@contextmanager
def silent_mount(user: int, mountpoint: Path, *, source: str = "backyfs", kind: str = "fuse.backyfs") -> Iterator[None]:
    """Make a mount of a user that never answers."""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        _mount(device, user, mountpoint, source, kind)
        yield
    finally:
        clear(mountpoint)
        os.close(device)


@contextmanager
def answering_mount(
    user: int, mountpoint: Path, *, directories: list[str], attributes: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Make a mount of a user that looks like a mount of backyfs; yield the process that serves it."""
    process = None
    try:
        device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            _mount(device, user, mountpoint, "backyfs", "fuse.backyfs")
            arguments = [str(device), str(user), json.dumps(directories), json.dumps(dict(attributes))]
            process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *arguments], stdout=subprocess.PIPE, text=True, pass_fds=(device,)
            )
        finally:
            os.close(device)  # only the process has it open, so the mount is dead once the process has ended
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], _START_S)[0], "the mount does not appear"
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        clear(mountpoint)
        if process is not None:
            process.kill()
            process.communicate()


def _mount(device: int, user: int, mountpoint: Path, source: str, kind: str) -> None:
    data = f"fd={device},rootmode=40000,user_id={user},group_id={user},allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_READ_ONLY | _NO_SUID | _NO_DEV)
    if libc.mount(source.encode(), os.fsencode(mountpoint), kind.encode(), flags, data.encode()) != 0:
        raise OSError(ctypes.get_errno(), "cannot mount", str(mountpoint))
