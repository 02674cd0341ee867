"""Open or make the storage that a configuration names, with the limits that it sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backyfs.config import DirectoryStorageConfig, NullStorageConfig
from backyfs.errors import ConfigError
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.null import NullStorage
from backyfs.storage.throttling import throttled

if TYPE_CHECKING:
    from collections.abc import Callable

    from backyfs.config import Config
    from backyfs.storage import Storage


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


def create_storage(config: Config) -> None:
    """Make the storage of a new repository, as far as it is something that has to be made.

    Raises:
        ConfigError: this release does not have this kind of storage.
        StorageError: it is there already and not empty, or cannot be made.
    """
    match config.storage:
        case DirectoryStorageConfig(path=path):
            DirectoryStorage.create(path)
        case NullStorageConfig():
            pass
        case _:
            raise _unknown_kind(config)


def _unknown_kind(config: Config) -> ConfigError:
    return ConfigError(
        "names a kind of storage that this release does not have; allowed: file, null",
        section="DataBackend",
        key="type",
        file=config.files[-1] if config.files else "",
    )
