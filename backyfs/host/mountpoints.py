"""Mountpoints of this host: may something be mounted there, and unmounting. Needs neither pyfuse3 nor a repository."""

from __future__ import annotations

import logging
import os
import select
from contextlib import suppress

from backyfs.errors import MountError
from backyfs.host.answers import PATIENCE_S, Answer, State, ask
from backyfs.host.kerneltables import check_kernel_tables, shows_mounts
from backyfs.host.mounttable import FILE_SYSTEM_TYPE, Mount, mount_at
from backyfs.host.records import is_attachment
from backyfs.host.standing import take_away, take_mount_away, things_on
from backyfs.host.users import describe, holders_elsewhere, serves_fuse
from backyfs.host.writers import writers_of
from backyfs.text import shell_word

_END_S = 10.0  # how long the process of a mount may take to end after its mount is gone
_log = logging.getLogger(__name__)


def check_mountpoint(path: str, own_paths: tuple[str, ...]) -> None:
    """Make sure that a repository with these paths can be mounted on `path`; clear what is left of a dead mount.

    Raises:
        MountError: it is no directory, something of ours is mounted there, or it overlaps the repository.
    """
    clear_dangling(path)
    present = _find_mount(path)
    if present is not None and present.is_ours:
        if not is_own(present):
            who = f"user {present.user_id}"
            raise MountError(f"{path} is mounted already, by {who}; unmount it as {who}, or name another directory")
        raise MountError(f"{path} is mounted already; run `backyfs umount {shell_word(path)}` first")
    if not os.path.isdir(path):
        raise MountError(f"{path} is not a directory; make it first (mkdir {shell_word(path)}) or name another one")
    wanted = os.path.realpath(path)
    for own in own_paths:
        if os.path.commonpath((wanted, own)) in (wanted, own):
            raise MountError(f"{path} overlaps the repository ({own}); mount it somewhere else")
    if os.geteuid() == 0:
        for writer in writers_of(os.path.dirname(wanted), (0,)):
            _log.warning("%s: others can move %s while it is mounted; use a directory of root's", writer, path)


def clear_dangling(path: str) -> bool:
    """Take away this user's mounts on `path` whose processes are gone, with what stands on them; tell if there was one.

    Raises:
        MountError: this user may not do that.
    """
    found = False
    while True:
        present = mount_at(path)
        if present is None or not is_own(present) or ask(present.mountpoint).state is not State.DEAD:
            return found
        found = True
        _log.warning("the process of the mount on %s is gone; what is left of it is taken away", path)
        unmount_mount(present, Answer(state=State.DEAD))


def is_own(mount: Mount) -> bool:
    """Tell whether `backyfs mount` made it, run by this user. Of others not even an answer is believed."""
    return mount.is_ours and mount.is_made_by(os.geteuid())


def unmount(path: str, *, patience_s: float = PATIENCE_S) -> None:
    """Unmount a mount of ours and what stands on it, and wait until its process has ended; also if it has long ago.

    Root may unmount that of another user, but believes nothing that it says. A mount that says nothing for
    `patience_s` seconds does not answer.

    Raises:
        MountError: there is none, it is in use, or it may not be unmounted.
    """
    present = _find_mount(path)
    if present is None and not shows_mounts():
        check_kernel_tables()
    if present is None or not present.is_ours:
        if is_attachment(path):
            raise MountError(f"{path} holds what `backyfs attach` has mounted; run `backyfs detach {shell_word(path)}`")
        raise MountError(f"nothing of backyfs is mounted on {path}; `findmnt -t {FILE_SYSTEM_TYPE}` shows what is")
    unmount_mount(present, ask(present.mountpoint, patience_s=patience_s))


def unmount_mount(mount: Mount, answer: Answer) -> None:
    """Do the same with a mount that was just asked for an answer."""
    process = _open_process(answer, mount)
    is_dead = answer.state is State.DEAD
    try:
        things = things_on(mount)
        if things and os.geteuid() != 0:
            raise MountError(
                f"{_name(things[0])} stands on {mount.mountpoint}, and only root can take it away; "
                f"run `backyfs umount {shell_word(mount.mountpoint)}` as root"
            )
        try:
            for thing in things:
                take_away(thing, lazily=is_dead)
            take_mount_away(mount, lazily=is_dead)
        except MountError as error:
            if answer.state is State.SILENT:
                raise MountError(f"{error}; {_how_to_abort(mount)}") from error
            raise
        if process is not None:
            _wait_for_end(process, mount)
    finally:
        if process is not None:
            os.close(process)


def _find_mount(path: str) -> Mount | None:
    """Return what is mounted on `path`; without /proc only a mount of ours that answers is known."""
    if shows_mounts():
        return mount_at(path)
    if ask(path).repository is None:
        return None
    device = os.stat(path).st_dev
    return Mount(
        mount_id=0,
        parent_id=0,
        mountpoint=os.path.realpath(path),
        file_system_type=FILE_SYSTEM_TYPE,
        device=f"{os.major(device)}:{os.minor(device)}",
        root="/",
        source="backyfs",
        read_only=True,
        user_id=os.geteuid(),  # nobody knows, without /proc
    )


def _name(thing: object) -> str:
    return thing.mountpoint if isinstance(thing, Mount) else getattr(thing, "device", "")


def _how_to_abort(mount: Mount) -> str:
    minor = mount.device.partition(":")[2]
    return f"its process does not answer: `echo 1 > /sys/fs/fuse/connections/{minor}/abort` as root frees who waits"


def _open_process(answer: Answer, mount: Mount) -> int | None:
    """Return a descriptor for the process that serves a mount; None if there is none, or another one was named.

    It names itself, by its number, which means another process where it runs in a pid namespace of its own.
    """
    if answer.pid is not None and serves_fuse(answer.pid, mount.user_id):
        with suppress(OSError):
            return os.pidfd_open(answer.pid)
    return None


def _wait_for_end(process: int, mount: Mount) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)  # a pidfd is readable once its process has ended, pidfd_open(2)
    if not poll.poll(_END_S * 1000):
        elsewhere = holders_elsewhere({mount.device})
        why = f"; {describe(elsewhere)}" if elsewhere else ""
        raise MountError(f"{mount.mountpoint} is unmounted, but its process is still busy after {_END_S:.0f} s{why}")
