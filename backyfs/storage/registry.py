"""The kinds of storage, and how the one that a configuration names is opened or created.

A new kind is a module, a class in `backyfs.config` and a line in `KINDS`. It also joins the contract suite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backyfs.config import DirectoryStorageConfig, NullStorageConfig, ObjectStoreConfig
from backyfs.storage.directory import DirectoryStorage
from backyfs.storage.newdirectory import create_directory
from backyfs.storage.null import NullStorage
from backyfs.storage.throttling import throttled

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from backyfs.config import Config, StorageConfig
    from backyfs.storage.protocol import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageKind:
    """How storages of one kind are opened and created. The functions take the configuration of the storage."""

    open: Callable[[Any, Callable[[], bool]], Storage]  # with a function: does the command end?
    create: Callable[[Any, bool], bool]  # may it hold blobs? -> does it? See `create_storage`
    find_setting: Callable[[Any], str | None] = lambda _config: None  # that has to be changed; see `find_setting`


def _bucket() -> ModuleType:
    from backyfs.storage import bucket  # noqa: PLC0415 - asyncio takes 30 ms to load, and directories do without it

    return bucket


KINDS = {
    DirectoryStorageConfig: StorageKind(
        open=lambda config, _stop: DirectoryStorage(config.path),
        create=lambda config, may_hold_blobs: create_directory(config.path, may_hold_blobs=may_hold_blobs),
    ),
    ObjectStoreConfig: StorageKind(
        open=lambda config, stop: _bucket().open_bucket(config, stop),
        create=lambda config, may_hold_blobs: _bucket().check_new_bucket(config, may_hold_blobs=may_hold_blobs),
        find_setting=lambda config: _bucket().find_setting(config),
    ),
    NullStorageConfig: StorageKind(
        open=lambda _config, _stop: NullStorage(), create=lambda _config, _may_hold_blobs: False
    ),
}


def open_storage(config: StorageConfig, stop: Callable[[], bool] = lambda: False) -> Storage:
    """Open the storage, with the limits that the configuration sets.

    Threads that wait, because of a limit or for an answer, call `stop` to find out whether the command should end.

    Raises:
        ConfigError: it cannot be opened as configured, or its library is missing.
        StorageError: the storage does not exist.
    """
    return throttled(KINDS[type(config)].open(config, stop), config, stop)


def with_cache(storage: Storage, config: Config, repository: str) -> Storage:
    """Return a storage with the configured disk cache in front of it, if there is one for this kind of storage.

    `repository` is the uid of the repository. Only for reading what was backed up: a command that checks the storage
    would check the cache.
    """
    if config.storage.cache is None:
        return storage
    from backyfs.storage.cache.storage import cached  # noqa: PLC0415 - few commands read through a cache

    return cached(storage, config.storage.cache, size_bytes=config.storage.cache_size, repository=repository)


def create_storage(config: Config, *, may_hold_blobs: bool = False) -> bool:
    """Create the storage of a new repository, if it needs to be created; return whether it holds blobs.

    With `may_hold_blobs` it may already hold blobs whose rows will be imported.

    Raises:
        ConfigError: it cannot be opened as configured, or its library is missing.
        StorageError: it exists and is not empty, or cannot be created.
    """
    return KINDS[type(config.storage)].create(config.storage, may_hold_blobs)


def find_setting(config: StorageConfig) -> str | None:
    """Return a setting with which a storage that does not answer would; None: none is known."""
    return KINDS[type(config)].find_setting(config)
