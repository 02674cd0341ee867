"""What a disk may hold after a power loss, for every moment of something that was recorded.

The recording contains the system calls of a storage in a directory, and each commit of an SQLite database with the
state it made. The rules are those of POSIX, which promises least. The content of a file is on the disk when the file or
the file system was synced. A name that was made, changed or removed is on the disk when its directory or the file
system was synced. Until then each of these may be there or not, whatever came before or after it. A commit of SQLite
that has returned is believed to be on the disk (`PRAGMA synchronous = FULL`).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine.default import DefaultDialect

from backyfs.storage import directory as directory_module
from backyfs.storage.beneath import Root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import pytest


class Fate(Enum):
    """What becomes of the content of files that were not synced."""

    KEPT = "kept"
    EMPTY = "empty"
    ZEROS = "zeros"


@dataclass(frozen=True, slots=True)
class Named:
    """An entry of a directory was made, renamed or removed."""

    gone: str | None   # this name is gone
    there: str | None  # and this one is there,
    file: int | None   # of this file; None: a directory

    @property
    def directory(self) -> str:
        """The directory that knows it."""
        return os.path.dirname(self.there or self.gone or "")


@dataclass(frozen=True, slots=True)
class Written:
    """A file was given more bytes."""

    file: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Synced:
    """What was recorded before `covers` is on the disk: of a file, a directory, or all."""

    covers: int
    file: int | None = None
    directory: str | None = None

    def keeps(self, place: int, step: Named | Written) -> bool:
        """Return whether it made a step durable."""
        if place >= self.covers:
            return False
        if self.file is None and self.directory is None:
            return True
        return step.file == self.file if isinstance(step, Written) else step.directory == self.directory


@dataclass(frozen=True, slots=True)
class Committed:
    """The database has come to a state, of which this is a copy."""

    copy: Path


Step = Named | Written | Synced | Committed


@dataclass(frozen=True, slots=True)
class Disk:
    """What is there after a power loss: files by their paths below the storage; directories are None."""

    files: tuple[tuple[str, bytes | None], ...]
    database: Path


@dataclass(slots=True)
class Recording:
    """Steps, after what was there at their beginning."""

    before: dict[str, bytes | None]
    database: Path
    steps: list[Step] = field(default_factory=list)

    def disks(self) -> Iterator[Disk]:
        """Yield states that a power loss may leave, for every moment, each once; see `_choices` for what they have."""
        seen: set[Disk] = set()
        for moment in range(len(self.steps) + 1):
            for disk in self._disks_at(moment):
                if disk not in seen:
                    seen.add(disk)
                    yield disk

    def _disks_at(self, moment: int) -> Iterator[Disk]:
        steps = list(enumerate(self.steps[:moment]))
        syncs = [step for _, step in steps if isinstance(step, Synced)]
        changes = [(place, step) for place, step in steps if isinstance(step, Named | Written)]
        safe = {place for place, step in changes if any(sync.keeps(place, step) for sync in syncs)}
        names = [place for place, step in changes if isinstance(step, Named) and place not in safe]
        database = next((step.copy for _, step in reversed(steps) if isinstance(step, Committed)), self.database)
        for chosen in _choices(names):
            for fate in Fate:
                files = self._apply(changes, safe | chosen, safe, fate)
                yield Disk(tuple(sorted(files.items())), database)

    def _apply(
        self, changes: Iterable[tuple[int, Named | Written]], there: set[int], safe: set[int], fate: Fate
    ) -> dict[str, bytes | None]:
        contents: dict[int, bytes] = {}
        names: dict[str, int | None] = {}
        files = dict(self.before)
        for place, step in changes:
            if isinstance(step, Written):
                lost = b"" if fate is Fate.EMPTY else bytes(len(step.content))
                kept = place in safe or fate is Fate.KEPT
                contents[step.file] = contents.get(step.file, b"") + (step.content if kept else lost)
            elif place in there:
                if step.gone is not None:
                    names.pop(step.gone, None)
                    files.pop(step.gone, None)
                if step.there is not None:
                    names[step.there] = step.file
        for path, file in names.items():
            files[path] = None if file is None else contents.get(file, b"")
        return {path: content for path, content in files.items() if _can_be_reached(path, files)}


def _choices(places: list[int]) -> Iterator[set[int]]:
    """Yield which of the steps happened: none, all, each alone, all but each, and all up to each."""
    every = set(places)
    yield from (set(), every)
    for number, place in enumerate(places):
        yield from ({place}, every - {place}, set(places[:number]))


def _can_be_reached(path: str, files: dict[str, bytes | None]) -> bool:
    above = os.path.dirname(path)
    return not above or (above in files and _can_be_reached(above, files))


class Recorder:
    """Records what this process does to a storage and its SQLite database."""

    def __init__(self, storage: Path, database: Path, copies: Path) -> None:
        """Begin with what is there; copies of the database are made in a directory."""
        self._storage = str(storage)
        self._database = database
        self._copies = copies
        self._lock = threading.RLock()  # calls of Root may make calls of os
        self._numbers: dict[str, int] = {}       # of files, by their paths now
        self._open: dict[int, str | int] = {}    # descriptors: directories by their paths, files by their numbers
        self.recording = Recording(read_tree(storage), self._copy())

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Record from now on, until the patch is undone."""
        self._wrap(patch, Root, "open", self._opened_below)
        self._wrap(patch, os, "open", self._opened_at)
        self._wrap(patch, os, "mkdir", self._made)
        self._wrap(patch, os, "unlink", self._unlinked)
        self._wrap(patch, os, "rename", self._renamed)
        self._wrap(patch, os, "link", self._linked)
        self._wrap(patch, os, "writev", lambda size, fd, parts: self._wrote(fd, b"".join(parts)[:size]))
        self._wrap(patch, os, "write", lambda size, fd, content: self._wrote(fd, bytes(content)[:size]))
        for name in ("fsync", "fdatasync"):
            self._wrap_sync(patch, os, name)
        self._wrap_sync(patch, directory_module, "syncfs")
        commit = DefaultDialect.do_commit

        def do_commit(dialect: DefaultDialect, connection: Any) -> None:
            commit(dialect, connection)
            with self._lock:
                self.recording.steps.append(Committed(self._copy()))

        patch.setattr(DefaultDialect, "do_commit", do_commit)

    def _wrap(self, patch: pytest.MonkeyPatch, owner: Any, name: str, note: Callable[..., None]) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            with self._lock:  # one after the other, so that the order is the one that is recorded
                result = real(*arguments, **options)
                note(result, *arguments, **options)
                return result

        patch.setattr(owner, name, wrapped)

    def _wrap_sync(self, patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        real = getattr(module, name)

        def wrapped(fd: int) -> None:
            covers = len(self.recording.steps)  # what others do in the meantime may come too late
            real(fd)
            what = self._open.get(fd)
            with self._lock:
                if name == "syncfs":
                    self.recording.steps.append(Synced(covers))
                elif isinstance(what, str):
                    self.recording.steps.append(Synced(covers, directory=what))
                elif what is not None:
                    self.recording.steps.append(Synced(covers, file=what))

        patch.setattr(module, name, wrapped)

    def _below(self, path: Any) -> str | None:
        """Return a path as it is below the storage; None: it is elsewhere."""
        path = os.fspath(path)
        if path == self._storage:
            return ""
        return path.removeprefix(f"{self._storage}/") if path.startswith(f"{self._storage}/") else None

    def _at(self, path: Any, dir_fd: int | None) -> Any:
        """Return a path that was given with the descriptor of a directory, whole."""
        if dir_fd is None:
            return path
        directory = self._open.get(dir_fd)
        return _join(f"{self._storage}/{directory}", path) if isinstance(directory, str) else ""

    def _opened_below(self, fd: int, root: Root, name: str, flags: int, _mode: int = 0) -> None:
        self._opened(fd, _join(root.path, name), flags)

    def _opened_at(self, fd: int, path: Any, flags: int, _mode: int = 0, *, dir_fd: int | None = None) -> None:
        self._opened(fd, self._at(path, dir_fd), flags)

    def _made(self, _: None, path: Any, _mode: int = 0, *, dir_fd: int | None = None) -> None:
        self._named(None, self._at(path, dir_fd), None)

    def _unlinked(self, _: None, path: Any, *, dir_fd: int | None = None) -> None:
        self._named(self._at(path, dir_fd), None, None)

    def _opened(self, fd: int, path: Any, flags: int) -> None:
        below = self._below(path)
        if below is None:
            self._open.pop(fd, None)
        elif flags & os.O_CREAT:
            self._open[fd] = self._numbers[below] = number = len(self.recording.steps)
            self.recording.steps.append(Named(None, below, number))
        elif flags & os.O_DIRECTORY:
            self._open[fd] = below
        else:
            self._open.pop(fd, None)

    def _named(self, gone: Any, there: Any, file: int | None) -> None:
        before, after = (None if path is None else self._below(path) for path in (gone, there))
        if before is not None or after is not None:
            self.recording.steps.append(Named(before, after, file))

    def _renamed(self, _: None, before: Any, after: Any, src_dir_fd: int, dst_dir_fd: int) -> None:
        before, after = self._at(before, src_dir_fd), self._at(after, dst_dir_fd)
        if (below := self._below(before)) is not None:
            number = self._numbers.pop(below)
            self._numbers[self._below(after) or ""] = number
            self._named(before, after, number)

    def _linked(self, _: None, name: Any, other: Any, src_dir_fd: int, dst_dir_fd: int, **_options: Any) -> None:
        if (below := self._below(self._at(name, src_dir_fd))) is not None:
            self._named(None, self._at(other, dst_dir_fd), self._numbers[below])

    def _wrote(self, fd: int, content: bytes) -> None:
        number = self._open.get(fd)
        if isinstance(number, int):
            self.recording.steps.append(Written(number, content))

    def _copy(self) -> Path:
        copy = self._copies / f"{len(list(self._copies.iterdir()))}.sqlite"
        with closing(sqlite3.connect(self._database)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        return copy


def _join(directory: str, path: str) -> str:
    return os.path.join(directory, path).rstrip("/")


def read_tree(directory: Path) -> dict[str, bytes | None]:
    """Return what is below a directory."""
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in paths}


def write_tree(directory: Path, files: Iterable[tuple[str, bytes | None]]) -> None:
    """Make what is below a directory; directories come before what is in them."""
    directory.mkdir()
    for name, content in files:
        if content is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(content)
