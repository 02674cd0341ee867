"""The files of a repository itself: database, storage, configuration, keys, log. No command may overwrite them.

They are recognised by device and inode, so hard links, symbolic links and bind mounts lead to them as well.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from backyfs.config import DirectoryStorageConfig, ObjectStoreConfig
from backyfs.host.mounttable import is_below, place_of
from backyfs.metadata.db.database import Database, sqlite_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.config import Config

_SEPARATORS = ("-", ".")  # between the name of a database and the ending of its journals and copies


def configured_own_paths(config: Config) -> tuple[str, ...]:
    """Return the local paths that nothing else may write to, for a command that does not open the repository.

    Raises:
        DatabaseError: the URL of the database cannot be used.
    """
    storage_paths = [config.storage.path] if isinstance(config.storage, DirectoryStorageConfig) else []
    with closing(Database(config.database_url)) as database:
        return own_paths(config, database, storage_paths)


def own_paths(config: Config, database: Database, storage_paths: Sequence[str]) -> tuple[str, ...]:
    """Return the local paths of a repository that nothing else may write to, those of the storage first."""
    paths = [*storage_paths, *config.files, sqlite_path(database.engine.url), config.logfile]
    if config.key is not None:
        paths.append(config.key.file)
    if config.passphrase is not None:
        paths.append(config.passphrase.file)
    if isinstance(config.storage, ObjectStoreConfig):
        paths.append(config.storage.aws_secret_access_key_file)
    return tuple(os.path.realpath(path) for path in paths if path)


def find_own(path: str, own_paths: Sequence[str]) -> str | None:
    """Return which of a repository's own paths `path` is, is in, or lies beside as a journal or copy; None: of none.

    `path` may be that of a file that does not exist yet. Of a file with several hard links the inode is looked for in
    the whole storage.
    """
    real = os.path.realpath(path)
    place = place_of(real) or _place_of_new(real)
    try:
        about = os.stat(real)
    except OSError:
        about = None
    for own in own_paths:
        if is_below(real, own) or _is_companion(real, own):
            return own
        own_place = place_of(own)
        if place is not None and own_place is not None and _is_in_place(place, own_place):
            return own
        if about is not None and any(_is_same(file, about) for file in _with_companions(own)):
            return own
        if about is not None and _holds(own, about):
            return own
    return None


def _place_of_new(path: str) -> tuple[str, str] | None:
    above = place_of(os.path.dirname(path))
    return None if above is None else (above[0], os.path.join(above[1], os.path.basename(path)))


def _is_in_place(place: tuple[str, str], own: tuple[str, str]) -> bool:
    return place[0] == own[0] and is_below(place[1], own[1])


def _with_companions(own: str) -> Iterator[str]:
    yield own
    directory = os.path.dirname(own)
    with suppress(OSError):
        for name in os.listdir(directory):
            if _is_companion(f"{directory}/{name}", own):
                yield f"{directory}/{name}"


def _is_companion(path: str, own: str) -> bool:
    """Tell whether a path is named as the journals and copies of a file are: `m.db-wal`, `m.db.before-upgrade`."""
    ending = path.removeprefix(own)
    return ending != path and ending.startswith(_SEPARATORS) and "/" not in ending and not os.path.isdir(own)


def _is_same(path: str, about: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), about)
    except OSError:
        return False


def _holds(directory: str, about: os.stat_result) -> bool:
    """Tell whether a file below a directory is a hard link to this one. Only directory entries are read."""
    if not stat.S_ISREG(about.st_mode) or about.st_nlink == 1 or not os.path.isdir(directory):
        return False
    waiting = [directory] if os.stat(directory).st_dev == about.st_dev else []
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.inode() == about.st_ino:
                    return True
    return False
