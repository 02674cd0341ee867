"""What is in the directory of a storage: objects with sizes and ages, and what killed commands left behind."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from typing import TYPE_CHECKING

from backyfs.model import BlobUid
from backyfs.storage import StoredObject
from backyfs.storage.oserror import storage_error
from backyfs.storage.uid import NAMED, is_name, is_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backyfs.storage.beneath import Root

BLOB = ".blob"
BLOB_TEMPORARY = ".blob.tmp"
NAMED_TEMPORARY = ".tmp"  # with random digits before: two commands may store an object of the same name at once

_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SHELF_DIGITS = 2  # of the name of each directory of blobs
_NAMED_LEVELS = 4  # of directories, in the name of an object: what is deeper is not ours

_log = logging.getLogger(__name__)


def list_uids(root: Root) -> Iterator[BlobUid]:
    """Yield the uid of everything that is in the place of a blob, whatever it is.

    Raises:
        StorageError: the directory cannot be read.
    """
    for fd, directory, _ in _blob_directories(root, ""):
        for name, _ in _entries(root, directory, fd):
            if name.endswith(BLOB):
                yield BlobUid(name.removesuffix(BLOB))


def list_stored(root: Root, fd: int, prefix: str) -> Iterator[StoredObject]:
    """Yield the objects whose uids begin with a prefix; `fd` is the directory of the storage.

    Raises:
        StorageError: it cannot be read.
    """
    now = _now(root.path, fd)
    for shelf, directory, start in _blob_directories(root, prefix):
        for name, found in _entries(root, directory, shelf):
            uid = name.removesuffix(BLOB)
            is_blob = name.endswith(BLOB) and is_uid(uid) and stat.S_ISREG(found.st_mode)
            if is_blob and uid.startswith(start) and uid.startswith(prefix):
                yield StoredObject(uid=BlobUid(uid), size_bytes=found.st_size, age_s=now - _since(found))


def list_named(root: Root, prefix: str) -> Iterator[str]:
    """Yield the names of all objects below a prefix, whatever is in their places.

    Raises:
        StorageError: a directory cannot be read.
    """
    for fd, directory in _named_directories(root, prefix.removesuffix("/")):
        for name, found in _entries(root, directory, fd):
            if not _may_be_shelf(name, found) and is_name(f"{directory}/{name}"):
                yield f"{directory}/{name}"


def remove_leftovers(root: Root, fd: int, older_than_s: float) -> int:
    """Remove temporary files that were made so long ago; return how many there were.

    Raises:
        StorageError: one cannot be removed, or a directory cannot be read.
    """
    now = _now(root.path, fd)
    removed = 0
    for shelf, directory, _ in _blob_directories(root, ""):
        removed += _remove_old(root, directory, shelf, BLOB_TEMPORARY, now - older_than_s)
    for inner, directory in _named_directories(root, NAMED):
        removed += _remove_old(root, directory, inner, NAMED_TEMPORARY, now - older_than_s)
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
    """Yield the directories, open and by name, in which blobs lie whose uids begin with a prefix.

    The third value is how all uids in there begin.
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
    """Yield a directory of named objects and those below it, open and by name; none if it is not there."""
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
    """Give a directory, open; None: it is not there, or something else is in its place."""
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
    """Yield what is in an open directory; what is removed while it is listed is left out."""
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)
    except OSError as error:
        raise storage_error(f"{root.path}/{directory}" if directory else root.path, error) from error


def _now(path: str, fd: int) -> float:
    """Return the time by the clock that files here get their times from: on a network it is another host's."""
    try:
        os.utime(fd)
        return os.fstat(fd).st_mtime
    except OSError as error:
        raise storage_error(path, error) from error


def _since(found: os.stat_result) -> float:
    # A file that was copied here keeps the time of its content; that of its inode is when it came.
    return max(found.st_mtime, found.st_ctime)
