"""Find the users who can change the target of a path, by owner, mode, access control list or FUSE mount of its parts.

Anyone who can write to a directory can replace its entries. So every directory on the way from the root counts, and
every directory that a symbolic link leads through. A path is walked through descriptors, one name at a time (O_PATH,
O_NOFOLLOW), so the checked file is the used one.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import stat
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from backyfs.errors import MountError
from backyfs.host.mounttable import mount_id_of, shown_mounts
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_OPEN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE = re.compile(r"/proc/[0-9]+/(?:task/[0-9]+/)?fd/[0-9]+")
_MOST_LINKS = 40  # MAXSYMLINKS of Linux
# struct posix_acl_xattr_entry of linux/posix_acl_xattr.h, after a version of four bytes: tag, permissions, id.
_ACCESS_LIST = "system.posix_acl_access"
_ACCESS_ENTRY = struct.Struct("<HHI")
_USER, _GROUP_OBJECT, _GROUP = 0x02, 0x04, 0x08
_WRITE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A user or group that can change a file or directory."""

    path: str
    who: str
    user: int | None = None  # its owner; None: a group, or everybody
    is_fuse: bool = False    # a program of this user serves the file system

    def __str__(self) -> str:
        """Return the fact as text, without the remedy."""
        if self.is_fuse:
            return f"{self.path} is a mount of {self.who}"
        return f"{self.path} {'belongs to' if self.user is not None else 'can be changed by'} {self.who}"

    @property
    def remedy(self) -> str:
        """How to revoke the permission."""
        if self.is_fuse:
            return f"do not use anything below {self.path}"
        return f"run `{'chown root' if self.user is not None else 'chmod go-w'} {shell_word(self.path)}`"


def writers_of(path: str, trusted: Collection[int], *, entries: bool = False) -> list[Writer]:
    """Return the users and groups that can change the target of an absolute path, except for these users.

    With `entries` it must be a directory, and users who can create entries in it count as well. Otherwise a directory
    with the sticky bit, such as /tmp, counts as safe: others cannot replace files that are not theirs.

    Raises:
        OSError: the path does not exist.
    """
    walk = _Walk(trusted)
    try:
        walk.go(path)
        return walk.found(entries=entries)
    finally:
        os.close(walk.at)


@contextmanager
def trusted_directory(path: str) -> Iterator[int]:
    """Yield a descriptor of a directory that only this user and root can change; `path` is without links.

    Raises:
        MountError: others can change it, or it cannot be opened.
    """
    walk = _Walk((0, os.geteuid()), follow=False)
    try:
        try:
            walk.go(path)
            found = walk.found(entries=True)
        except OSError as error:
            raise MountError(f"{path} cannot be opened: {error.strerror}") from error
        if found:
            raise _refusal(found[0], path)
        yield walk.at
    finally:
        os.close(walk.at)


def require_trusted_path(path: str, directory: str) -> None:
    """Make sure that only this user and root can replace a path, which is the existing part of `directory`.

    Raises:
        MountError: others can, or the path cannot be examined. The error is about `directory`.
    """
    try:
        found = writers_of(path, (0, os.geteuid()))
    except OSError as error:
        raise MountError(f"{path} cannot be opened: {error.strerror}") from error
    if found:
        raise _refusal(found[0], directory)


def _refusal(writer: Writer, directory: str) -> MountError:
    owner = "root" if os.geteuid() == 0 else f"root and user {os.geteuid()}"
    return MountError(
        f"{writer}, so others could read or replace the content of {directory}",
        remedy=f"name a directory that only {owner} can change, or {writer.remedy}",
    )


@contextmanager
def opened_parent(path: str) -> Iterator[tuple[int, str]]:
    """Yield a descriptor of the parent directory of an absolute path without links, and the name in it.

    Raises:
        OSError: a part of the path is a link, or does not exist.
    """
    *names, last = path.rstrip("/").split("/")
    at = os.open("/", _OPEN)
    try:
        for name in filter(None, names):
            at = _replaced(at, os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=at))
        yield at, last
    finally:
        os.close(at)


