"""Open or make the storage that a configuration names, with the limits that it sets."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING

from backyfs.config import DirectoryStorageConfig, NullStorageConfig
from backyfs.errors import ConfigError, StorageError
from backyfs.files import make_directories
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.null import NullStorage
from backyfs.storage.oserror import storage_error
from backyfs.storage.throttling import throttled
from backyfs.storage.uid import NAMED
from backyfs.text import shell_word

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.config import Config
    from backyfs.storage import Storage

_LOST_AND_FOUND = "lost+found"  # in the root of a new ext file system

_log = logging.getLogger(__name__)


def open_storage(config: Config, stop: Callable[[], bool] = lambda: False) -> Storage:
    """Open the storage. `stop` tells threads that wait for its limits whether the command is to end.

    Raises:
        ConfigError: this release does not have this kind of storage.
        StorageError: the storage is not there.
    """
    return throttled(_open(config), config.storage, stop)


def _open(config: Config) -> Storage:
    match config.storage:
        case DirectoryStorageConfig(path=path):
            return DirectoryStorage(path)
        case NullStorageConfig():
            return NullStorage()
    raise _unknown_kind(config)


def create_storage(config: Config, *, may_hold_blobs: bool = False) -> bool:
    """Make the storage of a new repository, if it is something that has to be made; return whether it holds blobs.

    With `may_hold_blobs` it may hold objects of blobs whose rows are to be imported.

    Raises:
        ConfigError: this release does not have this kind of storage.
        StorageError: it is there already and not empty, or cannot be made.
    """
    match config.storage:
        case DirectoryStorageConfig(path=path):
            return create_directory(path, may_hold_blobs=may_hold_blobs)
        case NullStorageConfig():
            return False
    raise _unknown_kind(config)


def create_directory(path: str, *, may_hold_blobs: bool = False) -> bool:
    """Make the directory of a new storage, mode 0700. It may be the root of a new file system.

    With `may_hold_blobs` it may hold objects of blobs; return whether it does.

    Raises:
        StorageError: it exists and holds something else, or cannot be made.
    """
    try:
        make_directories(path)
        there = set(os.listdir(path))
        if NAMED in there:
            raise StorageError(
                f"storage directory {path} holds a repository; `backyfs recover {shell_word(path)}` rebuilds its "
                "database, or name another directory"
            )
        shelves = {name for name in there if may_hold_blobs and _may_be_shelf(path, name)}
        others = there - shelves - {_LOST_AND_FOUND}
        if others:
            raise StorageError(f"storage directory {path} is not empty: it holds {min(others)}; name another one")
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
    """Tell whether blobs may lie below an entry of the storage directory, as backy2 and backyfs put them there."""
    if len(name) != 2 or not name.isascii() or not name.isalnum():
        return False
    return stat.S_ISDIR(os.lstat(f"{path}/{name}").st_mode)  # links below a storage are not followed


def _unknown_kind(config: Config) -> ConfigError:
    return ConfigError(
        "names a kind of storage that this release does not have; allowed: file, null",
        section="DataBackend",
        key="type",
        file=config.files[-1] if config.files else "",
    )
