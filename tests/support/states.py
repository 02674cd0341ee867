"""The states of a directory after kills at every step of an action, each distinct state once.

A killed process leaves its files as they are at that moment. So one process does all of the action. At each step it
stops, with all its threads, until its files have been examined.

Two moments are the same state if the next command sees no difference in any row of any SQLite database after SQLite has
recovered it, or in any other file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backyfs.storage.directory import DirectoryStorage
from tests.support.statements import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from tests.support.statements import Statements

_MAGIC = b"SQLite format 3\0"
_BESIDE = ("-wal", "-shm", "-journal")  # files of a database
_PRAGMAS = ("application_id", "user_version", "journal_mode")
_STORAGE_CALLS = ("put", "flush", "delete")


@dataclass(frozen=True, slots=True)
class KilledStates:
    """The states in the order in which they occurred, each with its files."""

    steps: int
    copies: dict[str, Path]


class Stored:
    """A directory that can be restored to its original state."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._original = directory.with_name(f"{directory.name}.original")
        shutil.copytree(directory, self._original)

    def renew(self) -> None:
        """Restore the directory."""
        self.put(self._original)

    def put(self, files: Path) -> None:
        """Replace the directory with a copy of these files."""
        shutil.rmtree(self.directory)
        shutil.copytree(files, self.directory)

    def state(self) -> str:
        """Return a digest of everything that a command can see in the directory."""
        return digest_of(read_files(self.directory))

    def killed(
        self, act: Callable[[], object], *, changes_only: bool = True, storage: bool = False
    ) -> KilledStates:
        """Run an action in another process; return the states left by kills before each statement.

        With `storage`, calls of a storage in a directory are steps too. Afterwards the action is complete.
        """
        copies = self.directory.with_name(f"{self.directory.name}.killed")
        copies.mkdir()
        found: dict[str, Path] = {}
        last: dict[str, bytes | None] = {}
        steps = 0
        pid = _stopping(act, changes_only=changes_only, storage=storage)
        while _stops(pid):
            steps += 1
            files = read_files(self.directory)
            if files != last:
                state = digest_of(files)
                if state in found:  # the latest files give SQLite the most to undo
                    shutil.rmtree(found[state])
                found[state] = copies / str(steps)
                _write(files, found[state], self.directory)
                last = files
            os.kill(pid, signal.SIGCONT)
        return KilledStates(steps, found)


def _stopping(act: Callable[[], object], *, changes_only: bool, storage: bool) -> int:
    """Start an action in another process, which stops at each step; return its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with watched(lambda: os.kill(os.getpid(), signal.SIGSTOP), None, changes_only=changes_only) as steps:
            if storage:
                watch_storage(steps)
            act()
        status = 0
    finally:
        os._exit(status)


def _stops(pid: int) -> bool:
    """Wait until a process stops; return False if it has ended instead."""
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def watch_storage(steps: Statements) -> None:
    """Count each call that changes a storage, from now on, anywhere in this process."""
    for name in _STORAGE_CALLS:
        _count_calls(steps, name)


def _count_calls(steps: Statements, name: str) -> None:
    real = getattr(DirectoryStorage, name)

    def counted(*arguments: object, **options: object) -> object:
        steps.note("INSERT")
        return real(*arguments, **options)

    setattr(DirectoryStorage, name, counted)


def read_files(directory: Path) -> dict[str, bytes | None]:
    """Return the content of all files below a directory, and None for directories."""
    found: dict[str, bytes | None] = {}
    for place, directories, names in os.walk(directory):
        below = os.path.relpath(place, directory)
        found.update((os.path.normpath(os.path.join(below, name)), None) for name in directories)
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                found[os.path.normpath(os.path.join(below, name))] = file.read()
    return found


def _write(files: dict[str, bytes | None], directory: Path, like: Path) -> None:
    """Create files with these contents and the modes of the files in another directory."""
    directory.mkdir()
    for name, content in files.items():
        if content is None:
            (directory / name).mkdir()
        else:
            (directory / name).write_bytes(content)
    for name in files:
        shutil.copymode(like / name, directory / name)


def digest_of(files: dict[str, bytes | None]) -> str:
    """Return a digest of everything a command can see in files; for SQLite databases, their contents once opened."""
    databases = [name for name, content in files.items() if content is not None and content.startswith(_MAGIC)]
    beside = {f"{name}{suffix}" for name in databases for suffix in _BESIDE}
    digest = hashlib.sha256()
    for name in sorted(files.keys() - beside):
        content = _dump(files, name).encode() if name in databases else files[name]
        digest.update(repr((name, None if content is None else len(content))).encode())
        digest.update(content or b"")
    return digest.hexdigest()


def _dump(files: dict[str, bytes | None], name: str) -> str:
    """Return the contents of an SQLite database once opened."""
    with tempfile.TemporaryDirectory() as directory:
        for suffix in ("", *_BESIDE):
            content = files.get(f"{name}{suffix}")
            if content is not None:
                Path(directory, f"copy{suffix}").write_bytes(content)
        with closing(sqlite3.connect(Path(directory, "copy"))) as database:
            settings = [database.execute(f"PRAGMA {pragma}").fetchone() for pragma in _PRAGMAS]
            return "\n".join([repr(settings), *database.iterdump()])


_POSTGRESQL = (  # the contents of a database that are not rows
    ("SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default "
    "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"),
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexname",
    ("SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
    "WHERE connamespace = 'public'::regnamespace ORDER BY conname"),
    "SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public' ORDER BY sequencename",
)


def dump_of(connection: Connection) -> str:
    """Return the contents of a server's database: tables with their columns, keys, counters and rows."""

    def ask(query: str) -> list[str]:
        return list(map(repr, connection.exec_driver_sql(query)))

    if connection.dialect.name == "postgresql":
        said = [ask(query) for query in _POSTGRESQL]
        tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
        names = [f'"{name}"' for (name,) in connection.exec_driver_sql(tables)]
    else:
        names = sorted(f"`{name}`" for (name,) in connection.exec_driver_sql("SHOW TABLES"))
        said = [ask(f"SHOW CREATE TABLE {name}") for name in names]
    said += [sorted(ask(f"SELECT * FROM {name}")) for name in names]
    return repr((names, said))
