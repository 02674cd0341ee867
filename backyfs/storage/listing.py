"""What is in the directory of a storage: objects with sizes and ages, and temporary files of killed commands."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
from typing import TYPE_CHECKING

from backyfs.model import BlobUid
from backyfs.storage.keys import NAMED, ObjectName, is_name, is_uid
from backyfs.storage.oserror import storage_error
from backyfs.storage.protocol import StoredObject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.storage.beneath import Root

BLOB = ".blob"
TEMPORARY = ".tmp"

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHELF_DIGITS = 2  # of the name of each directory of blobs
_NAMED_LEVELS = 4  # of directories, in the name of an object: what is deeper is not ours

_log = logging.getLogger(__name__)


def list_objects(root: Root, fd: int, prefix: str) -> Iterator[StoredObject]:
    """Yield the objects whose keys begin with a prefix; `fd` is the directory of the storage.

    Raises:
        StorageError: it cannot be read.
    """
    now = _now(root.path, fd)
    if "/" not in prefix:
        yield from _list_blobs(root, prefix, now)
    named = f"{NAMED}/"
    if prefix.startswith(named) or named.startswith(prefix):
        yield from _list_named(root, prefix, now)


def _list_blobs(root: Root, prefix: str, now: float) -> Iterator[StoredObject]:
    for shelf, directory, start in _blob_directories(root, prefix):
        for name, found in _entries(root, directory, shelf):
            uid = name.removesuffix(BLOB)
            if name.endswith(BLOB) and is_uid(uid) and uid.startswith(start) and uid.startswith(prefix):
                yield _stored(BlobUid(uid), found, now)


def _list_named(root: Root, prefix: str, now: float) -> Iterator[StoredObject]:
    top = prefix.rpartition("/")[0] or NAMED
    if top != NAMED and not is_name(top):
        return
    for fd, directory in _named_directories(root, top):
        for name, found in _entries(root, directory, fd):
            key = f"{directory}/{name}"
            if not _may_be_shelf(name, found) and is_name(key) and key.startswith(prefix):
                yield _stored(ObjectName(key), found, now)


def _stored(key: BlobUid | ObjectName, found: os.stat_result, now: float) -> StoredObject:
    size = found.st_size if stat.S_ISREG(found.st_mode) else None
    return StoredObject(key=key, size_bytes=size, age_s=now - _since(found))


def remove_leftovers(root: Root, fd: int, older_than_s: float) -> int:
    """Remove temporary files that are older than this; return how many there were.

    Raises:
        StorageError: one cannot be removed, or a directory cannot be read.
    """
    now = _now(root.path, fd)
    removed = 0
    for shelf, directory, _ in _blob_directories(root, ""):
        removed += _remove_old(root, directory, shelf, f"{BLOB}{TEMPORARY}", now - older_than_s)
    for inner, directory in _named_directories(root, NAMED):
        removed += _remove_old(root, directory, inner, TEMPORARY, now - older_than_s)
    return removed


def _remove_old(root: Root, directory: str, fd: int, suffix: str, before: float) -> int:
    removed = 0
    for name, found in _entries(root, directory, fd):
        if not name.endswith(suffix) or _since(found) >= before:
            continue
        if stat.S_ISDIR(found.st_mode):
            _log.warning("storage: %s/%s/%s is a directory and is kept; move it away", root.path, directory, name)
            continue
        try:
            os.unlink(name, dir_fd=fd)
            removed += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise storage_error(f"{root.path}/{directory}/{name}", error) from error
    return removed


def _blob_directories(root: Root, prefix: str) -> Iterator[tuple[int, str, str]]:
    """Yield the directories of blobs whose uids begin with a prefix.

    Each is an open descriptor, a name, and the digits with which all uids in it begin.
    """
    with _opened(root, "") as top:
        if top is None:
            return
        for first in _shelves(root, "", top, prefix[:_SHELF_DIGITS]):
            with _opened(root, first) as inner:
                if inner is None:
                    continue
                for second in _shelves(root, first, inner, prefix[_SHELF_DIGITS : 2 * _SHELF_DIGITS]):
                    with _opened(root, f"{first}/{second}") as fd:
                        if fd is not None:
                            yield fd, f"{first}/{second}", first + second


def _shelves(root: Root, directory: str, fd: int, start: str) -> list[str]:
    return [
        name
        for name, _ in _entries(root, directory, fd)
        if len(name) == _SHELF_DIGITS and name.isascii() and name.isalnum() and name.startswith(start)
    ]


def _named_directories(root: Root, name: str, levels: int = _NAMED_LEVELS) -> Iterator[tuple[int, str]]:
    """Yield a directory of named objects and all directories below it, open and by name, if it exists."""
    with _opened(root, name) as fd:
        if fd is None:
            return
        yield fd, name
        inner = [one for one, found in _entries(root, name, fd) if _may_be_shelf(one, found)]
    if levels > 1:
        for one in inner:
            yield from _named_directories(root, f"{name}/{one}", levels - 1)


def _may_be_shelf(name: str, found: os.stat_result) -> bool:
    return stat.S_ISDIR(found.st_mode) or (stat.S_ISLNK(found.st_mode) and len(name) == _SHELF_DIGITS)


@contextlib.contextmanager
def _opened(root: Root, name: str) -> Iterator[int | None]:
    """Open a directory; None: it does not exist, or is not a directory."""
    fd = None
    try:
        fd = root.open(name, _LIST)
    except FileNotFoundError:
        pass
    except OSError as error:
        obstacle = root.obstacle(f"{name}/") if name else None
        if obstacle is None:
            raise storage_error(f"{root.path}/{name}" if name else root.path, error) from error
        _log.warning("storage: %s is %s and not a directory: what should be in it counts as missing", *obstacle)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def _entries(root: Root, directory: str, fd: int) -> Iterator[tuple[str, os.stat_result]]:
    """Yield the entries of an open directory, except for those that are removed in the meantime."""
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)
    except OSError as error:
        raise storage_error(f"{root.path}/{directory}" if directory else root.path, error) from error


def _now(path: str, fd: int) -> float:
    """Return the time by the clock that sets the times of files here, which is another host's on a network.

    If the directory cannot be written, as on a full or read-only disk, that clock cannot be read. Then no object has
    any age.
    """
    try:
        os.utime(fd)
    except OSError:
        return -math.inf
    try:
        return os.fstat(fd).st_mtime
    except OSError as error:
        raise storage_error(path, error) from error


def _since(found: os.stat_result) -> float:
    # A copied file keeps the time of its content. The time of its inode is that of the copy.
    return max(found.st_mtime, found.st_ctime)
