"""Recognise the files of the repository itself: database, storage, configuration, keys, log.

No command may overwrite them. They are compared by device and inode, so hard links, symbolic links and bind mounts
are recognised too.
"""

from __future__ import annotations

import os
import stat
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from backyfs.host.mounttable import is_below, place_of
from backyfs.metadata.db.database import Database, sqlite_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backyfs.config import Config

_SEPARATORS = ("-", ".")  # between the name of a database and the suffix of its journals and copies


def configured_own_paths(config: Config) -> tuple[str, ...]:
    """Return the local paths that only backyfs may write to, for a command that does not open the repository.

    Raises:
        DatabaseError: the database URL cannot be used.
    """
    path = config.storage.local_path
    with closing(Database(config.database_url)) as database:
        return own_paths(config, database, () if path is None else (path,))


def own_paths(config: Config, database: Database, storage_paths: Sequence[str]) -> tuple[str, ...]:
    """Return the local paths of a repository that only backyfs may write to, the paths of the storage first."""
    paths = [*storage_paths, *config.files, sqlite_path(database.engine.url), config.logfile]
    if config.key is not None:
        paths.append(config.key.file)
    if config.passphrase is not None:
        paths.append(config.passphrase.file)
    paths += config.storage.secret_files
    return tuple(os.path.realpath(path) for path in paths if path)


def find_own(path: str, own_paths: Sequence[str]) -> str | None:
    """Return the repository path that `path` equals, is below, or is a journal or copy of. None if there is none.

    The file may not exist yet. If it has several hard links, its inode is searched for in the whole storage.
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
    """Return whether a path is named like a journal or copy of a file: `m.db-wal`, `m.db.before-upgrade`."""
    ending = path.removeprefix(own)
    return ending != path and ending.startswith(_SEPARATORS) and "/" not in ending and not os.path.isdir(own)


def _is_same(path: str, about: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), about)
    except OSError:
        return False


def _holds(directory: str, about: os.stat_result) -> bool:
    """Return whether a directory tree contains a hard link to this file. Only directory entries are read."""
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
