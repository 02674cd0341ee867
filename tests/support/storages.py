"""Storages and databases that do something just before a call, as another command might at that moment."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backyfs.storage.forwarding import ForwardingStorage
from backyfs.storage.keys import is_blob
from backyfs.storage.protocol import MAX_OBJECT_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.metadata.db.database import Database
    from backyfs.model import Buffer
    from backyfs.repository import Repository
    from backyfs.storage.keys import Key
    from backyfs.storage.protocol import Storage, StoredObject, Traits


def any_key(_key: Key) -> bool:
    """Choose the objects of both kinds."""
    return True


def is_named(key: Key) -> bool:
    """Choose named objects."""
    return not is_blob(key)


class WatchedStorage:
    """Forwards every call to a storage, and calls a function before calls of some methods."""

    def __init__(
        self, storage: Storage, names: tuple[str, ...], act: Callable[[], object], which: Callable[[Key], bool]
    ) -> None:
        """Watch these methods of a storage, for some of its objects."""
        self._storage = storage
        self._names = names
        self._act = act
        self._which = which

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._storage, name)
        if name not in self._names:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            keys = arguments[0] if name == "delete" else arguments[:1]
            if not keys or any(map(self._which, keys)):
                self._act()
            return real(*arguments, **options)

        return call


def with_storage(repository: Repository, storage: Any) -> Repository:
    """Return the repository with another storage."""
    return replace(repository, blocks=replace(repository.blocks, storage=storage))


class PaidStorage(ForwardingStorage):
    """Forwards every call to a storage whose objects are paid for in advance."""

    def __init__(self, storage: Storage, *, days: int) -> None:
        """Let each object be paid for this long."""
        super().__init__(storage)
        self._traits = replace(storage.traits, paid_days=days)
        self.days_later = 0  # how much older objects are than they really are

    @property
    def traits(self) -> Traits:
        """The traits, with those days."""
        return self._traits

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield objects by the prefix of their keys."""
        for found in self.storage.list(prefix):
            yield replace(found, age_s=found.age_s + self.days_later * 86400)


class WatchedLoads(ForwardingStorage):
    """Forwards every call to a storage, and calls a function with the key of each object before it is read."""

    def __init__(self, storage: Storage, act: Callable[[str], object]) -> None:
        """Watch reads from a storage."""
        super().__init__(storage)
        self._act = act

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        """Return an object."""
        self._act(key)
        return super().get(key, most=most)

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        """Return a part of an object."""
        self._act(key)
        return super().get_range(key, offset, length)


def with_watched_loads(repository: Repository, act: Callable[[str], object]) -> Repository:
    """Return the repository with a storage that calls `act` with the key of each object before it is read."""
    return with_storage(repository, WatchedLoads(repository.blocks.storage, act))


def with_watched_reads(repository: Repository, act: Callable[[], object]) -> Repository:
    """Return the repository with a database that calls `act` before each transaction of this command that reads."""
    return _with_watched(repository, "read", act)


def with_watched_storage(
    repository: Repository, act: Callable[[], object], *names: str, which: Callable[[Key], bool] = any_key
) -> Repository:
    """Return the repository with a storage that calls `act` before each call of one of these methods."""
    return with_storage(repository, WatchedStorage(repository.blocks.storage, names, act, which))


def with_watched_writes(repository: Repository, act: Callable[[], object]) -> Repository:
    """Return the repository with a database that calls `act` before each write transaction of this command."""
    return _with_watched(repository, "write", act)


def _with_watched(repository: Repository, name: str, act: Callable[[], object]) -> Repository:
    database: Database = copy(repository.database)
    real = getattr(database, name)

    @contextmanager
    def transaction() -> Iterator[Any]:
        act()
        with real() as connection:
            yield connection

    setattr(database, name, transaction)
    return replace(repository, database=database)


class ReadStorage(ForwardingStorage):
    """Notes in `read` what is read: ranges of objects, or "whole"."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.read: list[tuple[int, int] | str] = []

    def get(self, key: Key, *, most: int = MAX_OBJECT_BYTES) -> Buffer:
        self.read.append("whole")
        return super().get(key, most=most)

    def get_range(self, key: Key, offset: int, length: int) -> bytes:
        self.read.append((offset, length))
        return super().get_range(key, offset, length)
