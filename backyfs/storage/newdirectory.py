"""Create the directory of a new storage."""

from __future__ import annotations

import logging
import os
import stat

from backyfs.errors import StorageError
from backyfs.files import make_directories
from backyfs.remedies import Advice
from backyfs.storage.keys import NAMED
from backyfs.storage.oserror import storage_error

_LOST_AND_FOUND = "lost+found"  # in the root of a new ext file system

_log = logging.getLogger(__name__)


def create_directory(path: str, *, may_hold_blobs: bool = False) -> bool:
    """Create the directory of a new storage, mode 0700. It may be the root of a new file system.

    With `may_hold_blobs` it may already hold blobs; return whether it does.

    Raises:
        StorageError: it holds something else, or cannot be created.
    """
    try:
        make_directories(path)
        there = set(os.listdir(path))
        if NAMED in there:
            raise StorageError(
                "holds a repository", subject=f"storage directory {path}", remedy=Advice.RECOVER_STORAGE(path=path)
            )
        shelves = {name for name in there if may_hold_blobs and _may_be_shelf(path, name)}
        others = there - shelves - {_LOST_AND_FOUND}
        if others:
            raise StorageError(
                f"is not empty: it holds {min(others)}",
                subject=f"storage directory {path}",
                remedy="name another one",
            )
        if _LOST_AND_FOUND in there or os.path.ismount(path):
            _log.warning(
                "storage directory %s is a mount point; a directory below it would be safer, because that is gone "
                "while nothing is mounted there",
                path,
            )
    except OSError as error:
        raise storage_error(path, error) from error
    return bool(shelves)


def _may_be_shelf(path: str, name: str) -> bool:
    """Return whether an entry of the storage directory may contain blobs of backy2 or backyfs."""
    if len(name) != 2 or not name.isascii() or not name.isalnum():
        return False
    return stat.S_ISDIR(os.lstat(f"{path}/{name}").st_mode)  # symbolic links below a storage are not followed