class _Walk:
    """A walk from the root along a path. `at` is its current position; close it at the end."""

    def __init__(self, trusted: Collection[int], *, follow: bool = True) -> None:
        # The owner of the root directory can replace everything, including this program. In a container, that owner may
        # be a user without a number there.
        self._trusted = trusted = {*trusted, os.stat("/").st_uid}
        self._most_links = _MOST_LINKS if follow else 0
        # The program of another user can report anything about its files, or not answer at all.
        self._foreign = {
            mount.mount_id: mount for mount in shown_mounts() if mount.is_fuse and mount.user_id not in trusted
        }
        self._writers: list[Writer] = []
        self._shown = "/"
        self._about = os.stat("/")
        self.at = os.open("/", _OPEN)

    def go(self, path: str) -> None:
        """Follow an absolute path and its symbolic links, but not into a mount of another user.

        Raises:
            OSError: it leads nowhere.
        """
        waiting = ["/", *path.split("/")][::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            if name in {"", "."}:
                continue
            fd = self._open(name)
            shown = os.path.normpath(os.path.join(self._shown, name))
            if self._is_foreign(fd):
                os.close(fd)
                return
            if _OPEN_FILE.fullmatch(shown):  # not a link to a path, but to an open file, as in `-c <(command)`
                fd = _replaced(fd, os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=self.at))
            about = self._look(fd, shown)
            if not stat.S_ISLNK(about.st_mode):
                self._shown, self._about, self.at = shown, about, _replaced(self.at, fd)
                continue
            target = _target(fd)
            links += 1
            if links > self._most_links:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), shown)
            waiting += [*target.split("/")[::-1], *(["/"] if target.startswith("/") else [])]

    def found(self, *, entries: bool) -> list[Writer]:
        """Return the users who can change anything on the way, or its end."""
        is_excused = entries and _is_sticky(self._about)
        at_the_end = _others(self.at, self._shown, self._about, self._trusted) if is_excused else []
        return list(dict.fromkeys([*self._writers, *at_the_end]))

    def _open(self, name: str) -> int:
        try:
            # An automounter mounts only if a directory is requested.
            return os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=self.at)
        except NotADirectoryError:  # or a link
            return os.open(name, _OPEN, dir_fd=self.at)

    def _is_foreign(self, fd: int) -> bool:
        mount = self._foreign.get(mount_id_of(fd)) if self._foreign else None
        if mount is None:
            return False
        self._writers.append(
            Writer(path=mount.mountpoint, who=f"user {mount.user_id}", user=mount.user_id, is_fuse=True)
        )
        return True

    def _look(self, fd: int, shown: str) -> os.stat_result:
        about = os.fstat(fd)
        if about.st_uid not in self._trusted:
            self._writers.append(Writer(path=shown, who=f"user {about.st_uid}", user=about.st_uid))
        if not _is_sticky(about) and not stat.S_ISLNK(about.st_mode):
            self._writers += _others(fd, shown, about, self._trusted)
        return about


def _is_sticky(about: os.stat_result) -> bool:
    return stat.S_ISDIR(about.st_mode) and bool(about.st_mode & stat.S_ISVTX)


def _others(fd: int, shown: str, about: os.stat_result, trusted: Collection[int]) -> list[Writer]:
    """Return who can write to an open file or directory, except for its owner."""
    found = []
    if about.st_mode & stat.S_IWOTH:
        found.append(Writer(path=shown, who="every user"))
    # With an access control list, these bits are its mask, which limits its entries.
    if about.st_mode & stat.S_IWGRP:
        entries = _access_list(fd)
        for tag, number in [(_GROUP_OBJECT, about.st_gid)] if entries is None else entries:
            if tag == _USER and number not in trusted:
                found.append(Writer(path=shown, who=f"user {number}, by its access control list"))
            elif tag in {_GROUP, _GROUP_OBJECT}:
                group = about.st_gid if tag == _GROUP_OBJECT else number
                if not _is_private(group, trusted):
                    found.append(Writer(path=shown, who=f"the members of group {group}"))
    return found


def _access_list(fd: int) -> list[tuple[int, int]] | None:
    """Return the entries of an access control list with write permission, as tag and number; None without a list."""
    try:
        packed = os.getxattr(f"/proc/self/fd/{fd}", _ACCESS_LIST)
    except OSError:  # there is none, or the file system has none
        return None
    entries = _ACCESS_ENTRY.iter_unpack(packed[4:])
    return [(tag, number) for tag, permissions, number in entries if permissions & _WRITE]


def _is_private(group: int, trusted: Collection[int]) -> bool:
    """Return whether only a trusted user is in a group: many systems give each user a group (umask 002)."""
    accounts = [pwd.getpwuid(user) for user in trusted if _has_account(user)]
    names = {account.pw_name for account in accounts}
    if group not in {account.pw_gid for account in accounts}:
        return False
    with suppress(KeyError):
        if not names.issuperset(grp.getgrgid(group).gr_mem):
            return False
    return all(account.pw_uid in trusted for account in pwd.getpwall() if account.pw_gid == group)


def _has_account(user: int) -> bool:
    try:
        pwd.getpwuid(user)
    except KeyError:
        return False
    return True


def _target(link: int) -> str:
    """Return where an open link leads, and close it."""
    try:
        return os.readlink("", dir_fd=link)
    finally:
        os.close(link)


def _replaced(old: int, new: int) -> int:
    os.close(old)
    return new
