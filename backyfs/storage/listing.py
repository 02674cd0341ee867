"""What lies in the directory of a storage: objects with sizes and ages, and what killed commands have left."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from backyfs.model import BlobUid
from backyfs.storage import StoredObject
from backyfs.storage.oserror import raise_storage_error, storage_error
from backyfs.storage.uid import NAMED, is_uid

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOB = ".blob"
BLOB_TEMPORARY = ".blob.tmp"
NAMED_TEMPORARY = ".tmp"  # with random digits before: two commands may store an object of the same name at once


def list_stored(path: str, fd: int, prefix: str) -> Iterator[StoredObject]:
    """Yield the objects whose uids begin with a prefix; `fd` is the open directory `path`.

    Raises:
        StorageError: it cannot be read.
    """
    now = _now(path, fd)
    for directory, start in _blob_directories(path, prefix):
        for name, found in _entries(directory):
            uid = name.removesuffix(BLOB)
            is_blob = name.endswith(BLOB) and is_uid(uid) and stat.S_ISREG(found.st_mode)
            if is_blob and uid.startswith(start) and uid.startswith(prefix):
                yield StoredObject(uid=BlobUid(uid), size_bytes=found.st_size, age_s=now - _since(found))


def remove_leftovers(path: str, fd: int, older_than_s: float) -> int:
    """Remove temporary files that were made so long ago; return how many there were.

    Raises:
        StorageError: one cannot be removed, or the directory cannot be read.
    """
    now = _now(path, fd)
    removed = 0
    places = [(directory, BLOB_TEMPORARY) for directory, _ in _blob_directories(path, "")]
    if os.path.isdir(f"{path}/{NAMED}"):
        walked = os.walk(f"{path}/{NAMED}", onerror=raise_storage_error)
        places += [(directory, NAMED_TEMPORARY) for directory, _, _ in walked]
    for directory, suffix in places:
        for name, found in _entries(directory):
            if name.endswith(suffix) and now - _since(found) > older_than_s:
                removed += _remove(f"{directory}/{name}")
    return removed


def _blob_directories(path: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the directories in which blobs lie whose uids begin with a prefix, and how all in there begin."""
    try:
        for first in os.listdir(path):
            if len(first) != 2 or not first.startswith(prefix[:2]) or not os.path.isdir(f"{path}/{first}"):
                continue
            for second in os.listdir(f"{path}/{first}"):
                if len(second) == 2 and second.startswith(prefix[2:4]):
                    yield f"{path}/{first}/{second}", first + second
    except OSError as error:
        raise storage_error(path, error) from error


def _entries(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what is in a directory; what goes meanwhile is left out."""
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise storage_error(directory, error) from error


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


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(path, error) from error
    return True
