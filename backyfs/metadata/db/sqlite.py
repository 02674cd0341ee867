"""How the file of an SQLite database is opened: usually, on a read-only file system, and on one without a free byte.

In WAL mode even a reader needs a file beside the database, `-shm`, through which processes coordinate. SQLite allocates
it when the first one opens the database. Where there is no room for that, a reader opens it read-only and keeps the
index of the log in memory. SQLite notices when a writer appears, so what is read is always one committed state.
Source: https://www.sqlite.org/wal.html#readonly, and `walBeginShmUnreliable` in wal.c.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from sqlalchemy.exc import DBAPIError

from backyfs.errors import DatabaseError, DatabaseFullError
from backyfs.metadata.db.room import lacks_room

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK_PATIENCE_MS = 1000   # how long the check of the schema waits for an SQLite file
FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # SQLite itself says that there is no room
_LOOK = "PRAGMA schema_version"  # reads the file, and the log if there is one
ROOM_BYTES = 64 << 10      # for `-shm` and the first pages of a log: with less nothing can be written
_INDEX_BYTES = 32 << 10    # of `-shm` at least, once it is in use
_NORMAL_EVERY = 25
_RETRIES = 100             # while another command comes or goes
_PAUSE_S = 0.02


class ReadingConnection(sqlite3.Connection):
    """A connection that can only read, because there is no room for more. It is for one transaction."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Close it, and let others be opened normally again."""
        super().close()
        on_close, self.on_close = self.on_close, lambda: None
        on_close()


class FileOpener:
    """Opens connections to one file, for one engine. May be called from any thread."""

    def __init__(self, path: str) -> None:
        """Prepare to open the file at `path`."""
        self._path = path
        self._lock = threading.Lock()
        self._reading = 0  # connections that only read; a process opens `-shm` once, as the first of them did

    def __call__(self) -> sqlite3.Connection:
        """Open the file: to read and write, or only to read if there is no room for the files beside it.

        Raises:
            sqlite3.Error: it cannot be opened.
        """
        with self._lock:
            for attempt in range(_RETRIES):
                # An attempt that fails disturbs the readers of other processes, so there are few.
                is_turn = attempt % _NORMAL_EVERY == 0 and not self._reading
                if is_turn and not self._is_surely_full() and (connection := self._open()) is not None:
                    return connection
                if (reading := self._open_reading()) is not None:
                    self._reading += 1
                    reading.on_close = self._count_closed
                    return reading
                time.sleep(_PAUSE_S)
        raise sqlite3.OperationalError(f"{self._path} cannot be read: its file system is full")

    def _count_closed(self) -> None:
        with self._lock:
            self._reading -= 1

    def _is_surely_full(self) -> bool:
        """Return whether a normal connection cannot be opened, without an attempt."""
        try:
            # Where others have it open, nothing has to be allocated.
            is_open = os.path.getsize(f"{self._path}-shm") >= _INDEX_BYTES
        except OSError:
            is_open = False
        return not is_open and lacks_room(self._path, ROOM_BYTES)

    def _open(self) -> sqlite3.Connection | None:
        connection = _connect(self._path)
        try:
            connection.execute(_LOOK).close()
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorname in FULL or (not _is_busy(error) and lacks_room(self._path, ROOM_BYTES)):
                return None
            raise
        return connection

    def _open_reading(self) -> ReadingConnection | None:
        """Return a connection that only reads; None if another command has just come or gone."""
        path = os.path.abspath(self._path)
        if _has_index(path):
            place = f"file:{quote(path)}?readonly_shm=1"
        elif not _has_content(f"{path}-wal") and not _has_content(f"{path}-journal"):
            place = f"file:{quote(path)}?immutable=1"  # not even an empty file can be made: nobody else can write
        else:
            return None
        connection = _connect(place, uri=True, factory=ReadingConnection)
        assert isinstance(connection, ReadingConnection)
        try:
            connection.execute(_LOOK).close()
        except sqlite3.OperationalError as error:
            connection.close()
            if _is_transient(error):
                return None
            raise
        return connection


def begin_reading(raw: ReadingConnection, statement: str, execute: Callable[[str], object]) -> None:
    """Begin a transaction with `statement` on a connection that can only read.

    Raises:
        DatabaseFullError: it is one that writes.
        DBAPIError: it cannot begin.
    """
    if statement != "BEGIN":
        path = raw.execute("PRAGMA database_list").fetchone()[2]
        raise DatabaseFullError(full_message(path))
    for attempt in range(_RETRIES):
        execute(statement)
        try:
            execute("SELECT 1 FROM sqlite_master")  # the state that the transaction sees is fixed here
        except DBAPIError as error:
            if raw.in_transaction:
                execute("ROLLBACK")
            if attempt == _RETRIES - 1 or not (isinstance(error.orig, sqlite3.Error) and _is_transient(error.orig)):
                raise
            time.sleep(_PAUSE_S)
        else:
            return


def full_message(place: str) -> str:
    """Return what to say where nothing can be written because there is no room."""
    return (
        f"the file system of {place} is full, or a quota or size limit is reached: nothing can be written to the "
        "database; free some space there. `backyfs rm` and `backyfs cleanup` have a reserve and can make room"
    )


def read_only_opener(path: str) -> Callable[[], sqlite3.Connection]:
    """Open an SQLite file as one that does not change: else SQLite wants to make files beside it.

    Source: https://www.sqlite.org/uri.html, immutable.

    Raises:
        DatabaseError: its newest changes are in a file beside it.
    """
    path = os.path.abspath(path)
    for log in (f"{path}-wal", f"{path}-journal"):
        if _has_content(log):
            raise DatabaseError(
                f"{path} is on a read-only file system, and the newest changes are still in {log}; copy both files to "
                "where they can be written, and let the engine of [MetaBackend] name the copy"
            )
    place = f"file:{quote(path)}?immutable=1"
    return lambda: _connect(place, uri=True)


def text_or_bytes(raw: bytes) -> str | bytes:
    """Return what a file has as text; as bytes where it is not UTF-8, so that the rule of the column refuses it."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


def _connect(place: str, **options: Any) -> sqlite3.Connection:
    timeout_s = CHECK_PATIENCE_MS / 1000
    connection: sqlite3.Connection = sqlite3.connect(place, timeout=timeout_s, check_same_thread=False, **options)
    return connection


def _has_index(path: str) -> bool:
    """Return whether the database file at `path` has a `-shm`; an empty one is made, as SQLite makes it."""
    try:
        owner = os.stat(path)
        fd = os.open(f"{path}-shm", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, owner.st_mode & 0o777)
    except OSError:
        return False
    try:
        if os.geteuid() == 0:
            os.fchown(fd, owner.st_uid, owner.st_gid)
    finally:
        os.close(fd)
    return True


def _has_content(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _is_transient(error: sqlite3.Error) -> bool:
    """Return whether a read failed because another command has just opened or closed the database."""
    return _is_busy(error) or error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
