"""Check whether a directory can become a mountpoint, and unmount. Needs neither pyfuse3 nor a repository."""

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
from backyfs.host.stack import stack_on, tear_down, unmount_top
from backyfs.host.users import describe, serves_fuse, users_in_other_namespaces
from backyfs.host.writers import writers_of
from backyfs.remedies import Advice, Remedy
from backyfs.text import shell_word

_END_S = 10.0  # how long the process of a mount may take to end after unmounting
_log = logging.getLogger(__name__)


def check_mountpoint(path: str, own_paths: tuple[str, ...]) -> None:
    """Make sure that a repository with these paths can be mounted on `path`. Remove the leftovers of a dead mount.

    Raises:
        MountError: `path` is not a directory, already has a mount of ours, or overlaps the repository.
    """
    clear_dangling(path)
    present = _find_mount(path)
    if present is not None and present.is_ours:
        if not is_own(present):
            user = f"user {present.user_id}"
            raise MountError(
                f"is already mounted by {user}",
                subject=path,
                remedy=f"unmount it as {user}, or name another directory",
            )
        raise MountError("is already mounted", subject=path, remedy=Advice.UNMOUNT(path=path))
    if not os.path.isdir(path):
        raise MountError(
            "is not a directory",
            subject=path,
            remedy=f"make it first (mkdir {shell_word(path)}) or name another one",
        )
    wanted = os.path.realpath(path)
    for own in own_paths:
        if os.path.commonpath((wanted, own)) in (wanted, own):
            raise MountError(f"overlaps the repository ({own})", subject=path, remedy="mount it somewhere else")
    if os.geteuid() == 0:
        for writer in writers_of(os.path.dirname(wanted), (0,)):
            _log.warning("%s: others can move %s while it is mounted; use a directory of root", writer, path)


def clear_dangling(path: str) -> bool:
    """Remove dead mounts of this user on `path`, and everything stacked on them. Return whether there were any.

    Raises:
        MountError: this user may not do that.
    """
    found = False
    while True:
        present = mount_at(path)
        if present is None or not is_own(present) or ask(present.mountpoint).state is not State.DEAD:
            return found
        found = True
        _log.warning("removing the mount on %s, because its process is gone", path)
        unmount_mount(present, Answer(state=State.DEAD))


def is_own(mount: Mount) -> bool:
    """Return whether this user made it with `backyfs mount`. Answers from mounts of other users are not trusted."""
    return mount.is_ours and mount.is_made_by(os.geteuid())


def unmount(path: str, *, patience_s: float = PATIENCE_S) -> None:
    """Unmount a mount of ours and everything stacked on it, then wait for its process to end. Dead mounts work, too.

    Root may unmount mounts of other users, but does not trust their answers. A mount that does not answer within
    `patience_s` seconds counts as silent.

    Raises:
        MountError: there is none, it is in use, or it may not be unmounted.
    """
    present = _find_mount(path)
    if present is None and not shows_mounts():
        check_kernel_tables()
    if present is None or not present.is_ours:
        if is_attachment(path):
            raise MountError("contains an attached version", subject=path, remedy=Advice.DETACH(path=path))
        raise MountError(
            f"nothing of backyfs is mounted on {path}", remedy=f"`findmnt -t {FILE_SYSTEM_TYPE}` lists its mounts"
        )
    unmount_mount(present, ask(present.mountpoint, patience_s=patience_s))


def unmount_mount(mount: Mount, answer: Answer) -> None:
    """Do the same as `unmount` with a mount that just gave this answer."""
    process = _open_process(answer, mount)
    is_dead = answer.state is State.DEAD
    try:
        things = stack_on(mount)
        if things and os.geteuid() != 0:
            raise MountError(
                f"is stacked on {mount.mountpoint}, and only root can remove it",
                subject=_name(things[0]),
                remedy=Advice.UNMOUNT_AS_ROOT(path=mount.mountpoint),
            )
        try:
            for thing in things:
                tear_down(thing, lazily=is_dead)
            unmount_top(mount, lazily=is_dead)
        except MountError as error:
            if answer.state is State.SILENT:
                error.advise(_how_to_abort(mount))
            raise
        if process is not None:
            _wait_for_end(process, mount)
    finally:
        if process is not None:
            os.close(process)


def _find_mount(path: str) -> Mount | None:
    """Return the mount on `path`; without /proc, only a mount of ours that answers is found."""
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
        user_id=os.geteuid(),  # unknown without /proc
    )


def _name(thing: object) -> str:
    return thing.mountpoint if isinstance(thing, Mount) else getattr(thing, "device", "")


def _how_to_abort(mount: Mount) -> Remedy:
    minor = mount.device.partition(":")[2]
    return Remedy(
        f"its process does not answer: as root, `echo 1 > /sys/fs/fuse/connections/{minor}/abort` frees processes that "
        "wait for it"
    )


def _open_process(answer: Answer, mount: Mount) -> int | None:
    """Return a descriptor for the process that serves a mount; None if it is gone or another process has its number.

    The mount reports the number of its process. In another pid namespace that number belongs to another process.
    """
    if answer.pid is not None and serves_fuse(answer.pid, mount.user_id):
        with suppress(OSError):
            return os.pidfd_open(answer.pid)
    return None


def _wait_for_end(process: int, mount: Mount) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)  # a pidfd is readable once its process has ended, pidfd_open(2)
    if not poll.poll(_END_S * 1000):
        elsewhere = users_in_other_namespaces({mount.device})
        users = f": {describe(elsewhere)}" if elsewhere else ""
        raise MountError(
            f"is unmounted, but its process is still busy after {_END_S:.0f} s{users}", subject=mount.mountpoint
        )
