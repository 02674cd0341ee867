"""Storages and databases that do something just before a call: what another command does in that moment."""

from __future__ import annotations

from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from backyfs.metadata.db.database import Database
    from backyfs.repository import Repository


class WatchedStorage:
    """Forwards every call to a storage; before those that are named it calls a function."""

    def __init__(self, storage: Any, names: tuple[str, ...], act: Callable[[], object]) -> None:
        """Watch these methods of a storage."""
        self._storage = storage
        self._names = names
        self._act = act

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._storage, name)
        if name not in self._names:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self._act()
            return real(*arguments, **options)

        return call


def with_watched_storage(repository: Repository, act: Callable[[], object], *names: str) -> Repository:
    """Return the repository with a storage that calls `act` before each call of one of these methods."""
    storage: Any = WatchedStorage(repository.blocks.storage, names, act)
    return replace(repository, blocks=replace(repository.blocks, storage=storage))


class WatchedLoads:
    """Forwards every call to a storage; before a blob is read it calls a function with its uid."""

    def __init__(self, storage: Any, act: Callable[[str], object]) -> None:
        """Watch what is read from a storage."""
        self._storage = storage
        self._act = act

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._storage, name)
        if not name.startswith("get"):
            return real

        def call(uid: Any, *arguments: Any, **options: Any) -> Any:
            self._act(str(uid))
            return real(uid, *arguments, **options)

        return call


def with_watched_loads(repository: Repository, act: Callable[[str], object]) -> Repository:
    """Return the repository with a storage that calls `act` with the uid of each blob before it is read."""
    storage: Any = WatchedLoads(repository.blocks.storage, act)
    return replace(repository, blocks=replace(repository.blocks, storage=storage))


def with_watched_reads(repository: Repository, act: Callable[[], object]) -> Repository:
    """Return the repository with a database that calls `act` before each transaction of this command that reads."""
    return _with_watched(repository, "read", act)


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
